"""Opened runs that a process keeps for its next questions.

A run's objects are immutable, so opening it again gives the same, unless the run was removed and another one has its
name, or has more commits now. Each question looks at both: at the stamp of the run's record, and at the names of
commits as long as some are missing.
"""

from dataclasses import dataclass

from actstore_storage.bucket import Bucket, Stamp
from actstore_storage.bucket.cache import ByteCache, Memory
from actstore_storage.format.keys import run_key
from actstore_storage.runs.opening import loose_shards, open_run
from actstore_storage.runs.snapshot import Snapshot

# Memory of a record over its bytes as JSON, as measured with sys.getsizeof.
_MEMORY_OVER_JSON = 6


@dataclass(frozen=True)
class _Kept:
    stamp: Stamp
    snapshot: Snapshot
    memory: Memory

    def is_current(self, bucket: Bucket, stamp: Stamp) -> bool:
        """Whether opening the run again would find the same commits."""
        if stamp != self.stamp:
            return False
        snapshot = self.snapshot
        if snapshot.complete:
            return True
        folded = [checkpoint.shards for checkpoint in snapshot.commits.checkpoints]
        return loose_shards(bucket, snapshot.record, folded) == [commit.shard for commit in snapshot.commits.loose]

    def seen_through(self, bucket: Bucket) -> Snapshot:
        return self.snapshot.through(bucket, self.memory)


class KeptRuns:
    """Opens runs, for any number of threads. It keeps runs and what answers computed from them, up to `bytes_max`."""

    def __init__(self, bytes_max: int) -> None:
        self.cache = ByteCache[object](bytes_max)

    def open(self, bucket: Bucket, run: str) -> Snapshot:
        """The commits of a run at this moment, as `open_run`."""
        return self.open_if_there(bucket, run) or open_run(bucket, run)

    def open_if_there(self, bucket: Bucket, run: str) -> Snapshot | None:
        """None if there is no such run. Errors: CorruptObject."""
        try:
            stamp = bucket.stamp(run_key(run))
        except KeyError:
            self.cache.forget(run)
            return None
        kept = self.cache.find(run)
        if not isinstance(kept, _Kept) or not kept.is_current(bucket, stamp):
            kept = self._opened(bucket, run, stamp)
        return kept.seen_through(bucket)

    def forget(self, run: str) -> None:
        """Opens the run anew at its next question."""
        self.cache.forget(run)

    def _opened(self, bucket: Bucket, run: str, stamp: Stamp) -> _Kept:
        """The stamp is older than what is opened: if another run got the name in between, the next question sees it."""
        snapshot = open_run(bucket, run)
        if not stamp.settled or not self.cache.bytes_max:
            self.cache.forget(run)
            return _Kept(stamp, snapshot, snapshot.memory)
        snapshot.compute()
        kept = _Kept(stamp, snapshot, Memory(self.cache))
        self.cache.keep(run, kept, _bytes_of(snapshot))
        return kept


def _bytes_of(snapshot: Snapshot) -> int:
    commits = snapshot.commits
    parts = [snapshot.record.to_json(), *(checkpoint.summary.to_json("") for checkpoint in commits.checkpoints)]
    loose = len(commits.loose) * len(commits.loose[0].to_json()) if commits.loose else 0
    return _MEMORY_OVER_JSON * (sum(map(len, parts)) + loose) + 4 * commits.shards.nbytes
