"""Detects whether files have changed without reading them, by their sizes and times."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from actstore_storage.errors import ActstoreError

# By path, in order: size, and when contents and inode changed, in nanoseconds. A copy that keeps the old time of its
# contents, such as rsync's, has a new inode time, and so has a renamed file. The inode number is left out: if a bucket
# is mounted as a folder, it may change without reason.
Stamp = tuple[tuple[str, int, int, int], ...]


def stamp_of(files: Iterable[Path]) -> Stamp:
    """The stamp of those files that exist. A loop of links does not."""
    return tuple(_stamps(sorted(set(files))))


@contextmanager
def held_still(stamp: Callable[[], Stamp], kind: str, name: str) -> Iterator[None]:
    """Ensures that everything read from the files inside this context belongs to the same bytes. `stamp` gives their
    stamp.

    Errors: ActstoreError FILES_CHANGED if they were written meanwhile. This error replaces any that resulted from it.
    """
    before = stamp()
    try:
        yield
    finally:
        if stamp() != before:
            raise ActstoreError(
                f"the files of {kind} {name!r} changed while they were read",
                reason="FILES_CHANGED",
                field=kind,
                value=name,
                allowed="files that do not change while they are read",
            )


def _stamps(files: Iterable[Path]) -> Iterator[tuple[str, int, int, int]]:
    for path in files:
        with suppress(OSError):
            found = path.stat()
            yield str(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns
