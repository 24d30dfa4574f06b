"""Files on this machine: whether one lies where its name says, and the hash of several."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

_CHUNK_BYTES = 1 << 22


def is_inside(path: Path, folder: Path) -> bool:
    """Also after every symbolic link on the way is followed."""
    return path.resolve().is_relative_to(folder.resolve())


def sha256_of(files: Iterable[Path]) -> str:
    """Over their bytes, one file after the other, in hexadecimal digits. Errors: OSError."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
