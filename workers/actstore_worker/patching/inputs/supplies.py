"""Access to stored runs and SAEs that a sweep may need."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from actstore_storage.bucket import Bucket
from actstore_storage.errors import BadRequest
from actstore_worker.sae.autoencoder import SparseAutoencoder


@dataclass(frozen=True)
class Supplies:
    """Runs of a bucket, and SAEs by name. `find_sae` raises NotThere for an unknown SAE."""

    bucket: Bucket
    find_sae: Callable[[str], SparseAutoencoder]

    def settled(self) -> "Supplies":
        """Returns supplies for one sweep, in which each SAE stays as it was when it was first found, even if its files
        change.
        """
        return replace(self, find_sae=cache(self.find_sae))


def needed(supplies: Supplies | None) -> Supplies:
    if supplies is None:
        message = "rows of stored runs and features of SAEs need a store, and this sweep has none"
        raise BadRequest(message, field="source", value="none", allowed="a sweep with a store")
    return supplies
