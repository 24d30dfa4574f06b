"""Are files still those that were read? Told without reading them, by their sizes and times."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from actstore_storage.errors import ActstoreError

# By path, in order: size, and when contents and inode were changed, in nanoseconds. A copy that keeps the old time of
# its contents, as rsync's, has a new time of its inode, and so has a file that was renamed. The inode's number is left
# out: where a bucket is mounted as a folder it may change by itself.
Stamp = tuple[tuple[str, int, int, int], ...]


def stamp_of(files: Iterable[Path]) -> Stamp:
    """The stamp of those files that exist."""
    return tuple(_stamps(sorted(set(files))))


@contextmanager
def held_still(stamp: Callable[[], Stamp], kind: str, name: str) -> Iterator[None]:
    """What is read of the files inside the block is of the same bytes, hash and numbers. `stamp` gives their stamp.

    Errors: ActstoreError FILES_CHANGED where they were written meanwhile. This error replaces any that came of it.
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
        with suppress(FileNotFoundError):
            found = path.stat()
            yield str(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns
