"""The files of a sparse autoencoder in each format: finds one in a folder, and lists what to download, without reading
them.

The names of files determine the format. If a folder has the files of two formats, it is ambiguous.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from actstore_worker.files.damage import check_own_files
from actstore_worker.files.places import sha256_of
from actstore_worker.files.stamps import Stamp, stamp_of

# Contains what an SAE's own files do not: its site, its model, how to adapt it. Fields: docs/reference/sae-formats.md.
SIDECAR = "actstore.json"
QUALITY, SPARSITY = "quality.json", "sparsity.safetensors"
# OpenAI's files are named after layers, many in one folder.
_OPENAI_WEIGHTS = re.compile(r"\d+\.pt")
# dictionary_learning saves intermediate checkpoints as checkpoints/ae_STEP.pt, with the same configuration.
_DICTIONARY_CHECKPOINT = re.compile(r"ae_\d+\.pt")


@dataclass(frozen=True)
class Signature:
    """The files of a format. `weights` and `configuration` are relative to the SAE's folder; `needs_configuration`: the
    configuration is required.
    """

    format: str
    weights: str
    configuration: str
    needs_configuration: bool = True


SIGNATURES = (
    Signature("sae_lens", "sae_weights.safetensors", "cfg.json"),
    Signature("sparsify", "sae.safetensors", "cfg.json"),
    Signature("gemma_scope", "params.npz", "config.json", needs_configuration=False),
    Signature("gemma_scope_2", "params.safetensors", "config.json", needs_configuration=False),
    Signature("dictionary_learning", "ae.pt", "config.json"),
    Signature("llama_scope", "checkpoints/final.safetensors", "hyperparams.json"),
    Signature("llama_scope_r1", "sae_weights.safetensors", "config.json"),
)
OPENAI = "openai"
FORMATS = (*(signature.format for signature in SIGNATURES), OPENAI)


@dataclass(frozen=True)
class SaeFiles:
    """One SAE's files, all of which exist; `configuration` and `sidecar` are None if there is none."""

    format: str
    folder: Path
    weights: Path
    configuration: Path | None
    sidecar: Path | None

    @property
    def read(self) -> tuple[Path, ...]:
        """Existing files that its numbers and claims are read from."""
        above = self.folder.parent / "config.json"  # sparsify names the model there
        beside = (self.folder / QUALITY, self.folder / SPARSITY, above)
        return tuple(path for path in (self.configuration, self.weights, self.sidecar, *beside) if path is not None)

    def check(self, root: Path) -> None:
        """Refuses links that lead outside `root`, and what is not a regular file in place of one: DamagedFile."""
        sidecars = self.weights.with_name(f"{self.weights.name}.{SIDECAR}"), self.folder / SIDECAR
        check_own_files((*self.read, *sidecars), root)

    @property
    def sha256(self) -> str:
        """The hash of everything that affects its numbers."""
        return sha256_of(path for path in (self.configuration, self.weights, self.sidecar) if path is not None)


def find_saes(path: Path) -> list[SaeFiles]:
    """Returns the possible readings of `path`, a folder or one file: none, one SAE, or several if it is ambiguous."""
    return list(_in_folder(path) if path.is_dir() else _of_file(path))


def stamp_of_saes(path: Path) -> Stamp:
    """The stamp of all files that are read there."""
    return stamp_of(file for found in find_saes(path) for file in found.read)


def missing_files(path: Path) -> list[str]:
    """Returns missing configurations, for formats whose weights exist."""
    return [
        signature.configuration
        for signature in SIGNATURES
        if signature.needs_configuration and (path / signature.weights).is_file()
    ]


def fetched_names(within: str) -> list[str]:
    """Every file that the SAE at `within` of a repository may need, by its full name: a pattern could match a
    repository's other SAEs, which may be terabytes.
    """
    folder, _, last = within.rpartition("/")
    if not Path(last).suffix:
        folder, last = within, ""
    prefix = f"{folder}/" if folder else ""
    names = {
        SIDECAR,
        QUALITY,
        SPARSITY,
        *(part for found in SIGNATURES for part in (found.weights, found.configuration)),
    }
    parent = folder.rpartition("/")[0]
    above = f"{parent}/config.json" if parent else "config.json"  # sparsify names the model there
    own = [f"{prefix}{last}", f"{prefix}{last}.{SIDECAR}"] if last else []
    return sorted({*(f"{prefix}{name}" for name in names), *own, above})


def _in_folder(folder: Path) -> Iterator[SaeFiles]:
    for signature in SIGNATURES:
        weights, configuration = folder / signature.weights, folder / signature.configuration
        if weights.is_file() and (configuration.is_file() or not signature.needs_configuration):
            yield _files(signature.format, folder, weights, configuration)
    for weights in sorted(folder.glob("*.pt")):
        if _OPENAI_WEIGHTS.fullmatch(weights.name):
            yield _files(OPENAI, folder, weights, None)


def _of_file(path: Path) -> Iterator[SaeFiles]:
    if not path.is_file():
        return
    if _OPENAI_WEIGHTS.fullmatch(path.name):
        yield _files(OPENAI, path.parent, path, None)
    elif _DICTIONARY_CHECKPOINT.fullmatch(path.name) and (path.parent.parent / "config.json").is_file():
        yield _files("dictionary_learning", path.parent.parent, path, path.parent.parent / "config.json")
    for folder in (path.parent, path.parent.parent):
        yield from (found for found in _in_folder(folder) if found.weights == path and found.format != OPENAI)


def _files(format_name: str, folder: Path, weights: Path, configuration: Path | None) -> SaeFiles:
    sidecars = [weights.with_name(f"{weights.name}.{SIDECAR}"), folder / SIDECAR]
    return SaeFiles(
        format_name,
        folder,
        weights,
        configuration if configuration is not None and configuration.is_file() else None,
        next((found for found in sidecars if found.is_file()), None),
    )
