"""Downloads models and SAEs from the hub into its cache on this machine, without reading them."""

from contextlib import suppress
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from actstore_storage.errors import NotThere
from actstore_worker.models.files.source import MODEL_CONFIGURATION, ModelSource
from actstore_worker.sae.files import fetched_names, find_saes

# For models only safetensors, and no code.
_MODEL_FILES = (
    MODEL_CONFIGURATION,
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def download_model(name: str, revision: str, asks_hub: bool) -> ModelSource:
    """Downloads a model. Without `asks_hub`, returns the version that this machine downloaded last, if any.

    Errors: NotThere MODEL_NOT_FOUND.
    """
    value = f"{name}@{revision}" if revision else name
    folder = None if asks_hub else _fetched_before(name, revision)
    folder = folder or _fetch(name, revision, _MODEL_FILES, "model", value)
    # A snapshot's files are links to the repository's blobs: models--owner--name/snapshots/<commit>/config.json.
    return ModelSource(name, revision, folder, folder, folder.parents[1])


def download_sae(repository: str, within: str, name: str) -> Path:
    """Returns the folder or file of the SAE at `within` of a repository. Errors: NotThere SAE_NOT_FOUND."""
    found = _fetch(repository, "", tuple(fetched_names(within)), "sae", name) / within
    if not find_saes(found):
        raise NotThere(
            f"SAE {name!r} is in no model folder, and the hub repository {repository} has no SAE at "
            f"{within or 'its top'} on the hub",
            reason="SAE_NOT_FOUND",
            field="sae",
            value=name,
        )
    return found


def _fetched_before(repository: str, revision: str) -> Path | None:
    with suppress(LocalEntryNotFoundError):
        return Path(huggingface_hub.snapshot_download(repository, revision=revision or None, local_files_only=True))
    return None


def _fetch(repository: str, revision: str, files: tuple[str, ...], kind: str, value: str) -> Path:
    """Returns the folder of a repository's files, with those that match one of `files`."""
    try:
        folder = huggingface_hub.snapshot_download(repository, revision=revision or None, allow_patterns=list(files))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise NotThere(
            f"{kind} {value!r} is in no model folder, and the hub returned an error for that name: {error}",
            reason=f"{kind.upper()}_NOT_FOUND",
            field=kind,
            value=value,
        ) from error
    return Path(folder)
