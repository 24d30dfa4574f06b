"""The location of a model's files."""

from dataclasses import dataclass
from pathlib import Path

from actstore_worker.files.stamps import Stamp, stamp_of

MODEL_CONFIGURATION = "config.json"
# Names of all files that are read for a model. A training may write other files into the same folder.
_MODEL_SUFFIXES = frozenset({".json", ".safetensors", ".pth", ".model", ".txt", ".jinja"})


@dataclass(frozen=True)
class ModelSource:
    """The location of a model's files. `name` and `revision` are the caller's; links in the folders may not lead
    outside `root`.
    """

    name: str
    revision: str
    folder: Path
    tokenizer_folder: Path
    root: Path

    def stamp(self) -> Stamp:
        """The stamp of every file that may affect what the model computes. Adding a file changes it, too."""
        folders = {self.folder, self.tokenizer_folder}
        return stamp_of(file for folder in folders for file in folder.glob("*.*") if file.suffix in _MODEL_SUFFIXES)
