"""Train the bundled SAE: `python -m models.sae`.

It is a TopK SAE on the residual stream in the middle of `pystdlib`. actstore captures the activations, the client reads
them back, and SAELens trains and saves. Rows of the BOS token are left out, because their norm is a multiple of all
others.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sae_lens import SAE, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

import actstore
from models import corpus
from models.tokenizer import CONTEXT_LENGTH

MODELS = Path(__file__).parent
SITE, HOOK = "resid_post.1", "blocks.1.hook_resid_post"  # one site, by its short and its long name
NAME = "pystdlib-resid_post.1"
WIDTH = 1024
K = 16
TRAIN_TOKENS = 1_500_000
HELD_OUT_TOKENS = 200_000
SAMPLES = 6_000_000
BATCH_ROWS = 2048
SEED = 0


def write_datasets(folder: Path) -> None:
    """Both sides of the split as JSON lines, files in a seeded random order so that a prefix is a fair sample."""
    for name, held_out in (("train", False), ("held-out", True)):
        texts = list(corpus.texts(held_out=held_out))
        order = np.random.default_rng(SEED).permutation(len(texts))
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as lines:
            for index in order:
                lines.write(json.dumps({"text": texts[index]}) + "\n")


def captured_rows(lab: actstore.Lab, dataset: str, max_tokens: int) -> Float[NDArray[np.float32], "row d_model"]:
    run = lab.capture(
        "pystdlib",
        dataset=dataset,
        dense_sites=[SITE],
        norm_sites=[SITE],
        max_tokens=max_tokens,
        run=f"sae-{Path(dataset).stem}",
    ).wait()
    rows = run.activations(SITE)
    positions = rows.table["position"].to_numpy()
    return rows.to_numpy()[positions > 0]


def shuffled_batches(rows: Float[NDArray[np.float32], "row d_model"]) -> Iterator[Float[Tensor, "row d_model"]]:
    generator = np.random.default_rng(SEED)
    while True:
        order = generator.permutation(len(rows))
        for start in range(0, len(rows) - BATCH_ROWS + 1, BATCH_ROWS):
            yield torch.from_numpy(rows[order[start : start + BATCH_ROWS]])


def train(rows: Float[NDArray[np.float32], "row d_model"]) -> TopKTrainingSAE:
    torch.manual_seed(SEED)
    metadata = SAEMetadata(
        model_name="pystdlib",
        hook_name=HOOK,
        context_size=CONTEXT_LENGTH,
        prepend_bos=True,
        dataset_path="the source of Python's standard library",
    )
    config = TopKTrainingSAEConfig(
        d_in=rows.shape[1],
        d_sae=WIDTH,
        k=K,
        normalize_activations="expected_average_only_in",  # SAELens folds the scale into the weights at the end
        metadata=metadata,
    )
    settings = SAETrainerConfig(
        total_training_samples=SAMPLES,
        train_batch_size_samples=BATCH_ROWS,
        lr=1e-3,
        lr_end=1e-5,
        lr_scheduler_name="cosineannealing",
        lr_warm_up_steps=100,
        dead_feature_window=200,
        logger=LoggingConfig(log_to_wandb=False),
    )
    return SAETrainer(settings, TopKTrainingSAE(config), shuffled_batches(rows)).fit()


@torch.no_grad()
def quality(sae: SAE, rows: Float[NDArray[np.float32], "row d_model"]) -> dict[str, float]:
    """L0, the fraction of variance unexplained (about the mean), and the fraction of features that fire on none of
    `rows`.
    """
    fired = torch.zeros(WIDTH, dtype=torch.bool)
    active, residual = 0, 0.0
    total = float(((rows - rows.mean(axis=0)) ** 2).sum())
    for part in torch.from_numpy(rows).split(BATCH_ROWS):
        features = sae.encode(part)
        fired |= (features > 0).any(dim=0)
        active += int((features > 0).sum())
        residual += float(((part - sae.decode(features)) ** 2).sum())
    return {"l0": active / len(rows), "fvu": residual / total, "dead_share": 1 - fired.float().mean().item()}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        datasets = Path(scratch) / "datasets"
        datasets.mkdir()
        write_datasets(datasets)
        with actstore.LocalStack(
            model_folders=[MODELS], dataset_folders=[datasets], state_folder=Path(scratch) / "state"
        ) as stack:
            lab = stack.lab
            train_rows = captured_rows(lab, "train.jsonl", TRAIN_TOKENS)
            held_rows = captured_rows(lab, "held-out.jsonl", HELD_OUT_TOKENS)
    train(train_rows).save_inference_model(MODELS / NAME)
    sae = SAE.load_from_disk(str(MODELS / NAME))
    report = {"train_rows": len(train_rows), "held_out_rows": len(held_rows), **quality(sae, held_rows)}
    (MODELS / NAME / "quality.json").write_text(json.dumps(report, indent=2) + "\n")
    print(report)


if __name__ == "__main__":
    main()
