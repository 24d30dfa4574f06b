"""Saves a trained SAE: converts it to SAELens's format, measures, stores and registers it."""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from actstore_storage.bucket import Bucket
from actstore_storage.registry.saes import fetch_sae_files, find_registered_sae, register_sae, store_sae_files
from actstore_storage.runs.snapshot import Snapshot
from actstore_worker.models.dtypes import as_tensor
from actstore_worker.sae.files import QUALITY
from actstore_worker.sae.formats.loading import load_sae
from actstore_worker.sae.stored import sae_record
from actstore_worker.training.feed import rows_of
from actstore_worker.training.quality import Quality, measure
from actstore_worker.training.recipe import Training

if TYPE_CHECKING:
    from sae_lens import TrainingSAE

# Held-out rows on which an SAE is measured. More rows would hardly change the fraction of features that fire.
QUALITY_ROWS = 1 << 18


def save(
    bucket: Bucket, training: Training, snapshot: Snapshot, sae: "TrainingSAE[Any]", device: torch.device
) -> tuple[str, Quality | None]:
    """Returns the SAE's hash, and its measured quality."""
    sae.cfg.device = "cpu"  # where it was trained does not matter
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sae.save_inference_model(folder)
        loaded = load_sae(folder, training.name)
        quality = measure(loaded.to(device), _held_out(snapshot, training), QUALITY_ROWS)
        if quality is not None:
            (folder / QUALITY).write_text(json.dumps(_known(quality), indent=2) + "\n")
        store_sae_files(bucket, training.name, loaded.sha256, folder)
    register_sae(bucket, sae_record(loaded))
    return loaded.sha256, quality


def find_saved(bucket: Bucket, name: str) -> tuple[str, Quality | None] | None:
    """Returns the same as `save` for an SAE that is registered and whose files are in the store; None if
    there is none.
    """
    record = find_registered_sae(bucket, name)
    if record is None:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if not fetch_sae_files(bucket, name, record.sha256, folder):
            return None
        if not (folder / QUALITY).is_file():
            return record.sha256, None
        found = json.loads((folder / QUALITY).read_text())
        return record.sha256, Quality(**{"fvu": None} | found)


def _known(quality: Quality) -> dict[str, float]:
    return {name: value for name, value in asdict(quality).items() if value is not None}


def _held_out(snapshot: Snapshot, training: Training) -> Iterator[Tensor]:
    for batch in rows_of(snapshot, training, held_out=True):
        yield as_tensor(batch.sites[training.site], batch.dtypes[training.site]).float()
