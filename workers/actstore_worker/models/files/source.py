"""Where the files of one model lie."""

from dataclasses import dataclass
from pathlib import Path

from actstore_worker.files.stamps import Stamp, stamp_of

MODEL_CONFIGURATION = "config.json"
# Of everything that is read of a model; beside it may lie what a training goes on writing.
_MODEL_SUFFIXES = frozenset({".json", ".safetensors", ".pth", ".model", ".txt", ".jinja"})


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files lie. `name` and `revision` are the caller's words; links in the folders lead nowhere
    outside `root`.
    """

    name: str
    revision: str
    folder: Path
    tokenizer_folder: Path
    root: Path

    def stamp(self) -> Stamp:
        """The stamp of every file that may decide what the model computes. A file that is added changes it, too."""
        folders = {self.folder, self.tokenizer_folder}
        return stamp_of(file for folder in folders for file in folder.glob("*.*") if file.suffix in _MODEL_SUFFIXES)
