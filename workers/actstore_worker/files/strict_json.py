"""Reads JSON files strictly: anything that two parsers could read differently is refused."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from actstore_worker.files.damage import DamagedFile, check_file

# Nesting depth. Python's parser fails at some thousands, and libraries that walk the result fail earlier.
JSON_DEPTH_MAX = 32
# Values take up to 20 times as much memory as in the file. The largest published tokenizers have some 3 million.
_VALUES_MAX = 10_000_000
# Before each value but the first there is one of these.
_MARKS = (b",", b"[", b"{")


def read_json(path: Path, bytes_max: int) -> dict[str, Any]:
    """Reads a JSON object, and refuses anything that two parsers could read differently.

    Errors: OSError, DamagedFile.
    """
    check_file(path, bytes_max)
    data = path.read_bytes()
    if (values := count_values(data)) > _VALUES_MAX:
        raise DamagedFile(f"{path.name} has about {values} values; the limit is {_VALUES_MAX}")
    try:
        found = json.loads(data, object_pairs_hook=said_once, parse_constant=_no_number, parse_float=_finite)
    except RecursionError as error:
        raise DamagedFile(f"{path.name} is nested more than {JSON_DEPTH_MAX} levels deep") from error
    except ValueError as error:
        raise DamagedFile(f"{path.name} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise DamagedFile(f"{path.name} holds {type(found).__name__}, not a JSON object")
    if not is_shallow(found, JSON_DEPTH_MAX):
        raise DamagedFile(f"{path.name} is nested more than {JSON_DEPTH_MAX} levels deep")
    return found


def count_values(data: bytes) -> int:
    """About how many values JSON has, without parsing it. Marks in its texts count, too."""
    return sum(map(data.count, _MARKS))


def said_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For a JSON parser: an object without repeated keys. Errors: ValueError."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"it has the key {name!r} more than once")
        found[name] = value
    return found


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _finite(text: str) -> float:
    if not math.isfinite(found := float(text)):
        raise ValueError(f"{text} is too large for a float")
    return found


def is_shallow(value: object, depth: int) -> bool:
    """Whether tables and lists are nested at most this deep."""
    if not isinstance(value, dict | list):
        return True
    parts = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(is_shallow(part, depth - 1) for part in parts)
