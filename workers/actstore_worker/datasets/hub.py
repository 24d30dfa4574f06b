"""Datasets of the Hugging Face hub, through the `datasets` library."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from actstore_storage.errors import ActstoreError, BadRequest
from actstore_worker.datasets.files import Dataset, not_found

HUB_SCHEME = "hf:"
_OWNER_AND_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_CONFIG = re.compile(r"\w[\w.+ -]{0,127}")
_SPLIT = re.compile(r"[\w.+-]{1,128}(\[[\d%]*\])?", re.ASCII)
_HUB_NAMES = "hf:OWNER/NAME:SPLIT or hf:OWNER/NAME:CONFIG:SPLIT"


def find_on_hub(name: str, allow_hub: bool) -> Dataset:
    """Returns the dataset with the name `hf:OWNER/NAME[:CONFIG]:SPLIT`. Errors: NotThere DATASET_NOT_FOUND;
    BadRequest.
    """
    repository, config, split = _hub_parts(name)
    if not allow_hub:
        raise not_found(name, "these workers may not use the Hugging Face hub", "names below the dataset folders")
    if os.path.lexists(repository):  # the library would use that
        where = (
            f"the workers run in a folder that contains {repository}, which the library would read instead of the hub"
        )
        raise not_found(name, where, "workers started in another directory")
    datasets = _library(name)
    try:
        builder = datasets.load_dataset_builder(repository, config)
        _check_hub_files(name, repository, builder.config.data_files or {})
        builder.download_and_prepare()
        return Dataset(name, table=builder.as_dataset(split=split))
    except ActstoreError:
        raise
    except Exception as error:  # a name or the network can raise anything
        raise not_found(name, f"the hub returned an error for that name: {error}", None) from error


def _hub_parts(name: str) -> tuple[str, str | None, str]:
    """Returns repository, configuration and split. Other dataset names of the library (paths, URLs, its own builders
    such as `text`) are refused.
    """
    parts = name.removeprefix(HUB_SCHEME).split(":")
    repository, config, split = parts[0], parts[1] if len(parts) == 3 else None, parts[-1]
    named = len(parts) in (2, 3) and _OWNER_AND_NAME.fullmatch(repository) and ".." not in repository
    if named and (config is None or (_CONFIG.fullmatch(config) and ".." not in config)) and _SPLIT.fullmatch(split):
        return repository, config, split
    raise BadRequest(
        f"{name!r} does not name a dataset of the hub and a split of it",
        reason="NAME_INVALID",
        field="dataset",
        value=name,
        allowed=_HUB_NAMES,
    )


def _check_hub_files(name: str, repository: str, data_files: Mapping[str, Sequence[str]]) -> None:
    """A repository's own metadata can name files anywhere, even on the workers' disks."""
    for file in (file for files in data_files.values() for file in files):
        place = str(file)  # "::" joins an archive's name to a file in it, and chains file systems.
        own = place.startswith((f"hf://datasets/{repository}@", f"hf://datasets/{repository}/"))
        if not own or "::" in place or "/../" in place:
            raise BadRequest(
                f"dataset {name!r} names a file outside its repository: {file}",
                reason="DATASET_UNREADABLE",
                field="dataset",
                value=name,
                allowed=f"files of {repository}",
            )


def _library(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise BadRequest(
            f"dataset {name!r} needs the Hugging Face `datasets` library, which these workers do not have",
            reason="DATASET_UNREADABLE",
            field="dataset",
            value=name,
            allowed="a dataset of files; or `pip install datasets` on the workers",
        ) from error
    return datasets
