"""Which files a dataset's name stands for: below the dataset folders, in the dataset stores, or on the hub.

Names come from outside, so none of them may lead out of its folder.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from actstore_storage.bucket import Bucket, is_key
from actstore_storage.errors import BadRequest, NotThere

TABLE_SUFFIXES = (".jsonl", ".parquet")
# What counts as text in a folder. A file that is named by itself may have any suffix.
TEXT_SUFFIXES = frozenset(
    {
        *(".txt", ".md", ".rst", ".tex", ".html", ".xml", ".csv", ".json", ".yaml", ".yml", ".toml"),
        *(".py", ".c", ".h", ".cpp", ".go", ".java", ".js", ".ts", ".rs", ".sh", ".sql", ".css"),
    }
)
HUB_SCHEME = "hf:"
# What `datasets` leaves in a folder that it saved.
_SAVED_STATE = "state.json"
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class DatasetFile:
    """`name` is for messages; `open` gives its bytes from the start."""

    name: str
    open: Callable[[], BinaryIO]

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix


@dataclass(frozen=True)
class Dataset:
    """Files in order, or else a table of the `datasets` library."""

    name: str
    files: tuple[DatasetFile, ...] = ()
    table: Any = None


@dataclass(frozen=True)
class DatasetPlaces:
    """Where datasets are looked for, in this order: folders, stores, and the hub where it is allowed."""

    folders: tuple[Path, ...] = ()
    stores: tuple[Bucket, ...] = ()
    allow_hub: bool = False

    def find(self, name: str) -> Dataset:
        """Errors: NotThere DATASET_NOT_FOUND; BadRequest NAME_INVALID for `..`, DATASET_EMPTY, DATASET_UNREADABLE."""
        if name.startswith(HUB_SCHEME):
            return _of_hub(name, self.allow_hub)
        parts = _parts(name)
        for folder in self.folders:
            path = folder.joinpath(*parts)
            if path.exists() and _is_inside(path, folder):
                return _of_folder(name, path)
        if is_key(name):
            for store in self.stores:
                if found := _in_store(name, store):
                    return found
        there = sorted({path.name for folder in self.folders for path in folder.iterdir()})
        raise _not_found(name, f"the dataset folders have: {', '.join(there) or 'nothing'}", there)


def _of_folder(name: str, path: Path) -> Dataset:
    """The file itself; a table that `datasets` saved; every table below; or, without any, every text file."""
    if path.is_file():
        return Dataset(name, (_local_file(path, path.name),))
    if (path / _SAVED_STATE).is_file():
        return Dataset(name, table=_saved_table(name, path))
    below = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    files = []
    for relative in _readable(path.name, sorted(below)):
        if not _is_inside(below[relative], path):
            raise unreadable(below[relative].name, "it is a symbolic link that leaves the dataset", "a file inside")
        files.append(_local_file(below[relative], below[relative].name))
    return Dataset(name, tuple(files))


def _in_store(name: str, store: Bucket) -> Dataset | None:
    keys = [name] if store.exists(name) else store.keys(name)
    if not keys:
        return None
    names = keys if keys == [name] else _readable(name, keys)
    return Dataset(name, tuple(DatasetFile(key, _store_opener(store, key)) for key in names))


def _store_opener(store: Bucket, key: str) -> Callable[[], BinaryIO]:
    return lambda: io.BufferedReader(store.open(key), _READ_BYTES)


def _local_file(path: Path, name: str) -> DatasetFile:
    return DatasetFile(name, lambda: path.open("rb"))


def _readable(name: str, found: Sequence[str]) -> Sequence[str]:
    tables = [file for file in found if file.endswith(TABLE_SUFFIXES)]
    texts = tables or [file for file in found if PurePosixPath(file).suffix in TEXT_SUFFIXES]
    if not texts:
        raise BadRequest(
            f"dataset folder {name} has no file that is text",
            reason="DATASET_EMPTY",
            field="dataset",
            value=name,
            allowed=[*TABLE_SUFFIXES, *sorted(TEXT_SUFFIXES)],
        )
    return texts


def _saved_table(name: str, path: Path) -> Any:
    datasets = _library(name)
    try:
        return datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise unreadable(name, f"`datasets` cannot load it: {error}", "a folder of Dataset.save_to_disk") from error


def _of_hub(name: str, allow_hub: bool) -> Dataset:
    """`hf:OWNER/NAME[:CONFIG]:SPLIT`."""
    parts = name.removeprefix(HUB_SCHEME).split(":")
    if len(parts) not in (2, 3) or not all(parts):
        allowed = "hf:OWNER/NAME:SPLIT or hf:OWNER/NAME:CONFIG:SPLIT"
        raise BadRequest(
            f"{name!r} does not name a dataset of the hub and a split of it",
            reason="NAME_INVALID",
            field="dataset",
            value=name,
            allowed=allowed,
        )
    if not allow_hub:
        raise _not_found(name, "these workers do not ask the hub", "names below the dataset folders")
    datasets = _library(name)
    config = parts[1] if len(parts) == 3 else None
    try:
        return Dataset(name, table=datasets.load_dataset(parts[0], config, split=parts[-1]))
    except Exception as error:  # whatever a name or a network makes of it
        raise _not_found(name, f"the hub gave nothing under that name: {error}", None) from error


def _library(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise BadRequest(
            f"dataset {name!r} needs the Hugging Face `datasets` library, which these workers do not have",
            reason="DATASET_UNREADABLE",
            field="dataset",
            value=name,
            allowed="JSONL, Parquet or text; or `pip install datasets` on the workers",
        ) from error
    return datasets


def _parts(name: str) -> tuple[str, ...]:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        raise BadRequest(
            f"dataset {name!r} is not a name: it is a path below a dataset folder, without '..'",
            reason="NAME_INVALID",
            field="dataset",
            value=name,
            allowed="a relative path without '..'",
        )
    return parts


def _is_inside(path: Path, folder: Path) -> bool:
    """Also after every symbolic link on the way is followed."""
    return path.resolve().is_relative_to(folder.resolve())


def _not_found(name: str, why: str, allowed: object) -> NotThere:
    return NotThere(
        f"no dataset {name!r}; {why}", reason="DATASET_NOT_FOUND", field="dataset", value=name, allowed=allowed
    )


def unreadable(name: str, why: str, allowed: str, offset: int | None = None) -> BadRequest:
    return BadRequest(
        f"{name} cannot be read: {why}",
        reason="DATASET_UNREADABLE",
        field="dataset",
        value=name if offset is None else f"{name} at byte {offset}",
        allowed=allowed,
    )
