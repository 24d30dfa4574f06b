"""Loads an SAE from a folder or a file, and detects its format."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from actstore_storage.errors import ActstoreError
from actstore_worker.files.stamps import held_still
from actstore_worker.sae.autoencoder import SparseAutoencoder
from actstore_worker.sae.files import FORMATS, OPENAI, SaeFiles, find_saes, missing_files, stamp_of_saes
from actstore_worker.sae.formats import dictionary_learning, gemma_scope, llama_scope, openai, saelens, sparsify
from actstore_worker.sae.parts import SaeParts, assemble
from actstore_worker.sae.refusals import unsupported
from actstore_worker.sae.sidecar import read_sidecar

_READERS: Mapping[str, Callable[[SaeFiles, str], SaeParts]] = {
    "sae_lens": saelens.read,
    "sparsify": sparsify.read,
    "gemma_scope": gemma_scope.read,
    "gemma_scope_2": gemma_scope.read_2,
    "dictionary_learning": dictionary_learning.read,
    "llama_scope": llama_scope.read,
    "llama_scope_r1": llama_scope.read,
    OPENAI: openai.read,
}


def load_sae(path: Path, name: str) -> SparseAutoencoder:
    """Loads an SAE. `path` is a folder, or one file of it.

    Errors: BadRequest SAE_UNSUPPORTED for an unsupported format, option or architecture, and for broken files;
    SAE_MISMATCH for a site that is not captured, and for tensors that do not fit each other; FILES_CHANGED.
    """
    with held_still(partial(stamp_of_saes, path), "sae", name):
        files = _told_apart(path, name)
        with _refusing_what_fails(files, name):
            parts = _READERS[files.format](files, name)
            return assemble(parts, read_sidecar(files.sidecar, name), name, files.sha256, files.format)


@contextmanager
def _refusing_what_fails(files: SaeFiles, name: str) -> Iterator[None]:
    """Turns any error of a reader on unexpected contents into BadRequest SAE_UNSUPPORTED."""
    try:
        yield
    except (ActstoreError, MemoryError):
        raise
    except Exception as error:
        why = f"its files are not valid {files.format} files: {type(error).__name__}: {error}"
        raise unsupported(name, "format", files.format, why, allowed=FORMATS) from error


def _told_apart(path: Path, name: str) -> SaeFiles:
    found = find_saes(path)
    if len(found) == 1:
        return found[0]
    if found:
        candidates = [f"{files.weights.name} ({files.format})" for files in found]
        why = "its format is ambiguous; name the file instead of the folder"
        raise unsupported(name, "format", candidates, why, allowed=FORMATS)
    if missing := missing_files(path):
        raise unsupported(name, missing[0], None, "it is missing, and the weights cannot be interpreted without it")
    raise unsupported(name, "format", None, f"{path.name} has no files of a known format", allowed=FORMATS)
