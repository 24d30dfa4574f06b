"""Reads the files of a dataset uncompressed and completely; errors name the damaged file."""

import io
import lzma
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from actstore_storage.errors import ActstoreError, BadRequest, NotThere, StoreError
from actstore_worker.datasets.formats import FileKind
from actstore_worker.files.damage import GIT_LFS
from actstore_worker.files.stamps import Stamp

_READ_BYTES = 1 << 20


class FileStore(Protocol):
    """Files with arbitrary names, for reading: an S3 prefix that other programs wrote, or any bucket."""

    def keys(self, prefix: str) -> list[str]:
        """The keys below a folder."""

    def top(self) -> tuple[list[str], list[str]]:
        """Objects and folders at the top level."""

    def open(self, key: str) -> pa.NativeFile:
        """Opens the object with this key. Errors: KeyError."""

    def exists(self, key: str) -> bool:
        """Whether there is an object with exactly this key."""

    def store_error(self, error: OSError) -> StoreError | None:
        """Returns the store's own error that caused an error during reading; None: the bytes are wrong."""


class _XzStreams(io.RawIOBase):
    """All streams of an xz file. `lzma.LZMAFile` would treat a stream with an invalid beginning as the end
    of the file.
    """

    def __init__(self, source: pa.NativeFile) -> None:
        self._source, self._decoder = source, lzma.LZMADecompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = data = b""
        while not found:
            if self._decoder.eof:
                data = self._decoder.unused_data or self._source.read(_READ_BYTES)
                if not data:
                    return 0
                self._decoder = lzma.LZMADecompressor()
            elif self._decoder.needs_input:
                data = self._source.read(_READ_BYTES)
                if not data:
                    raise EOFError("it ends in the middle of a compressed stream")
            found, data = self._decoder.decompress(data, len(buffer)), b""
        buffer[: len(found)] = found
        return len(found)


@dataclass(frozen=True)
class DatasetFile:
    """A file. `name` is its path in the dataset, for messages and as a document's source; `open` gives its raw bytes.

    `store_error` separates the store's own errors from errors of its bytes; None: on a disk all errors are the file's.
    `stamp` shows whether the file has changed; a store does not tell.
    """

    name: str
    kind: FileKind
    open: Callable[[], pa.NativeFile]
    store_error: Callable[[OSError], StoreError | None] | None = None
    stamp: Callable[[], Stamp] = tuple

    def open_content(self) -> io.BufferedReader:
        """Opens it uncompressed, from the start. Errors: OSError, EOFError and lzma.LZMAError for damage; see
        `failure`.
        """
        source = self.open()
        if not self.kind.compression:
            content = io.BufferedReader(source, _READ_BYTES)
            if content.peek(len(GIT_LFS)).startswith(GIT_LFS):
                raise self._pointer()
            return content
        if not source.size():
            raise unreadable(
                self.name, f"it is empty, so it is not a valid {self.kind.compression} file", "a whole file"
            )
        if self.kind.compression == "xz":
            return io.BufferedReader(_XzStreams(source), _READ_BYTES)
        return io.BufferedReader(pa.CompressedInputStream(source, self.kind.compression), _READ_BYTES)

    def failure(self, error: Exception, what: str, allowed: str) -> ActstoreError:
        """Returns the error for one that occurred during reading: the store's own, or that the file is damaged."""
        of_store = self.store_error(error) if self.store_error and isinstance(error, OSError) else None
        if of_store is None and self._begins_with(GIT_LFS):
            return self._pointer()
        return of_store or unreadable(self.name, f"{what}: {str(error).strip()}", allowed)

    def _begins_with(self, mark: bytes) -> bool:
        with suppress(OSError), self.open() as source:
            return bool(source.read(len(mark)) == mark)
        return False

    def _pointer(self) -> BadRequest:
        return unreadable(
            self.name, "it is a Git LFS pointer, not the file itself", "the file itself; `git lfs pull` downloads it"
        )


@dataclass(frozen=True)
class Dataset:
    """Files in order, or else a table of the `datasets` library. `not_read`: names of other files in its folder."""

    name: str
    files: tuple[DatasetFile, ...] = ()
    table: Any = None
    not_read: tuple[str, ...] = ()


def unreadable(name: str, why: str, allowed: str, offset: int | None = None) -> BadRequest:
    """Makes the error for a damaged or invalid file; `offset` says where in it."""
    return BadRequest(
        f"{name} cannot be read: {why}",
        reason="DATASET_UNREADABLE",
        field="dataset",
        value=name if offset is None else f"{name} at byte {offset}",
        allowed=allowed,
    )


def not_found(name: str, why: str, allowed: object) -> NotThere:
    """Makes the error for a dataset name without a dataset."""
    return NotThere(
        f"there is no dataset {name!r}; {why}", reason="DATASET_NOT_FOUND", field="dataset", value=name, allowed=allowed
    )
