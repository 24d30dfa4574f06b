"""SAEs that one replica keeps loaded."""

import threading
from collections import OrderedDict
from pathlib import Path

import torch

from actstore_worker.catalogue import ModelCatalogue
from actstore_worker.models.files.stamps import Stamp
from actstore_worker.sae import SparseAutoencoder, load_sae
from actstore_worker.sae.files import stamp_of_saes


class LoadedSaes:
    """Keeps the few SAEs loaded that were asked for last.

    One whose files were written again is read again.
    """

    def __init__(self, catalogue: ModelCatalogue, device: torch.device, count: int) -> None:
        self._catalogue, self._device, self._count = catalogue, device, count
        self._held: OrderedDict[Path, tuple[Stamp, SparseAutoencoder]] = OrderedDict()
        # Held while one is read, so that two questions do not read it twice.
        self._lock = threading.Lock()

    def get(self, name: str) -> SparseAutoencoder:
        """Load the SAE, or take the one that is loaded.

        Errors: as `ModelCatalogue.find_sae` and `load_sae`.
        """
        path = self._catalogue.find_sae(name)
        stamp = stamp_of_saes(path)
        with self._lock:
            if path not in self._held or self._held[path][0] != stamp:
                self._held.pop(path, None)  # the old one is gone, but for who still uses it, when the new one comes
                # Others take gradients through it, which a tensor that is made in inference mode forbids for good.
                with torch.inference_mode(mode=False):
                    self._held[path] = stamp, load_sae(path, name).to(self._device)
            self._held.move_to_end(path)
            while len(self._held) > self._count:
                self._held.popitem(last=False)
            return self._held[path][1]
