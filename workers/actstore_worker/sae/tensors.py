"""Reads the files of SAEs: only numbers, never code; errors name the file."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from actstore_worker.files.damage import DamagedFile, check_file
from actstore_worker.files.safe_tensors import load_arrays, load_pickled, load_safetensors
from actstore_worker.files.strict_json import JSON_DEPTH_MAX, is_shallow, said_once
from actstore_worker.sae.refusals import unsupported

_READERS: Mapping[str, Callable[[Path], Any]] = {".npz": load_arrays, ".pt": load_pickled}
# The largest published ones have some kilobytes.
_JSON_BYTES_MAX = 1 << 20


def read_json(path: Path, name: str) -> dict[str, Any]:
    """Reads a JSON object without repeated keys. Errors: BadRequest SAE_UNSUPPORTED if it is not one."""
    try:
        check_file(path, _JSON_BYTES_MAX)
        found = json.loads(path.read_text(), object_pairs_hook=said_once)
        if not isinstance(found, dict):
            raise ValueError("it is not an object")
        if not is_shallow(found, JSON_DEPTH_MAX):
            raise DamagedFile(f"it is nested more than {JSON_DEPTH_MAX} levels deep")
    except (OSError, ValueError, RecursionError) as error:
        raise unsupported(name, path.name, None, f"it cannot be read: {error!r}", "a JSON object") from error
    return found


def read_tensors(path: Path, name: str) -> dict[str, Any]:
    """Reads tensors by their names in the file; from a `.pt` file also its numbers, strings and nested tables.

    Errors: BadRequest SAE_UNSUPPORTED for a truncated file, or one that would run code.
    """
    reader = _READERS.get(path.suffix, load_safetensors)
    try:
        check_file(path)
        found = reader(path)
        if not isinstance(found, dict):
            raise ValueError("it is not a dictionary of tensors")
    except Exception as error:  # broken files can make NumPy, torch and safetensors raise anything
        raise unsupported(name, path.name, None, f"it cannot be read: {error}", "tensors, without code") from error
    return found


def flag(config: Mapping[str, Any], option: str, usual: bool, name: str) -> bool:
    """Reads a boolean option.

    Errors: BadRequest SAE_UNSUPPORTED for null, which Python treats as false, and for strings, which it treats as true.
    """
    found = config.get(option, usual)
    if not isinstance(found, bool):
        raise unsupported(name, option, repr(found), "it must be true or false", allowed=(True, False))
    return found


def put_once(found: dict[str, Any], key: str, value: Any, name: str) -> None:
    """Adds a value under a name. Errors: BadRequest SAE_UNSUPPORTED if the file has it under two names."""
    if key in found:
        raise unsupported(name, key, sorted(found), "the file has it under two names with different values")
    found[key] = value


def turned(found: Any) -> Any:
    """A transposed matrix; anything else is returned unchanged and refused later."""
    return found.T if isinstance(found, Tensor) and found.ndim == 2 else found
