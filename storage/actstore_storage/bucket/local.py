"""A bucket in a local directory. A key is a path below it; `.scratch` contains files that are being written."""

import errno
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pyarrow as pa

from actstore_storage.bucket import Bucket, Stamp, check_key, is_key
from actstore_storage.errors import BadRequest, StoreError, StoreUnreachable

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR}
# Errors of a hard link on file systems that have none: FAT, and many network or bucket file systems.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}
_SCRATCH = ".scratch"
# A folder disappears with its last object, possibly between creating the folder and writing an object there.
_PLACE_TRIES = 20


class LocalBucket(Bucket):
    """A bucket in a folder of this machine."""

    def __init__(self, root: Path) -> None:
        """`root` must exist, so that a mistyped or unmounted path does not silently become a new, empty store."""
        if not root.is_dir():
            what = f"{root} is a file" if root.exists() else f"there is no directory {root}"
            raise StoreError(what, field="store", value=root, allowed="a directory")
        self._root = root.resolve()

    @property
    def address(self) -> str:
        return str(self._root)

    @property
    def written(self) -> bool:
        """Whether anything was ever written here, even if it no longer exists."""
        return (self._root / _SCRATCH).is_dir()

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        with self._failures(), self._scratch() as scratch:
            _write_durably(scratch, data)
            self._place(os.replace, scratch, path)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        with self._failures(), self._scratch() as scratch:
            _write_durably(scratch, data)
            # A hard link is the only call that creates a complete file atomically, and only if the name is free.
            return self._place(_link_if_absent, scratch, path) is not False

    @contextmanager
    def create(self, key: str) -> Iterator[pa.NativeFile]:
        path = self._path(key)
        with self._failures(), self._scratch() as scratch:
            with pa.OSFile(str(scratch), "wb") as stream:
                yield stream
            _sync(scratch)
            self._place(os.replace, scratch, path)

    def get(self, key: str) -> bytes:
        with self._failures(reading=key):
            return self._path(key).read_bytes()

    def stamp(self, key: str) -> Stamp:
        with self._failures(reading=key):
            state = self._path(key).stat()
        version = state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns
        return Stamp(version, time.time() - state.st_mtime)

    def open(self, key: str) -> pa.NativeFile:
        path = self._path(key)
        if path.is_dir():  # pyarrow's error has no number for it
            raise KeyError(key)
        with self._failures(reading=key):
            return pa.OSFile(str(path), "rb")

    def keys(self, prefix: str, *, after: str | None = None, until: str | None = None) -> list[str]:
        with self._failures(reading=prefix):
            self._root.stat()  # a missing store is not an empty one
            found = sorted(self._walk(prefix))
        first = 0 if after is None else bisect_right(found, after)
        return found[first : len(found) if until is None else bisect_right(found, until)]

    def folders(self, prefix: str) -> list[str]:
        with self._failures(reading=prefix):
            self._root.stat()
            return sorted(entry.name for entry in _entries(self._path(prefix)) if entry.is_dir(follow_symlinks=False))

    def top(self) -> tuple[list[str], list[str]]:
        with self._failures(), os.scandir(self._root) as entries:
            visible = (entry for entry in entries if not entry.name.startswith("."))
            found = sorted(visible, key=lambda entry: entry.name)
            folders = [entry.name for entry in found if entry.is_dir(follow_symlinks=False)]
            return [entry.name for entry in found if entry.is_file(follow_symlinks=False)], folders

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._failures():
            path.unlink(missing_ok=True)
            with suppress(OSError):  # not empty, or already removed
                for folder in path.parents:
                    if folder == self._root:
                        break
                    folder.rmdir()

    def store_error(self, error: OSError) -> StoreError | None:
        if error.errno is None:
            return None
        where = {"field": "store", "value": self.address}
        cause = os.strerror(error.errno)
        if error.errno in _FULL:
            return StoreError(f"{self.address} is full: {cause}", reason="STORE_FULL", **where)
        if error.errno in _REFUSED:
            message = f"{self.address} cannot be written: {cause} ({error.filename or 'a file in it'})"
            return StoreError(message, reason="STORE_NOT_WRITABLE", **where)
        return StoreUnreachable(f"{self.address} fails: {cause}", **where)

    def _path(self, key: str) -> Path:
        """Links are rare, so this first checks whether there is one, which takes a quarter of the time of resolving."""
        path = str(self._root)
        for part in check_key(key).split("/"):
            path = f"{path}/{part}"
            if os.path.islink(path) and not Path(path).resolve().is_relative_to(self._root):  # noqa: PTH114  faster
                message = f"{key} is outside the store: its path contains a symbolic link"
                raise BadRequest(message, reason="NAME_INVALID", field="key", value=key)
        return Path(path)

    def _walk(self, prefix: str) -> Iterator[str]:
        for entry in _entries(self._path(prefix)):
            key = f"{prefix}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(key)
            elif entry.is_file(follow_symlinks=False):
                yield key

    def _place(self, move: Callable[[Path, Path], object], scratch: Path, path: Path) -> object:
        """Moves into a folder that it makes, again if another writer removes that meanwhile: either step may notice."""
        for left in reversed(range(_PLACE_TRIES)):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                placed = move(scratch, path)
            except (FileNotFoundError, FileExistsError):
                if not left:
                    raise
                continue
            break
        self._sync_folders(path)
        return placed

    def _sync_folders(self, path: Path) -> None:
        """Flushes folders up to the root: each may be new, created by us or by another writer who has not flushed it
        yet.
        """
        for folder in path.parents:
            with suppress(FileNotFoundError):  # removed with an object that was deleted meanwhile
                _sync(folder)
            if folder == self._root:
                break

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A new path on the root's own file system, so that it can be linked; removed at the end."""
        folder = self._root / _SCRATCH
        folder.mkdir(exist_ok=True)
        path = folder / uuid4().hex
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    @contextmanager
    def _failures(self, reading: str | None = None) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if reading and error.errno in {errno.ENOENT, errno.ENOTDIR, errno.EISDIR} and self._root.is_dir():
                raise KeyError(reading) from None
            if reading and error.errno in {errno.EACCES, errno.EPERM}:
                message = f"{self.address} cannot be read: {os.strerror(error.errno)}"
                raise StoreError(message, reason="STORE_CREDENTIALS", field="store", value=self.address) from error
            if error.errno == errno.ENOENT and not self._root.is_dir():
                raise StoreError(f"there is no directory {self.address}", field="store", value=self.address) from error
            raise self.store_error(error) or error from error


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The contents of a folder with valid names; nothing if there is no folder."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if is_key(entry.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _link_if_absent(scratch: Path, path: Path) -> bool:
    try:
        os.link(scratch, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise StoreError(
            f"the file system of {scratch.parent.parent} has no hard links, which actstore needs to create a file "
            "only if it does not exist",
            reason="STORE_UNSAFE",
            field="store",
            value=scratch.parent.parent,
            allowed="a folder on another file system, or S3",
        ) from error
    return True


def _write_durably(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    _sync(path)


def _sync(path: Path) -> None:
    """Flushes a file or a folder to the disk: a commit must not survive a power failure that its data did not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
