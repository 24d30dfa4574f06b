"""Finds the files of a dataset's name: below the dataset folders, in the dataset stores, or on the hub.

Names come from callers, so none of them may lead outside its folder.
"""

import json
import lzma
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from actstore_storage.errors import BadRequest, StoreError
from actstore_worker.datasets.files import Dataset, DatasetFile, FileStore, not_found, unreadable
from actstore_worker.datasets.formats import (
    JSON,
    ROWS_OF_JSON,
    SAVED_SPLITS,
    SAVED_STATE,
    choose_files,
    kind_of_named,
)
from actstore_worker.datasets.hub import HUB_SCHEME, find_on_hub
from actstore_worker.datasets.limits import DatasetLimits
from actstore_worker.files.places import is_inside
from actstore_worker.files.stamps import stamp_of

# The beginning of a `.json` that is read to see whether it has rows, and the most that is read of a saved dataset's own
# metadata.
_LOOK_BYTES, _RECORD_BYTES_MAX = 1 << 16, 1 << 24
# Of file systems.
_PART_BYTES_MAX = 255
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class DatasetPlaces:
    """Where datasets are searched, in this order: folders, stores, and the hub if it is allowed. `limits`: of what is
    found.
    """

    folders: tuple[Path, ...] = ()
    stores: tuple[FileStore, ...] = ()
    allow_hub: bool = False
    limits: DatasetLimits = field(default_factory=DatasetLimits)

    def find(self, name: str) -> Dataset:
        """Returns the dataset with this name.

        Errors: NotThere DATASET_NOT_FOUND; BadRequest NAME_INVALID for `..`, DATASET_EMPTY, DATASET_UNREADABLE.
        """
        if name.startswith(HUB_SCHEME):
            return find_on_hub(name, self.allow_hub)
        parts = _parts(name)
        for folder in self.folders:
            path = folder.joinpath(*parts)
            if path.exists() and is_inside(path, folder):
                return _of_path(name, path, folder)
        for store in self.stores:
            if found := _in_store("/".join(parts), store):
                return found
        there = sorted({path.name for folder in self.folders for path in folder.glob("*")})
        raise not_found(name, f"the dataset folders have: {', '.join(there) or 'nothing'}", there)


def _of_path(name: str, path: Path, root: Path) -> Dataset:
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        found = _of_folder(name, list(_below(path)), lambda inner: _local_opener(path / inner, inner, root))
    else:
        found = _of_file(name, _local_opener(path, path.name, root))
    stamped = (replace(file, stamp=partial(stamp_of, [folder / file.name])) for file in found.files)
    return replace(found, files=tuple(stamped))


def _in_store(name: str, store: FileStore) -> Dataset | None:
    def opener(key: str) -> _Opener:
        return lambda: _opened(store, key)

    if store.exists(name):
        return _of_file(name, opener(name), store.store_error)
    keys = store.keys(name)
    for key in keys:
        _check_parts(key)
    inner = [key.removeprefix(f"{name}/") for key in keys]
    return _of_folder(name, inner, lambda one: opener(f"{name}/{one}"), store.store_error) if keys else None


def _opened(store: FileStore, key: str) -> pa.NativeFile:
    try:
        return store.open(key)
    except KeyError:
        raise unreadable(key, "it is gone", "a dataset that is not changed while it is read") from None


_Opener = Callable[[], pa.NativeFile]
_Failing = Callable[[OSError], StoreError | None] | None


def _of_file(name: str, opener: _Opener, failing: _Failing = None) -> Dataset:
    short = PurePosixPath(name).name
    file = DatasetFile(short, kind_of_named(short), opener, failing)
    if file.kind.rows == JSON and not _has_rows(file):
        raise unreadable(short, "it holds one JSON value instead of rows", ROWS_OF_JSON)
    return Dataset(name, (file,))


def _of_folder(name: str, names: Sequence[str], opener: Callable[[str], _Opener], failing: _Failing = None) -> Dataset:
    """The files that `datasets` saved there; or every table below; or, without any, every text file."""

    def file(inner: str) -> DatasetFile:
        return DatasetFile(inner, kind_of_named(inner), opener(inner), failing)

    _check_no_splits(name, names, file)
    if SAVED_STATE in names and (saved := _saved_files(file(SAVED_STATE), names)):
        return Dataset(name, tuple(map(file, saved)), not_read=tuple(sorted(set(names) - set(saved))))
    chosen = choose_files(name, names, lambda inner: _has_rows(file(inner)))
    return Dataset(name, tuple(map(file, chosen.read)), not_read=chosen.not_read)


def _check_no_splits(name: str, names: Sequence[str], file: Callable[[str], DatasetFile]) -> None:
    """A saved DatasetDict contains several datasets, and its name does not say which one is meant."""
    for inner in names:
        if PurePosixPath(inner).name == SAVED_SPLITS:
            splits = _record(file(inner)).get("splits") or []
            folder = (PurePosixPath(name) / inner).parent
            raise BadRequest(
                f"{folder} is a saved DatasetDict; name one of its splits: "
                f"{', '.join(map(str, splits)) or 'of its folders'}",
                reason="DATASET_UNREADABLE",
                field="dataset",
                value=name,
                allowed=[f"{folder}/{split}" for split in splits],
            )


def _saved_files(state: DatasetFile, names: Sequence[str]) -> list[str]:
    """The files of a dataset that `datasets` saved, in its order; none if another program wrote the metadata."""
    record = _record(state)
    listed = record.get("_data_files")
    if not isinstance(listed, list):
        return []
    found = [one.get("filename") if isinstance(one, dict) else None for one in listed]
    for one in found:
        if one not in names:
            raise unreadable(state.name, f"it refers to {one!r}, which is missing", "a folder of Dataset.save_to_disk")
    if record.get("_indices_data_files"):
        raise unreadable(
            state.name,
            "its rows are selected by a table of indices, which is not read",
            "a dataset that was saved again after the selection",
        )
    return [str(one) for one in found]


def _record(file: DatasetFile) -> Mapping[str, Any]:
    try:
        with file.open_content() as source:
            found = json.loads(source.read(_RECORD_BYTES_MAX))
    except (OSError, ValueError, RecursionError) as error:
        raise file.failure(
            error, "it was not written by the `datasets` library", "a folder written by the `datasets` library"
        ) from error
    return found if isinstance(found, dict) else {}


def _has_rows(file: DatasetFile) -> bool:
    """Whether a `.json` is an array of objects, or has an object on its first line, judging by its beginning."""
    try:
        with file.open_content() as source:
            head = source.read(_LOOK_BYTES)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise file.failure(error, "it is not whole", "a whole file") from error
    begins = head.removeprefix(_BOM).lstrip()
    if begins.startswith(b"["):
        return begins[1:].lstrip()[:1] in (b"{", b"]")
    line, ended, _ = begins.partition(b"\n")
    if not ended and len(head) == _LOOK_BYTES:
        return line.startswith(b"{")  # a long first line
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _below(path: Path) -> Iterator[str]:
    """Returns every file, by its path in the folder; also entries that are not regular files, which are refused if they
    would be read.

    Errors: BadRequest for a link to a folder, and for a folder that cannot be read.
    """

    def fail(error: OSError) -> None:
        raise unreadable(path.name, str(error), "folders that the workers may read")

    for folder, folders, files in os.walk(path, onerror=fail):
        for name in folders:
            if Path(folder, name).is_symlink() and not name.startswith("."):
                raise unreadable(name, "it is a symbolic link to a folder; these are not followed", "the folder itself")
        for name in files:
            yield Path(folder, name).relative_to(path).as_posix()


def _local_opener(path: Path, name: str, root: Path) -> _Opener:
    """Errors: BadRequest for a link that leaves the dataset folders, and for anything that is not a regular file."""
    if not is_inside(path, root):
        raise unreadable(name, "it is a symbolic link to a place outside the dataset folders", "a file inside")
    if not path.is_file():
        raise unreadable(name, "it is not a regular file", "a file")
    return lambda: pa.OSFile(str(path), "rb")


def _parts(name: str) -> tuple[str, ...]:
    parts = PurePosixPath(name).parts
    for part in parts:
        if len(part.encode()) > _PART_BYTES_MAX:
            raise BadRequest(
                f"dataset {name!r} is not a valid name: a part of it has {len(part.encode())} bytes",
                reason="NAME_INVALID",
                field="dataset",
                value=name,
                allowed=f"at most {_PART_BYTES_MAX} bytes between two slashes",
            )
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        raise BadRequest(
            f"dataset {name!r} is not a valid name: a name is a path below a dataset folder, without '..'",
            reason="NAME_INVALID",
            field="dataset",
            value=name,
            allowed="a relative path without '..'",
        )
    return parts


def _check_parts(key: str) -> None:
    """S3 allows names that no folder can have, and that its clients and servers interpret differently."""
    if any(part in ("", ".", "..") for part in key.split("/")) or "\0" in key:
        raise unreadable(key, "a part of its name is empty, '.' or '..'", "names that are valid as file names")
