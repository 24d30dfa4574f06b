"""Builds SAELens's trainer for a training: its architectures with our options, its schedules with our defaults."""

import warnings
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from actstore_storage.runs.snapshot import Snapshot
from actstore_worker.training.advice import DECAY_SHARE, WARM_UP_SHARE
from actstore_worker.training.recipe import SPARSITY, Training

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its imports trigger deprecation warnings
    from sae_lens import (
        BatchTopKTrainingSAEConfig,
        GatedTrainingSAEConfig,
        JumpReLUTrainingSAEConfig,
        StandardTrainingSAEConfig,
        TopKTrainingSAEConfig,
        TrainingSAE,
    )
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.registry import get_sae_training_class
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

_CONFIGURATIONS = {
    "standard": StandardTrainingSAEConfig,
    "gated": GatedTrainingSAEConfig,
    "topk": TopKTrainingSAEConfig,
    "batchtopk": BatchTopKTrainingSAEConfig,
    "jumprelu": JumpReLUTrainingSAEConfig,
}
# Batches from which the factor for a mean norm of sqrt(d) is estimated.
SCALE_BATCHES = 50


def build_trainer(
    training: Training, snapshot: Snapshot, rows: Iterator[Tensor], device: torch.device
) -> "SAETrainer[Any, Any]":
    """Returns a trainer whose weights are initialized from the training's own seed, independent of earlier random
    numbers.
    """
    torch.manual_seed(training.seed)
    configuration = _CONFIGURATIONS[training.architecture](
        d_in=snapshot.record.dense_width(training.site),
        d_sae=training.width,
        device=str(device),
        normalize_activations="expected_average_only_in" if training.normalise else "none",
        reshape_activations="hook_z" if training.place.kind == "z" else "none",
        metadata=_metadata(training, snapshot),
        **_sparsity(training),
    )
    kind, _ = get_sae_training_class(training.architecture)
    sae: TrainingSAE[Any] = kind(configuration)
    return SAETrainer(_schedules(training, device), sae, rows)


def _schedules(training: Training, device: torch.device) -> "SAETrainerConfig":
    return SAETrainerConfig(
        total_training_samples=training.steps * training.batch_rows,
        train_batch_size_samples=training.batch_rows,
        lr=training.learning_rate,
        lr_end=training.learning_rate,
        lr_warm_up_steps=_share(training, WARM_UP_SHARE),
        lr_decay_steps=_share(training, DECAY_SHARE),
        device=str(device),
        dead_feature_window=training.dead_after_steps,
        logger=LoggingConfig(log_to_wandb=False),
    )


def _sparsity(training: Training) -> dict[str, Any]:
    kind, warm_up = SPARSITY[training.architecture], _share(training, WARM_UP_SHARE)
    if kind == "k":
        return {"k": int(training.sparsity) if training.architecture == "topk" else training.sparsity}
    return {f"{kind}_coefficient": training.sparsity, f"{kind}_warm_up_steps": warm_up}


def _metadata(training: Training, snapshot: Snapshot) -> "SAEMetadata":
    asked = snapshot.record.specification
    return SAEMetadata(
        model_name=asked.model,
        model_revision=asked.model_revision,
        weights_sha256=asked.weights_sha256,
        config_sha256=asked.config_sha256,
        hook_name=training.place.long_name,
        hook_head_index=None,
        context_size=asked.context_length,
        prepend_bos=asked.prepend_bos,
        dataset_path=asked.dataset,
        dataset_sha256=asked.dataset_sha256,
        trained_on_run=training.run,
        run_specification_sha256=training.specification_sha256,
        excluded_token_classes=list(training.exclude),
        actstore_version=version("actstore"),
    )


def _share(training: Training, share: float) -> int:
    return int(training.steps * share)
