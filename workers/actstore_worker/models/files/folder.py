"""Checks the files of a model's folder before a library parses them: complete, within limits, and inside the folder.

References between files, such as from an index to its shards, may not leave the folder. An error about a file that is
damaged, or was never downloaded, names it and says what to do.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from actstore_worker.files.damage import DamagedFile, check_file
from actstore_worker.files.places import is_inside
from actstore_worker.files.safe_tensors import check_safetensors
from actstore_worker.files.strict_json import read_json
from actstore_worker.models.files.source import MODEL_CONFIGURATION, ModelSource
from actstore_worker.models.files.transformer_lens import WEIGHTS as TRANSFORMER_LENS_WEIGHTS
from actstore_worker.models.files.transformer_lens import is_transformer_lens

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
# Names of weight files in transformers. If the single file exists, transformers reads only that, whatever the index
# says.
_SHARDS = "model-*-of-*.safetensors"
# transformers applies an adapter to everything that it loads, if its library is installed; our hashes do not include
# it.
_ADAPTER = "adapter_config.json"
# The largest published ones are 0.1 and 4 MB; each is parsed in full.
CONFIGURATION_BYTES_MAX, INDEX_BYTES_MAX = 1 << 20, 16 << 20
# Element types of weights. Integers are quantized weights, which cannot be read without their scales.
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
# Rows of two matrices that are compared at a time.
_ROWS_COMPARED = 1024


def raw_configuration(folder: Path) -> dict[str, Any]:
    """Returns config.json as it is. Errors: OSError, DamagedFile."""
    return read_json(folder / MODEL_CONFIGURATION, CONFIGURATION_BYTES_MAX)


def transformer_lens_file(source: ModelSource) -> Path:
    """Returns the weight file of a model in TransformerLens's format. Errors: OSError, DamagedFile."""
    names = [name for name in TRANSFORMER_LENS_WEIGHTS if (source.folder / name).is_file()]
    if not names:
        raise DamagedFile(f"it has none of {', '.join(TRANSFORMER_LENS_WEIGHTS)}")
    path = _own_file(source, names[0])
    check_file(path)
    return path


def weight_files(source: ModelSource) -> list[Path]:
    """Returns the weight files, in order of name, after checking that each exists inside the model's folder.

    Errors: OSError, DamagedFile.
    """
    if is_transformer_lens(raw_configuration(source.folder)):
        return [transformer_lens_file(source)]
    if (source.folder / _ADAPTER).is_file():
        raise DamagedFile(
            f"{_ADAPTER} says that this is an adapter: merge it into the weights that it adapts, and save those"
        )
    if (source.folder / WEIGHTS).is_file():
        if shards := sorted(path.name for path in source.folder.glob(_SHARDS)):
            raise DamagedFile(
                f"it has both {WEIGHTS} and {shards[0]}, and it is unclear which one to load; remove the wrong one"
            )
        return [_own_file(source, WEIGHTS)]
    if not (source.folder / WEIGHTS_INDEX).is_file():
        raise DamagedFile(f"it has no {WEIGHTS}; actstore reads safetensors only")
    names = _weight_map(source).values()
    return [_own_file(source, name) for name in sorted(set(names))]


def tensors_in(path: Path) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Yields name, shape and element type of each tensor, named as in safetensors. Errors: OSError, DamagedFile."""
    check_file(path)
    check_safetensors(path)
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  it is no dictionary
                part = file.get_slice(name)
                yield name, tuple(part.get_shape()), part.get_dtype()
    except SafetensorError as error:
        message = (
            f"{path.name}, of {path.stat().st_size} bytes, is not a complete safetensors file: {error}; download it "
            "again"
        )
        raise DamagedFile(message) from error


def checked_tensors(source: ModelSource, is_spare: Callable[[str], bool]) -> dict[str, Path]:
    """Returns the tensors' names and files for a model in safetensors, after checking that each is in one file, the one
    that the index names, and has floats, unless the model does not use it.

    Errors: OSError, DamagedFile.
    """
    files, found = weight_files(source), dict[str, Path]()
    for path in files:
        for name, _, dtype in tensors_in(path):
            if name in found:
                raise DamagedFile(
                    f"{name} is in both {found[name].name} and {path.name}, and it is unclear which one to load"
                )
            if dtype not in _FLOATS and not is_spare(name):
                raise DamagedFile(f"{name} in {path.name} has dtype {dtype}: quantized weights are not supported")
            found[name] = path
    if files[0].name != WEIGHTS:
        _check_index(_weight_map(source), {name: path.name for name, path in found.items()})
    return found


def check_tied(files: Mapping[str, Path], one: str, other: str) -> None:
    """Checks that two tensors, by their names in the files, have the same values. Errors: DamagedFile."""
    with safe_open(files[one], framework="pt") as first, safe_open(files[other], framework="pt") as second:
        rows, others = first.get_slice(one), second.get_slice(other)
        same = rows.get_shape() == others.get_shape() and all(
            torch.equal(rows[start : start + _ROWS_COMPARED].float(), others[start : start + _ROWS_COMPARED].float())
            for start in range(0, rows.get_shape()[0], _ROWS_COMPARED)
        )
    if not same:
        raise DamagedFile(
            f"its config.json says tie_word_embeddings, but {one} and {other} have different values: if both are "
            "right, "
            "set tie_word_embeddings to false; else remove the wrong one"
        )


def _check_index(said: dict[str, str], found: dict[str, str]) -> None:
    for name in sorted(said.keys() | found.keys()):
        if said.get(name) != found.get(name):
            raise DamagedFile(
                f"{WEIGHTS_INDEX} says that {name} is in {said.get(name, 'no file')}, but it is in "
                f"{found.get(name, 'none of the files')}: download the index and the files again"
            )


def _weight_map(source: ModelSource) -> dict[str, str]:
    names = read_json(source.folder / WEIGHTS_INDEX, INDEX_BYTES_MAX).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise DamagedFile(f"{WEIGHTS_INDEX} has no weight_map of tensors to the files that hold them")
    return names


def _own_file(source: ModelSource, name: str) -> Path:
    """Errors: DamagedFile for a name outside the folder, also through a link, and for a file that is missing."""
    path = source.folder / name
    if Path(name).name != name or not is_inside(path, source.root):
        raise DamagedFile(f"its index refers to weights in {name!r}, which is outside its folder")
    if not path.is_file():
        raise DamagedFile(f"{name}, which {WEIGHTS_INDEX} names, is not there: download it")
    return path
