"""What a sweep may need beside its model and its prompts."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from actstore_storage.bucket import Bucket
from actstore_storage.errors import BadRequest
from actstore_worker.sae.autoencoder import SparseAutoencoder


@dataclass(frozen=True)
class Supplies:
    """Runs of a bucket, and SAEs by name. `find_sae` raises NotThere for one that it does not know."""

    bucket: Bucket
    find_sae: Callable[[str], SparseAutoencoder]

    def settled(self) -> "Supplies":
        """For one sweep: each SAE stays what it is when it is first found, whatever is written meanwhile."""
        return replace(self, find_sae=cache(self.find_sae))


def needed(supplies: Supplies | None) -> Supplies:
    if supplies is None:
        message = "rows of stored runs and features of SAEs need a store, and this sweep has none"
        raise BadRequest(message, field="source", value="none", allowed="a sweep with a store")
    return supplies
