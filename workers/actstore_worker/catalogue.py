"""What models and SAEs there are, and in which folder: a name from outside becomes a folder here and nowhere else.

A model is a folder with `config.json`; its revisions are the folders `revisions/<revision>` in it, which borrow its
tokenizer. An SAE is a folder with SAELens's `cfg.json` and `sae_weights.safetensors`. Where the hub is allowed, a model
that no folder has is downloaded from there, safetensors only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from actstore_storage.bucket import check_name
from actstore_storage.errors import BadRequest, NotThere

MODEL_CONFIGURATION = "config.json"
SAE_CONFIGURATION, SAE_WEIGHTS = "cfg.json", "sae_weights.safetensors"
_TOKENIZER = "tokenizer.json"
_REVISIONS = "revisions"
_HUB_FILES = (
    MODEL_CONFIGURATION,
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files lie. `name` and `revision` are the caller's words."""

    name: str
    revision: str
    folder: Path
    tokenizer_folder: Path


@dataclass(frozen=True)
class ModelCatalogue:
    """`model_folders` hold models and SAEs; the first with a name wins. `allow_hub`: other models are downloaded."""

    model_folders: tuple[Path, ...]
    allow_hub: bool = False

    def find_model(self, name: str, revision: str = "") -> ModelSource:
        """Errors: NotThere MODEL_NOT_FOUND with what there is; BadRequest NAME_INVALID."""
        parts = _name_parts(name, "model")
        if revision:
            check_name(revision, "model.revision")
        folders = [folder for folder in self._folders(parts) if _is_model(folder)]
        for folder in folders:
            found = folder / _REVISIONS / revision if revision else folder
            if (found / MODEL_CONFIGURATION).is_file() and _is_inside(found, folder):
                return _local_source(name, revision, folder, found)
        if folders:
            raise _no_revision(name, revision, _revisions(folders[0]))
        if self.allow_hub:
            return _download(name, revision)
        raise _not_found("model", name, sorted({source.name for source in self.models()}))

    def find_sae(self, name: str) -> Path:
        """The folder of an SAE. Errors: NotThere SAE_NOT_FOUND with what there is; BadRequest NAME_INVALID."""
        check_name(name, "sae")
        for folder in self._folders([name]):
            if _is_sae(folder):
                return folder
        raise _not_found("sae", name, self.saes())

    def models(self) -> list[ModelSource]:
        """Every model in the folders, and every revision of it, in order of name and revision."""
        found: dict[tuple[str, str], ModelSource] = {}
        for name, folder in self._walk():
            for revision, place in _places(folder):
                found.setdefault((name, revision), _local_source(name, revision, folder, place))
        return [found[key] for key in sorted(found)]

    def saes(self) -> list[str]:
        return sorted({name for name, folder in self._walk() if "/" not in name and _is_sae(folder)})

    def _folders(self, parts: list[str]) -> Iterator[Path]:
        for root in self.model_folders:
            folder = root.joinpath(*parts)
            if folder.is_dir() and _is_inside(folder, root):
                yield folder

    def _walk(self) -> Iterator[tuple[str, Path]]:
        """Folders one and two levels down, so that `owner/model` is found as on the hub."""
        for root in self.model_folders:
            for pattern in ("*", "*/*"):
                for folder in sorted(root.glob(pattern)):
                    name = folder.relative_to(root).as_posix()
                    if folder.is_dir() and folder.name != _REVISIONS and _is_inside(folder, root):
                        yield name, folder


def _name_parts(name: str, field: str) -> list[str]:
    """A model may be named `owner/model`; each part is a plain name, so `..` and absolute paths are none."""
    parts = name.split("/") if name.count("/") == 1 else [name]
    return [check_name(part, field) for part in parts]


def _is_model(folder: Path) -> bool:
    return any(True for _ in _places(folder))


def _places(folder: Path) -> Iterator[tuple[str, Path]]:
    """(revision, folder) of a model folder: "" for the model itself."""
    if (folder / MODEL_CONFIGURATION).is_file():
        yield "", folder
    for revision in _revisions(folder):
        yield revision, folder / _REVISIONS / revision


def _revisions(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.glob(f"{_REVISIONS}/*/{MODEL_CONFIGURATION}"))


def _is_sae(folder: Path) -> bool:
    return (folder / SAE_CONFIGURATION).is_file() and (folder / SAE_WEIGHTS).is_file()


def _is_inside(path: Path, root: Path) -> bool:
    """Also after every symbolic link on the way is followed."""
    return path.resolve().is_relative_to(root.resolve())


def _local_source(name: str, revision: str, folder: Path, found: Path) -> ModelSource:
    return ModelSource(name, revision, found, found if (found / _TOKENIZER).is_file() else folder)


def _download(name: str, revision: str) -> ModelSource:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=list(_HUB_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise NotThere(
            f"model {name!r} is in no model folder, and the hub gave nothing under that name: {error}",
            reason="MODEL_NOT_FOUND",
            field="model",
            value=f"{name}@{revision}" if revision else name,
        ) from error
    return ModelSource(name, revision, folder, folder)


def _not_found(kind: str, name: str, there: list[str]) -> BadRequest:
    known = f"there are: {', '.join(there)}" if there else "the model folders have none"
    return NotThere(
        f"no {kind} {name!r}; {known}",
        reason=f"{kind.upper()}_NOT_FOUND",
        field=kind,
        value=name,
        allowed=there,
    )


def _no_revision(name: str, revision: str, there: list[str]) -> BadRequest:
    missing = f"no revision {revision!r}" if revision else "no weights of its own"
    return NotThere(
        f"model {name!r} has {missing}; its revisions are: {', '.join(there) or 'none'}",
        reason="MODEL_NOT_FOUND",
        field="model.revision",
        value=revision,
        allowed=there,
    )
