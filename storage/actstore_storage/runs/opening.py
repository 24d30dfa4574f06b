"""Creates a run, opens it for reading, and lists runs and commits."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.local import LocalBucket
from actstore_storage.bucket.side_by_side import read_side_by_side
from actstore_storage.errors import Conflict, CorruptObject, NotThere, StoreError, corrupt_object
from actstore_storage.format.commit import Commit, commit_of
from actstore_storage.format.keys import RUNS, TOP_FOLDERS, commit_key, commits_folder, run_key
from actstore_storage.format.specification import RunRecord
from actstore_storage.runs.checkpoint import Commits, open_checkpoints, own_memory
from actstore_storage.runs.snapshot import Snapshot

# Subfolders of a folder that is not a store in which a store is searched.
NEIGHBOURS_MAX = 100


def check_run_name(bucket: Bucket, record: RunRecord) -> None:
    """Refuses what `create_run` would refuse now. Errors: Conflict, CorruptObject."""
    key = run_key(record.run)
    if bucket.exists(key):
        check_same_run(read_record(bucket, record.run), record)
    elif (left := bucket.keys(f"{RUNS}/{record.run}")) and key not in left:
        raise Conflict(
            f"run {record.run} was only partly removed",
            field="run",
            value=record.run,
            allowed="another name; or remove the run again, which finishes the removal",
        )


def create_run(bucket: Bucket, record: RunRecord) -> RunRecord:
    """Creates a run, and returns the record in the bucket: this one, or an earlier one with the same specification.

    Raises Conflict if another specification has the name.
    """
    check_run_name(bucket, record)
    if bucket.put_if_absent(run_key(record.run), record.to_json()):
        return record
    standing = read_record(bucket, record.run)
    check_same_run(standing, record)
    return standing


def check_same_run(standing: RunRecord, record: RunRecord) -> None:
    """Refuses records with the same name and different specifications. Errors: Conflict with the differences."""
    if standing.specification.differing(record.specification):
        raise Conflict(
            f"run {record.run} already exists with another specification: {'; '.join(standing.differences(record))}",
            field="run",
            value=record.run,
            allowed=f"another name, or the specification {standing.specification_sha256}",
        )


def check_store(bucket: Bucket) -> None:
    """Refuses to read a bucket that has none of a store's objects and in which no writer has begun one.

    Errors: StoreError STORE_NOT_FOUND. Without this check every answer would be empty.
    """
    if _is_store(bucket):
        return
    below = _stores_below(Path(bucket.address)) if isinstance(bucket, LocalBucket) else []
    near = f"; {below[0]} is one" if below else ""
    raise StoreError(
        f"{bucket.address} is not a store: it has none of the objects that actstore writes{near}",
        field="store",
        value=bucket.address,
        allowed=", ".join(below) or "a store with at least one capture, such as .actstore/store after `actstore up`",
    )


def _is_store(bucket: Bucket) -> bool:
    if isinstance(bucket, LocalBucket) and bucket.written:
        return True
    return any(bucket.folders(folder) or bucket.keys(folder) for folder in TOP_FOLDERS)


def _stores_below(folder: Path) -> list[str]:
    try:
        near = [path for path in islice(folder.iterdir(), NEIGHBOURS_MAX) if path.is_dir()]
        found = [path for path in (*near, folder / ".actstore" / "store") if path.is_dir()]
        return sorted(str(path) for path in found if _is_store(LocalBucket(path)))
    except OSError:
        return []


def list_runs(bucket: Bucket) -> list[str]:
    """Names every run that was created."""
    names = bucket.folders(RUNS)
    there = read_side_by_side(lambda name: bucket.exists(run_key(name)), names)
    return [name for name, exists in zip(names, there, strict=True) if exists]


def _shard_numbers(keys: Iterable[str]) -> set[int]:
    stems = (key.rpartition("/")[2].removesuffix(".json") for key in keys)
    return {int(stem) for stem in stems if stem.isdigit()}


def open_run(bucket: Bucket, run: str, unreadable: list[CorruptObject] | None = None) -> Snapshot:
    """Opens the current commits. Shards that are committed later appear in later snapshots only.

    Errors: RUN_NOT_FOUND; CorruptObject. With `unreadable`, errors of commits and checkpoints are added to it, and the
    snapshot lacks those shards, or uses smaller checkpoints and commits for them.
    """
    record = read_record(bucket, run)
    # Before the listing: a commit that is folded in between is then found twice, instead of never.
    checkpoints = open_checkpoints(bucket, record, unreadable)
    loose = loose_shards(bucket, record, [checkpoint.shards for checkpoint in checkpoints])

    def read(shard: int) -> Commit | None:
        try:
            return read_commit(bucket, record, shard)
        except CorruptObject as error:
            if unreadable is None:
                raise
            unreadable.append(error)
            return None

    commits = [commit for commit in read_side_by_side(read, loose) if commit is not None]
    memory = own_memory()
    return Snapshot(bucket, record, Commits(checkpoints, commits).through(bucket, memory), memory)


def read_record(bucket: Bucket, run: str) -> RunRecord:
    """Reads a run's record. Errors: RUN_NOT_FOUND with the existing runs; CorruptObject."""
    key = run_key(run)
    try:
        record = RunRecord.from_json(bucket.get(key), key)
    except KeyError:
        allowed = list_runs(bucket) or "none: this store has no runs"
        raise NotThere(f"there is no run {run!r}", field="run", value=run, allowed=allowed) from None
    if record.run != run:
        raise corrupt_object(key, f"{key} holds the record of run {record.run}")
    return record


def runs_over(bucket: Bucket, run: str) -> list[str]:
    """Names the runs over this one's rows, which share objects with this one. An unreadable one is left out."""

    def stands_on(other: str) -> bool:
        try:
            return read_record(bucket, other).specification.rows_of == run
        except (NotThere, CorruptObject):
            return False

    names = [name for name in bucket.folders(RUNS) if name != run]
    return [name for name, found in zip(names, read_side_by_side(stands_on, names), strict=True) if found]


def loose_shards(bucket: Bucket, record: RunRecord, folded: list[range]) -> list[int]:
    """Committed shards that no checkpoint covers; lists only the ranges between checkpoints."""
    folder, found = commits_folder(record.run), []
    starts = [0, *(block.stop for block in folded)]
    stops = [*(block.start for block in folded), record.shards_total]
    for start, stop in zip(starts, stops, strict=True):
        if start < stop:
            after = commit_key(record.run, start - 1) if start else None
            found += bucket.keys(folder, after=after, until=commit_key(record.run, stop - 1))
    return sorted(_shard_numbers(found))


def read_commit(bucket: Bucket, record: RunRecord, shard: int) -> Commit:
    """Reads a shard's commit. Errors: KeyError if there is none; CorruptObject."""
    key = commit_key(record.run, shard)
    return commit_of(record, shard, bucket.get(key), key)
