"""Reads the files of SAEs: numbers only, never code, and whatever is wrong with a file is said by its name."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from actstore_worker.files.damage import check_file
from actstore_worker.files.strict_json import said_once
from actstore_worker.sae.refusals import unsupported


def read_json(path: Path, name: str) -> dict[str, Any]:
    """A JSON object without a key that is there twice. Errors: BadRequest SAE_UNSUPPORTED where it is none."""
    try:
        check_file(path)
        found = json.loads(path.read_text(), object_pairs_hook=said_once)
        if not isinstance(found, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise unsupported(name, path.name, None, f"it cannot be read: {error!r}", "a JSON object") from error
    return found


def read_tensors(path: Path, name: str) -> dict[str, Any]:
    """Tensors by their names in the file; of a `.pt` file also what else it has: numbers, words, nested tables.

    Errors: BadRequest SAE_UNSUPPORTED for a file that is cut short, or that would run code to be read.
    """
    reader: Callable[[Path], Any] = {".npz": _npz, ".pt": _pt}.get(path.suffix, _safetensors)
    try:
        check_file(path)
        found = reader(path)
        if not isinstance(found, dict):
            raise ValueError("it is not a dictionary of tensors")
    except Exception as error:  # whatever a broken file makes of NumPy, torch and safetensors
        raise unsupported(name, path.name, None, f"it cannot be read: {error}", "tensors, without code") from error
    return found


def flag(config: Mapping[str, Any], option: str, usual: bool, name: str) -> bool:
    """An option that is on or off.

    Errors: BadRequest SAE_UNSUPPORTED for null, which Python takes for off, and for words, which it takes for on.
    """
    found = config.get(option, usual)
    if not isinstance(found, bool):
        raise unsupported(name, option, repr(found), "it must be true or false", allowed=(True, False))
    return found


def put_once(found: dict[str, Any], key: str, value: Any, name: str) -> None:
    """Adds what a file has under a name. Errors: BadRequest SAE_UNSUPPORTED where it has it under two."""
    if key in found:
        raise unsupported(name, key, sorted(found), "the file has it under two names with different values")
    found[key] = value


def turned(found: Any) -> Any:
    """A matrix with its axes exchanged; what is none is left to be refused."""
    return found.T if isinstance(found, Tensor) and found.ndim == 2 else found


# Read, not mapped: a file that is overwritten must not change an SAE that is loaded.
_safetensors = partial(load_file, backend="pread")


def _npz(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def _pt(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)
