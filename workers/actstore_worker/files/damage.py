"""Detects files that are not what their name promises, and says what to do."""

import os
from collections.abc import Iterable
from pathlib import Path

from actstore_worker.files.places import is_inside

# The beginning of the pointer that Git leaves in place of a file if git-lfs is not installed.
GIT_LFS = b"version https://git-lfs.github.com/spec/v1"


class DamagedFile(ValueError):
    """Says which file is wrong, in what way, and what to do."""


def is_git_lfs_pointer(path: Path) -> bool:
    """Whether the file is a Git LFS pointer, as without git-lfs."""
    with path.open("rb") as file:
        return file.read(len(GIT_LFS)) == GIT_LFS


def check_file(path: Path, bytes_max: int | None = None) -> None:
    """Refuses what is not a regular file, a Git LFS pointer, and a file that is larger than the limit: DamagedFile."""
    if os.path.lexists(path) and not path.is_file():  # opening a pipe would wait for whoever writes into it
        raise DamagedFile(f"{path.name} is not a regular file")
    if is_git_lfs_pointer(path):
        raise DamagedFile(f"{path.name} is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder")
    if bytes_max is not None and (size := path.stat().st_size) > bytes_max:
        raise DamagedFile(f"{path.name} has {size} bytes; the limit is {bytes_max}")


def check_own_files(paths: Iterable[Path], root: Path) -> None:
    """Refuses links that lead outside `root`, and what is not a regular file: DamagedFile. Files may be missing."""
    for path in filter(os.path.lexists, paths):
        if not is_inside(path, root):
            raise DamagedFile(f"{path.name} is a link to a place outside the model folders")
        if not path.is_file():
            raise DamagedFile(f"{path.name} is not a regular file")
