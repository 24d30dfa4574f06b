"""Reads tensors from files that may be made to harm: no code is run, and what a file says of itself is checked before
memory is spent on it.
"""

import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from actstore_worker.files.damage import DamagedFile

# A header has some 100 bytes a tensor, and models and SAEs have hundreds of tensors. The parser takes 14 times as much.
HEADER_BYTES_MAX = 8 << 20
# A pickle has some 200 bytes a tensor, and its tables are few and flat.
_PICKLE_BYTES_MAX, _PARTS_MAX, _DEPTH_MAX = 1 << 20, 10_000, 8
# Arrays that become larger together than this may become so many times larger than they are stored.
_EXPANDED_BYTES, _EXPANSION = 64 << 20, 20
_LENGTH_BYTES = 8
# What a pickle of tensors names. torch would also make objects of any size that a pickle asks for.
_NAMES = frozenset({
    "collections OrderedDict", "torch Size", "torch._utils _rebuild_parameter", "torch._utils _rebuild_tensor_v2",
})  # fmt: skip


def check_safetensors(path: Path) -> None:
    """Refuses a file whose header would take much memory to parse: DamagedFile. Errors: OSError."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if size > HEADER_BYTES_MAX:
        raise DamagedFile(f"{path.name} says that its header has {size} bytes; the limit is {HEADER_BYTES_MAX}")


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Reads a file, and does not map it into memory: overwriting it must not change what was loaded.

    Errors: OSError, DamagedFile, and what safetensors raises for a damaged file.
    """
    check_safetensors(path)
    return load_file(path, backend="pread")


def load_arrays(path: Path) -> dict[str, Tensor]:
    """Reads an `.npz`. Errors: DamagedFile for arrays that become far larger than the file; what NumPy raises."""
    with zipfile.ZipFile(path) as archive:
        if (expanded := _expanded(archive)) > max(_EXPANDED_BYTES, _EXPANSION * (stored := path.stat().st_size)):
            raise DamagedFile(
                f"{path.name} has {stored} bytes that become {expanded}, more than {_EXPANSION} times as many"
            )
    with np.load(path, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def load_pickled(path: Path) -> Any:
    """Reads what `torch.save` wrote: tensors, numbers and strings, in tables.

    Errors: DamagedFile for a file of torch before 1.6, one that is compressed, and one that names or holds anything
    else, or a tensor that is larger than its numbers in the file; what torch raises for a damaged file.
    """
    if not zipfile.is_zipfile(path):
        raise DamagedFile(
            f"{path.name} is not in the format of torch 1.6 and later: load it with torch, and save it again"
        )
    with zipfile.ZipFile(path) as archive:
        if (expanded := _expanded(archive)) > (stored := path.stat().st_size):
            raise DamagedFile(f"{path.name} has {stored} bytes that become {expanded}; torch.save does not compress")
        for part in archive.infolist():
            if part.filename.endswith(".pkl"):
                _check_pickle(path, archive, part)
    found = torch.load(path, map_location="cpu", weights_only=True)
    _check_parts(path, found)
    return found


def _expanded(archive: zipfile.ZipFile) -> int:
    return sum(part.file_size for part in archive.infolist())


def _check_pickle(path: Path, archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> None:
    """Refuses what would run or make anything but tensors, and tuples in tuples that are said again and again: each
    level doubles the time of comparing them, which a table does with its keys.
    """
    if part.file_size > _PICKLE_BYTES_MAX:
        raise DamagedFile(f"{path.name} has a table of {part.file_size} bytes; the limit is {_PICKLE_BYTES_MAX}")
    tuples, before = set[object](), ""
    for operation, argument, _ in pickletools.genops(archive.read(part)):
        if operation.name == "GLOBAL" and not _is_of_tensors(str(argument)):
            raise DamagedFile(f"{path.name} names {str(argument)[:100]!r}, which tensors do not need")
        if operation.name.endswith("PUT"):
            (tuples.add if before.startswith("TUPLE") else tuples.discard)(argument)
        if operation.name.endswith("GET") and argument in tuples:
            raise DamagedFile(f"{path.name} has the same tuple in several places, which tensors do not need")
        before = operation.name


def _is_of_tensors(name: str) -> bool:
    module, _, own = name.partition(" ")
    return name in _NAMES or (module == "torch" and own.endswith("Storage"))


def _check_parts(path: Path, found: object) -> None:
    """A pickle can say again and again what it has said once, so that few bytes are a huge table, or a huge tensor."""
    for count, part in enumerate(_parts(found, _DEPTH_MAX)):
        if count == _PARTS_MAX or part is _TOO_DEEP:
            raise DamagedFile(f"{path.name} has more than {_PARTS_MAX} parts, or is nested more than {_DEPTH_MAX} deep")
        if isinstance(part, Tensor):
            _check_tensor(path, part)


_TOO_DEEP = object()


def _parts(found: object, depth: int) -> Iterator[object]:
    if not isinstance(found, dict | list | tuple | set):
        yield found
    elif not depth:
        yield _TOO_DEEP
    else:
        inner = [*found, *found.values()] if isinstance(found, dict) else found
        for part in inner:
            yield from _parts(part, depth - 1)


def _check_tensor(path: Path, tensor: Tensor) -> None:
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        raise DamagedFile(f"{path.name} has a tensor that is {tensor.layout} on {tensor.device}, not a plain one")
    if tensor.nbytes > (held := tensor.untyped_storage().nbytes()):
        raise DamagedFile(f"{path.name} has a tensor of {tensor.nbytes} bytes, of which it holds {held}")
