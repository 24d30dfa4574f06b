"""Reads files again when they change, and keeps what was read before if they are broken."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from actstore_storage.errors import ActstoreError, BadRequest

LOG = logging.getLogger(__name__)
Value = TypeVar("Value")
Stamp = tuple[tuple[int, int, int], ...]


class Reloaded(Generic[Value]):
    """What some files say. `read` makes it from their bytes, or raises BadRequest.

    A mounted secret changes by a symbolic link to another folder, so that inode and time tell of each change.
    """

    def __init__(
        self,
        field: str,
        paths: Sequence[str | Path],
        read: Callable[..., Value],
        *,
        check_seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.field = field
        self._paths, self._read = [Path(path) for path in paths], read
        self._check_seconds, self._clock = check_seconds, clock
        self._lock = threading.Lock()
        self._checked = clock()
        self._stamp = self._stamp_now()
        self._value = self._read_now()
        self._successful = True

    @property
    def successful(self) -> bool:
        """Whether the files could be read when they last changed. A gauge of the metrics shows it."""
        self.current()
        return self._successful

    def current(self) -> Value:
        """Looks at the files at most once in `check_seconds`."""
        with self._lock:
            if self._clock() - self._checked >= self._check_seconds:
                self._checked = self._clock()
                self._look()
            return self._value

    def _look(self) -> None:
        try:
            stamp = self._stamp_now()
        except BadRequest as error:
            self._keep(error)
            return
        if stamp == self._stamp:
            return
        try:
            self._value = self._read_now()
        except BadRequest as error:
            self._keep(error)
        else:
            self._successful = True
            LOG.info("%s was read again", self.field)
        self._stamp = stamp

    def _keep(self, error: ActstoreError) -> None:
        if self._successful:
            LOG.error("%s: %s; what was read before stays in use", self.field, error.message)
        self._successful = False

    def _stamp_now(self) -> Stamp:
        return tuple(self._described(path) for path in self._paths)

    def _described(self, path: Path) -> tuple[int, int, int]:
        try:
            found = path.stat()
        except OSError as error:
            raise self._unreadable(path, error) from None
        return found.st_mtime_ns, found.st_ino, found.st_size

    def _read_now(self) -> Value:
        return self._read(*(self._bytes_of(path) for path in self._paths))

    def _bytes_of(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise self._unreadable(path, error) from None

    def _unreadable(self, path: Path, error: OSError) -> BadRequest:
        message = f"{path} cannot be read: {error.strerror or error}"
        return BadRequest(message, field=self.field, value=str(path), allowed="a file that this process may read")
