"""Sparse autoencoders: what they compute, once and in one form, and the formats that they are read from.

`autoencoder.py` knows no file. Whatever a file's convention is, it is settled when the file is read.
"""

from actstore_worker.sae.autoencoder import GatedSae, JumpReluSae, SparseAutoencoder, StandardSae, TopKSae
from actstore_worker.sae.fit import check_fit
from actstore_worker.sae.loading import load_sae

__all__ = ["GatedSae", "JumpReluSae", "SparseAutoencoder", "StandardSae", "TopKSae", "check_fit", "load_sae"]
