"""Where a training can go on: SAELens's own checkpoint, and where its rows are, as one object of the bucket.

One object is there as a whole or not at all, so that a crash leaves the last whole one.
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
    """`feed` is the state of the rows after the step that was made last. Earlier checkpoints are removed."""
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
    """Into a trainer that is as new; the state of its rows. Errors: CorruptObject."""
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
    """Its key."""
    return max(bucket.keys(training_checkpoints_folder(name)), default=None)


def remove_checkpoints(bucket: Bucket, name: str) -> None:
    for key in bucket.keys(training_checkpoints_folder(name)):
        bucket.delete(key)
