"""What an answer is read from: a bucket, the snapshots of its runs, and rows that are held for who asks next."""

from collections.abc import Sequence
from dataclasses import dataclass

from actstore_storage.bucket import Bucket
from actstore_storage.parquet.row_cache import NO_CACHE, RowCache
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.snapshot import Snapshot


@dataclass(frozen=True)
class Store:
    """A bucket, and rows of it that are held in memory for who asks next."""

    bucket: Bucket
    row_cache: RowCache = NO_CACHE

    def snapshot(self, run: str) -> Snapshot:
        """What is committed of a run now; each answer looks for itself."""
        return open_run(self.bucket, run)

    def snapshots(self, runs: Sequence[str]) -> list[Snapshot]:
        """The same of several runs, in their order."""
        return [self.snapshot(run) for run in runs]
