"""What answers are read from: a bucket, the snapshots of its runs, and a cache of rows."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.watched import WatchedBucket
from actstore_storage.parquet.row_cache import NO_CACHE, RowCache
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.snapshot import Snapshot


@dataclass(frozen=True)
class Store:
    """A bucket, and a cache of its rows in memory."""

    bucket: Bucket
    row_cache: RowCache = NO_CACHE

    def until(self, stop: threading.Event) -> "Store":
        """The same store for one caller, from which nothing more is read once `stop` is set (CANCELLED)."""
        return replace(self, bucket=WatchedBucket(self.bucket, stop))

    def snapshot(self, run: str) -> Snapshot:
        """The commits of a run at this moment; each answer opens its own."""
        return open_run(self.bucket, run)

    def snapshots(self, runs: Sequence[str]) -> list[Snapshot]:
        """The same for several runs, in their order."""
        return [self.snapshot(run) for run in runs]
