"""Detects files that are not what their name promises, and says what to do."""

from pathlib import Path

# The beginning of the pointer that Git leaves in place of a file if git-lfs is not installed.
GIT_LFS = b"version https://git-lfs.github.com/spec/v1"


class DamagedFile(ValueError):
    """Says which file is wrong, in what way, and what to do."""


def is_git_lfs_pointer(path: Path) -> bool:
    """Whether the file is a Git LFS pointer, as without git-lfs."""
    with path.open("rb") as file:
        return file.read(len(GIT_LFS)) == GIT_LFS


def check_file(path: Path, bytes_max: int | None = None) -> None:
    """Refuses a Git LFS pointer, and a file that is larger than the limit: DamagedFile."""
    if is_git_lfs_pointer(path):
        raise DamagedFile(f"{path.name} is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder")
    if bytes_max is not None and (size := path.stat().st_size) > bytes_max:
        raise DamagedFile(f"{path.name} has {size} bytes; the limit is {bytes_max}")
