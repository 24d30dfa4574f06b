"""Sparse autoencoders: what they compute, once and in one form, and the formats that they are read from.

`autoencoder.py` knows no file. Each `format_*.py` knows the files and the words of one project, and `parts.py` settles
what they mean: it checks, and folds every scale into the weights.
"""

from actstore_worker.sae.autoencoder import (
    GatedSae,
    JumpReluSae,
    SparseAutoencoder,
    StandardSae,
    ThresholdSae,
    TopKSae,
)
from actstore_worker.sae.fit import check_fit
from actstore_worker.sae.loading import load_sae

__all__ = [
    "GatedSae",
    "JumpReluSae",
    "SparseAutoencoder",
    "StandardSae",
    "ThresholdSae",
    "TopKSae",
    "check_fit",
    "load_sae",
]
