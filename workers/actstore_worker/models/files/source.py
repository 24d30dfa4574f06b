"""The location of a model's files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from actstore_worker.files.damage import check_own_files
from actstore_worker.files.stamps import Stamp, stamp_of

MODEL_CONFIGURATION = "config.json"
# Names of all files that are read for a model. A training may write other files into the same folder.
_MODEL_SUFFIXES = frozenset({".json", ".safetensors", ".pth", ".model", ".txt", ".jinja"})
# transformers reads every template in this folder beside a tokenizer.
_TEMPLATES = "additional_chat_templates"


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
        return stamp_of(self._files())

    def check(self) -> None:
        """Refuses links that lead outside the model folders, and pipes, devices and folders in place of files:
        DamagedFile.
        """
        check_own_files(self._files(), self.root)

    def _files(self) -> Iterator[Path]:
        for folder in {self.folder, self.tokenizer_folder}:
            yield from (file for file in folder.glob("*.*") if file.suffix in _MODEL_SUFFIXES)
            yield from (folder / _TEMPLATES).glob("*")
