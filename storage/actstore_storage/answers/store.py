"""What answers are read from: a bucket, the snapshots of its runs, and what is kept of both in memory."""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from actstore_storage.answers.kept import KeptRuns
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.side_by_side import read_side_by_side
from actstore_storage.bucket.watched import WatchedBucket
from actstore_storage.errors import CorruptObject, NotThere
from actstore_storage.format.keys import RUNS
from actstore_storage.parquet.row_cache import NO_CACHE, RowCache
from actstore_storage.runs.snapshot import Snapshot

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Store:
    """A bucket, and caches of its rows and of opened runs in memory. `opened`: snapshots of the question at hand."""

    bucket: Bucket
    row_cache: RowCache = NO_CACHE
    kept: KeptRuns = field(default_factory=lambda: KeptRuns(0))
    opened: Mapping[str, Snapshot] = field(default_factory=dict)

    def until(self, stop: threading.Event) -> "Store":
        """The same store for one caller, from which nothing more is read once `stop` is set (CANCELLED)."""
        return replace(self, bucket=WatchedBucket(self.bucket, stop))

    def with_opened(self, run: str) -> "Store":
        """The same store for one question, which sees the run as it is now."""
        return replace(self, opened={run: self.snapshot(run)})

    @property
    def keeps_runs(self) -> bool:
        return self.kept.cache.bytes_max > 0

    def anew(self, runs: Sequence[str]) -> "Store":
        """The same store without anything kept of runs; these are opened anew for later questions, too."""
        for run in runs:
            self.kept.forget(run)
        return replace(self, kept=KeptRuns(0), opened={})

    def snapshot(self, run: str) -> Snapshot:
        """The commits of a run at this moment."""
        return self.opened.get(run) or self.kept.open(self.bucket, run)

    def snapshots(self, runs: Sequence[str]) -> list[Snapshot]:
        """The same for several runs, in their order."""
        return [self.snapshot(run) for run in runs]

    def readable_runs(self) -> list[Snapshot]:
        """Opens every readable run. A damaged one must not hide the others: it is logged, and `snapshot` refuses it."""
        found = read_side_by_side(self._readable, self.bucket.folders(RUNS))
        return [snapshot for snapshot in found if snapshot is not None]

    def _readable(self, run: str) -> Snapshot | None:
        try:
            return self.kept.open_if_there(self.bucket, run)
        except CorruptObject as error:
            _log.warning("run %s is omitted from the listing: %s", run, error.for_log)
        except NotThere:
            pass  # removed since it was listed
        return None
