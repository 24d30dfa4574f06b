"""Finds models and SAEs in folders: the only place where a name from a caller becomes a folder.

A model is a folder with `config.json`. Its revisions are the folders `revisions/<revision>` in it, which use its
tokenizer. An SAE is a folder, or a file, in any format that `sae/files.py` knows. If the hub is allowed, names that are
in no folder are downloaded from it: for models only safetensors, for SAEs also `.npz` and `.pt`, which are read without
running code.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from actstore_storage.bucket import check_name
from actstore_storage.errors import BadRequest, NotThere
from actstore_storage.format.keys import statistics_product
from actstore_worker.catalog.hub import download_model, download_sae
from actstore_worker.files.damage import DamagedFile
from actstore_worker.files.places import is_inside
from actstore_worker.models.files.source import MODEL_CONFIGURATION, ModelSource
from actstore_worker.models.tokens import TOKENIZER
from actstore_worker.sae.files import SaeFiles, find_saes, missing_files
from actstore_worker.sae.refusals import unsupported
from actstore_worker.sae.stored import StoredSaes

_REVISIONS = "revisions"
# How deep below a model folder SAEs are found: `owner/repository/layer_3/width_16k/average_l0_82`, and one more level.
_SAE_DEPTH_MAX = 6


@dataclass(frozen=True)
class ModelCatalog:
    """Finds models and SAEs. `model_folders` contain them; the first folder with a name wins. `stored`: SAEs that no
    folder has. `allow_hub`: everything else is downloaded.
    """

    model_folders: tuple[Path, ...]
    allow_hub: bool = False
    stored: StoredSaes | None = None

    def find_model(self, name: str, revision: str = "", *, asks_hub: bool = True) -> ModelSource:
        """Returns a model's location. Without `asks_hub`, a model of the hub is the version that this machine
        downloaded last, if any.

        Errors: NotThere MODEL_NOT_FOUND with the available models; BadRequest NAME_INVALID.
        """
        parts = _name_parts(name, "model")
        if revision:
            check_name(revision, "model.revision")
        places = [(root, folder) for root, folder in self._folders(parts) if _is_model(folder)]
        for root, folder in places:
            found = folder / _REVISIONS / revision if revision else folder
            if (found / MODEL_CONFIGURATION).is_file() and is_inside(found, folder):
                return _local_source(name, revision, folder, found, root)
        if places:
            raise _no_revision(name, revision, _revisions(places[0][1]))
        if self.allow_hub:
            return download_model(name, revision, asks_hub)
        raise _not_found("model", name, sorted({source.name for source in self.models()}))

    def find_sae(self, name: str) -> Path:
        """Returns the folder or the file of an SAE. `name` is one below a model folder, one that was trained from the
        store, or on the hub, if that is allowed, `owner/repository/path/within`.

        Errors: NotThere SAE_NOT_FOUND with the available SAEs; BadRequest NAME_INVALID; SAE_UNSUPPORTED for files that
        are links to places outside the model folders, or no files.
        """
        check_name(statistics_product(name), "sae")  # The longest name that contains it.
        parts = name.split("/")
        for root in self.model_folders:
            found = root.joinpath(*parts)
            if is_inside(found, root) and ((saes := find_saes(found)) or missing_files(found)):
                _check_saes(name, saes, root)
                return found
        if self.stored is not None and (fetched := self.stored.find(name)) is not None:
            return fetched
        if self.allow_hub and len(parts) > 1:
            return download_sae("/".join(parts[:2]), "/".join(parts[2:]), name)
        raise _not_found("sae", name, self.saes())

    def models(self) -> list[ModelSource]:
        """Every model in the folders, and every revision of it, in order of name and revision."""
        found: dict[tuple[str, str], ModelSource] = {}
        for root, name, folder in self._walk():
            for revision, place in _places(folder):
                found.setdefault((name, revision), _local_source(name, revision, folder, place, root))
        return [found[key] for key in sorted(found)]

    def saes(self) -> list[str]:
        """The names of the SAEs in the folders, in order."""
        return sorted({name for root in self.model_folders for name in _saes_below(root)})

    def _folders(self, parts: list[str]) -> Iterator[tuple[Path, Path]]:
        """Yields folders with the model folder that they are in."""
        for root in self.model_folders:
            folder = root.joinpath(*parts)
            if folder.is_dir() and is_inside(folder, root):
                yield root, folder

    def _walk(self) -> Iterator[tuple[Path, str, Path]]:
        """Yields folders one and two levels down, so that `owner/model` is found as on the hub."""
        for root in self.model_folders:
            for pattern in ("*", "*/*"):
                for folder in sorted(root.glob(pattern)):
                    name = folder.relative_to(root).as_posix()
                    if folder.is_dir() and folder.name != _REVISIONS and is_inside(folder, root):
                        yield root, name, folder


def _check_saes(name: str, found: Iterable[SaeFiles], root: Path) -> None:
    for files in found:
        try:
            files.check(root)
        except DamagedFile as error:
            raise unsupported(name, "files", files.weights.name, str(error), "files in the model folders") from error


def _name_parts(name: str, field: str) -> list[str]:
    """Splits `owner/model`. Each part is a plain name, so `..` and absolute paths are refused."""
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


def _saes_below(root: Path) -> Iterator[str]:
    """SAEs by the name of the folder; several SAEs in one folder by the names of their files."""
    for depth in range(1, _SAE_DEPTH_MAX + 1):
        for folder in root.glob("/".join("*" * depth)):
            if folder.is_dir() and is_inside(folder, root) and (found := find_saes(folder)):
                places = [folder] if len(found) == 1 else [files.weights for files in found]
                yield from (place.relative_to(root).as_posix() for place in places)


def _local_source(name: str, revision: str, folder: Path, found: Path, root: Path) -> ModelSource:
    return ModelSource(name, revision, found, found if (found / TOKENIZER).is_file() else folder, root)


def _not_found(kind: str, name: str, there: list[str]) -> BadRequest:
    known = f"available: {', '.join(there)}" if there else "the model folders are empty"
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
