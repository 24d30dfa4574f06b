"""A bucket that counts what is read from it."""

from collections.abc import Callable
from typing import Any, cast

import pyarrow as pa

from actstore_storage.bucket import Bucket


class Reads:
    """Counts of what was read since `forget`: objects got or opened, single reads, and their bytes."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.objects = self.reads = self.bytes = 0

    def read(self, count: int) -> None:
        self.reads += 1
        self.bytes += count


def counted(bucket: Bucket, reads: Reads) -> Bucket:
    """Returns the same bucket; what is read through it is counted in `reads`."""
    return cast("Bucket", _Counted(bucket, reads))


class _Counted:
    def __init__(self, inner: Bucket, reads: Reads) -> None:
        self._inner, self._reads = inner, reads

    def get(self, key: str) -> bytes:
        self._reads.objects += 1
        data = self._inner.get(key)
        self._reads.read(len(data))
        return data

    def open(self, key: str) -> pa.NativeFile:
        self._reads.objects += 1
        return pa.PythonFile(_CountedFile(self._inner.open(key), self._reads.read), mode="r")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _CountedFile:
    """The methods of a Python file that pyarrow uses."""

    def __init__(self, file: pa.NativeFile, count: Callable[[int], None]) -> None:
        self._file, self._count = file, count
        self.closed = False

    def read(self, size: int) -> bytes:
        data = bytes(self._file.read(size))
        self._count(len(data))
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        self.closed = True
