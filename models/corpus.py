"""The text behind the bundled model: the source files of Python's standard library.

It lists the files and which of them are held out from training. It does not tokenize.
"""

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

HELD_OUT_ONE_IN = 20


def source_files() -> list[Path]:
    """Every readable UTF-8 `.py` file of the running interpreter's standard library, sorted."""
    root = library_root()
    return [path for path in sorted(root.rglob("*.py")) if _belongs(path.relative_to(root))]


def library_root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def is_held_out(path: Path) -> bool:
    """One file in twenty, by a hash of its path below the library, so that the split is the same on every machine."""
    name = path.relative_to(library_root()).as_posix()
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % HELD_OUT_ONE_IN == 0


def texts(*, held_out: bool) -> Iterator[str]:
    for path in source_files():
        if is_held_out(path) is held_out:
            text = _read(path)
            if text:
                yield text


def _belongs(path: Path) -> bool:
    return not {"site-packages", "__pycache__"} & set(path.parts)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:  # the library contains a few files in other encodings, as test data
        return ""
