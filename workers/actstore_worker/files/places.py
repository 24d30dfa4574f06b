"""Whether a file is inside a folder, and the hash of several files."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

_CHUNK_BYTES = 1 << 22


def is_inside(path: Path, folder: Path) -> bool:
    """Whether the path is inside, also after following every symbolic link. A link to itself is not."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # of a loop of links, in some versions of Python
        return False


def sha256_of(files: Iterable[Path]) -> str:
    """The hash of their bytes, one file after the other, in hexadecimal digits. Errors: OSError."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
