"""SAEs that one replica keeps loaded."""

import threading
from collections import OrderedDict
from pathlib import Path

import torch

from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.files.stamps import Stamp
from actstore_worker.sae.autoencoder import SparseAutoencoder
from actstore_worker.sae.files import stamp_of_saes
from actstore_worker.sae.formats.loading import load_sae


class LoadedSaes:
    """Keeps the most recently used SAEs loaded.

    An SAE is loaded again if its files have changed.
    """

    def __init__(self, catalog: ModelCatalog, device: torch.device, count: int) -> None:
        self._catalog, self._device, self._count = catalog, device, count
        self._held: OrderedDict[Path, tuple[Stamp, SparseAutoencoder]] = OrderedDict()
        # Held while one is read, so that two questions do not read it twice.
        self._lock = threading.Lock()

    def get(self, name: str) -> SparseAutoencoder:
        """Return the SAE, loading it if needed.

        Errors: as `ModelCatalog.find_sae` and `load_sae`.
        """
        path = self._catalog.find_sae(name)
        stamp = stamp_of_saes(path)
        with self._lock:
            if path not in self._held or self._held[path][0] != stamp:
                # The old one is released before the new one is loaded, unless it is still in use.
                self._held.pop(path, None)
                # Gradients may be taken through the SAE, which a tensor made in inference mode would forbid for good.
                with torch.inference_mode(mode=False):
                    self._held[path] = stamp, load_sae(path, name).to(self._device)
            self._held.move_to_end(path)
            while len(self._held) > self._count:
                self._held.popitem(last=False)
            return self._held[path][1]
