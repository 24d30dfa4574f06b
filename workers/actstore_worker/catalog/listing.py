"""Lists what a capture can use, as it is in the workers' folders and stores. Nothing is loaded.

It lists names only, and never paths on the workers' machines.
"""

import os
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from actstore_api.records.capture import FoundModel, ListSourcesAnswer
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.formats import kind_of
from actstore_worker.datasets.places import DatasetPlaces
from actstore_worker.files.damage import DamagedFile
from actstore_worker.files.places import is_inside
from actstore_worker.models.families import FAMILIES
from actstore_worker.models.families.attention_only import ATTENTION_ONLY
from actstore_worker.models.files.folder import raw_configuration
from actstore_worker.models.files.transformer_lens import WEIGHTS, is_transformer_lens

LISTED_MAX = 1000
# Files of a folder that are checked for a document.
_LOOKED_AT_MAX = 1000
_WEIGHTS = ("model*.safetensors", *WEIGHTS)

Name = TypeVar("Name")


def find_sources(catalog: ModelCatalog, places: DatasetPlaces) -> ListSourcesAnswer:
    """Lists at most LISTED_MAX of each kind, in order of name."""
    models = [
        FoundModel(source.name, source.revision, family)
        for source in catalog.models()
        if (family := _family(source.folder))
    ]
    saes, datasets = catalog.saes(), dataset_names(places)
    return ListSourcesAnswer(
        models=_first(models),
        saes=_first(saes),
        datasets=_first(datasets),
        hub_allowed=catalog.allow_hub,
        truncated=max(len(models), len(saes), len(datasets)) > LISTED_MAX,
    )


def dataset_names(places: DatasetPlaces) -> list[str]:
    """Names at the top of the folders and stores that contain documents, in order. A folder is searched until a
    document is found, up to a limit; a store's folder is not searched.
    """
    found = {path.name for folder in places.folders for path in _visible(folder) if _holds_documents(path, folder)}
    for store in places.stores:
        objects, folders = store.top()
        found |= {*folders, *(name for name in objects if kind_of(name) is not None)}
    return sorted(found)


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*") if not path.name.startswith(".")]


def _holds_documents(path: Path, root: Path) -> bool:
    if not is_inside(path, root):
        return False
    if path.is_file():
        return kind_of(path.name) is not None and path.stat().st_size > 0
    # Folders that cannot be read are skipped.
    files = (name for _, _, names in os.walk(path) for name in names)
    return any(kind_of(name) is not None for name in islice(files, _LOOKED_AT_MAX))


def _first(names: list[Name]) -> tuple[Name, ...]:
    return tuple(names[:LISTED_MAX])


def _family(folder: Path) -> str:
    """The family of a folder with a supported configuration and weights; else empty."""
    if not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        return ""
    config = _configuration(folder)
    family = ATTENTION_ONLY.name if is_transformer_lens(config) else config.get("model_type")
    return family if isinstance(family, str) and family in FAMILIES else ""


def _configuration(folder: Path) -> dict[str, Any]:
    """The configuration; empty if it is not valid."""
    try:
        return raw_configuration(folder)
    except (OSError, DamagedFile):
        return {}
