"""A bucket for one caller: nothing more is read from it once the caller has gone."""

import threading
from contextlib import AbstractContextManager

import pyarrow as pa

from actstore_storage.bucket import Bucket, Stamp
from actstore_storage.errors import ActstoreError, StoreError


class WatchedBucket(Bucket):
    """The same bucket. Every request looks first whether `stop` is set, and code that computes for long calls `check`.

    Errors: as those of the bucket, and ActstoreError CANCELLED once `stop` is set.
    """

    def __init__(self, inner: Bucket, stop: threading.Event) -> None:
        self._inner, self._stop = inner, stop

    def __eq__(self, other: object) -> bool:
        """What is cached of a bucket is the same for all callers."""
        return self._inner == (other._inner if isinstance(other, WatchedBucket) else other)

    def __hash__(self) -> int:
        return hash(self._inner)

    def check(self) -> None:
        if self._stop.is_set():
            raise ActstoreError("the caller no longer waits for this answer", reason="CANCELLED")

    def put(self, key: str, data: bytes) -> None:
        self._watched.put(key, data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return self._watched.put_if_absent(key, data)

    def create(self, key: str) -> AbstractContextManager[pa.NativeFile]:
        return self._watched.create(key)

    def get(self, key: str) -> bytes:
        return self._watched.get(key)

    def stamp(self, key: str) -> Stamp:
        return self._watched.stamp(key)

    def open(self, key: str) -> pa.NativeFile:
        return self._watched.open(key)

    def keys(self, prefix: str, *, after: str | None = None, until: str | None = None) -> list[str]:
        return self._watched.keys(prefix, after=after, until=until)

    def folders(self, prefix: str) -> list[str]:
        return self._watched.folders(prefix)

    def top(self) -> tuple[list[str], list[str]]:
        return self._watched.top()

    def delete(self, key: str) -> None:
        self._watched.delete(key)

    def exists(self, key: str) -> bool:
        return self._watched.exists(key)

    def store_error(self, error: OSError) -> StoreError | None:
        return self._inner.store_error(error)

    @property
    def address(self) -> str:
        return self._inner.address

    @property
    def _watched(self) -> Bucket:
        self.check()
        return self._inner
