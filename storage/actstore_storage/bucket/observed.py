"""A bucket that tells an observer of each operation: which one, how it ended, its seconds and its bytes."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from actstore_storage.bucket import Bucket, Stamp
from actstore_storage.errors import ActstoreError, StoreError

Found = TypeVar("Found")

OK, ABSENT, TAKEN, FAILED = "ok", "absent", "taken", "failed"
# By reason of the store's error. Any other failure says nothing about whether the store can be reached.
_OUTCOMES = {
    "STORE_UNREACHABLE": "unreachable",
    "STORE_CREDENTIALS": "refused",
    "STORE_NOT_WRITABLE": "refused",
    "STORE_NOT_FOUND": "missing",
}
# The folder that is listed to see whether the store answers; it is usually empty.
_LISTED = "probe"


class StoreObserver(Protocol):
    """What is told of a store. It is called on the thread of the operation, and must not take long."""

    def ended(self, operation: str, outcome: str, seconds: float) -> None:
        """An operation, its retries included, has ended in one of the outcomes of this module."""

    def moved(self, direction: str, n_bytes: int) -> None:
        """Bytes were `read` or `written`."""


class ObservedBucket(Bucket):
    """The same bucket. What is read through an opened object is observed too."""

    def __init__(self, bucket: Bucket, observer: StoreObserver) -> None:
        self._bucket, self._observer = bucket, observer
        self._heard_seconds = time.monotonic()

    @property
    def address(self) -> str:
        return self._bucket.address

    @property
    def quiet_seconds(self) -> float:
        """For how long no operation has ended."""
        return time.monotonic() - self._heard_seconds

    def put(self, key: str, data: bytes) -> None:
        self._tell("put", lambda: self._bucket.put(key, data))
        self._observer.moved("written", len(data))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        won = self._tell("put", lambda: self._bucket.put_if_absent(key, data), lambda won: OK if won else TAKEN)
        self._observer.moved("written", len(data) if won else 0)
        return won

    @contextmanager
    def create(self, key: str) -> Iterator[pa.NativeFile]:
        n_bytes = 0
        with self._telling("create"), self._bucket.create(key) as stream:
            yield stream
            n_bytes = 0 if stream.closed else stream.tell()
        self._observer.moved("written", n_bytes)

    def get(self, key: str) -> bytes:
        data = self._tell("get", lambda: self._bucket.get(key))
        self._observer.moved("read", len(data))
        return data

    def stamp(self, key: str) -> Stamp:
        return self._tell("open", lambda: self._bucket.stamp(key))

    def open(self, key: str) -> pa.NativeFile:
        opened = self._tell("open", lambda: self._bucket.open(key))
        return pa.PythonFile(_ObservedFile(opened, self._read), mode="r")

    def exists(self, key: str) -> bool:
        return self._tell("open", lambda: self._bucket.exists(key), lambda there: OK if there else ABSENT)

    def keys(self, prefix: str, *, after: str | None = None, until: str | None = None) -> list[str]:
        return self._tell("list", lambda: self._bucket.keys(prefix, after=after, until=until))

    def folders(self, prefix: str) -> list[str]:
        return self._tell("list", lambda: self._bucket.folders(prefix))

    def top(self) -> tuple[list[str], list[str]]:
        return self._tell("list", self._bucket.top)

    def delete(self, key: str) -> None:
        self._tell("delete", lambda: self._bucket.delete(key))

    def store_error(self, error: OSError) -> StoreError | None:
        return self._bucket.store_error(error)

    def _read(self, read: Callable[[], Any]) -> Any:
        found = self._tell("read", read)
        self._observer.moved("read", len(found))
        return found

    def _tell(self, operation: str, ask: Callable[[], Found], outcome: Callable[[Found], str] = lambda _: OK) -> Found:
        with self._telling(operation) as ended:
            found = ask()
            ended.append(outcome(found))
        return found

    @contextmanager
    def _telling(self, operation: str) -> Iterator[list[str]]:
        """The block may name its outcome, if that is not OK."""
        started_seconds, ended = time.monotonic(), [OK]
        try:
            yield ended
        except BaseException as error:
            ended.append(self._outcome(error))
            raise
        finally:
            self._heard_seconds = time.monotonic()
            self._observer.ended(operation, ended[-1], self._heard_seconds - started_seconds)

    def _outcome(self, error: BaseException) -> str:
        if isinstance(error, KeyError):
            return ABSENT
        failure = self._bucket.store_error(error) if isinstance(error, OSError) else error
        return _OUTCOMES.get(failure.reason, FAILED) if isinstance(failure, ActstoreError) else FAILED


class _ObservedFile:
    """An opened object as Arrow reads it from Python: ranges as buffers, which are not copied."""

    def __init__(self, file: pa.NativeFile, read: Callable[[Callable[[], Any]], Any]) -> None:
        self._file, self._read = file, read

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def read(self, n_bytes: int = -1) -> bytes:
        data: bytes = self._read(lambda: self._file.read(n_bytes if n_bytes >= 0 else None))
        return data

    def read_buffer(self, n_bytes: int) -> pa.Buffer:
        return self._read(lambda: self._file.read_buffer(n_bytes))

    def seek(self, position: int, whence: int = 0) -> int:
        return int(self._file.seek(position, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def size(self) -> int:
        return int(self._file.size())

    def close(self) -> None:
        self._file.close()


class StoreWatch:
    """Asks a store that nobody asks, so that an observer hears of an outage although nobody reads. Until `close`."""

    def __init__(self, bucket: ObservedBucket, quiet_seconds: float) -> None:
        self._bucket, self._quiet_seconds = bucket, quiet_seconds
        self._over = threading.Event()
        threading.Thread(target=self._look, name="store watch", daemon=True).start()

    def close(self) -> None:
        self._over.set()

    def _look(self) -> None:
        while not self._over.wait(max(0.1, self._quiet_seconds - self._bucket.quiet_seconds)):
            if self._bucket.quiet_seconds >= self._quiet_seconds:
                self._ask()

    def _ask(self) -> None:
        try:
            self._bucket.keys(_LISTED)
        except (ActstoreError, OSError):
            return  # the observer has heard of it
