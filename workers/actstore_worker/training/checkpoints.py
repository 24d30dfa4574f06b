"""Checkpoints of a training: SAELens's own checkpoint and the state of its rows, as one object of the bucket.

An object is complete or does not exist, so a crash leaves the last complete one.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from actstore_storage.bucket import Bucket
from actstore_storage.errors import CorruptObject
from actstore_storage.format.keys import training_checkpoint_key, training_checkpoints_folder
from actstore_storage.registry.archives import read_archive, write_archive

if TYPE_CHECKING:
    from sae_lens.training.sae_trainer import SAETrainer

_FEED, _RANDOM = "feed.json", "random.pt"


def save_checkpoint(bucket: Bucket, name: str, trainer: "SAETrainer[Any, Any]", feed: Mapping[str, Any]) -> None:
    """Saves a checkpoint. `feed` is the state of the rows after the last step. Earlier checkpoints are removed."""
    key = training_checkpoint_key(name, trainer.n_training_steps)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        trainer.sae.save_model(folder)
        trainer.save_trainer_state(folder)
        (folder / _FEED).write_text(json.dumps(feed))
        torch.save(torch.get_rng_state(), folder / _RANDOM)
        write_archive(bucket, key, folder)
    for other in bucket.keys(training_checkpoints_folder(name)):
        if other < key:
            bucket.delete(other)


def load_checkpoint(bucket: Bucket, key: str, trainer: "SAETrainer[Any, Any]") -> Mapping[str, Any]:
    """Loads a checkpoint into a new trainer, and returns the state of its rows. Errors: CorruptObject."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            read_archive(bucket, key, folder)
            trainer.sae.load_weights_from_checkpoint(folder)
            trainer.load_trainer_state(folder)
            torch.set_rng_state(torch.load(folder / _RANDOM, weights_only=True))
            feed: Mapping[str, Any] = json.loads((folder / _FEED).read_text())
            return feed
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CorruptObject(
            f"{key} is not a checkpoint that training can resume from: {error}", field="object", value=key
        ) from error


def latest_checkpoint(bucket: Bucket, name: str) -> str | None:
    """The key of the latest checkpoint."""
    return max(bucket.keys(training_checkpoints_folder(name)), default=None)


def remove_checkpoints(bucket: Bucket, name: str) -> None:
    for key in bucket.keys(training_checkpoints_folder(name)):
        bucket.delete(key)
