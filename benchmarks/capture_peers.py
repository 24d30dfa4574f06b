"""Compares the capture of one layer's residual with alternatives: `python -m benchmarks.capture_peers --json`.

A model of Pythia-70M's shape with random weights, one dense site with its norms, the same tokens in sequences of 256
and the same batches on every side, in turns, round after round:

- forward: the trunk in transformers, stopped after the site's layer, nothing kept;
- torch_save: the same pass, a hook at the site, and every shard's rows saved with `torch.save` and synced;
- saelens: SAELens's CacheActivationsRunner over the same transformers model, which computes only one logit per
  sequence. It also runs the layers after the site, hence a site at the last layer, and it syncs nothing.

No side includes loading. Predicted on a CPU: 40 MFLOP per token for 2 KiB of rows, so that a second of computation
writes about 10 MB; every ratio is then near 1, and capture is faster than the plain pass because of its lanes.
"""

import argparse
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.format.sites import parse_site
from actstore_storage.runs.opening import create_run
from actstore_worker.capture.plan import Plan, plan_capture
from actstore_worker.capture.run_plan import PlanSettings
from actstore_worker.capture.shards.worker import CaptureWorker
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.places import DatasetPlaces
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.taps import visit
from benchmarks.capture import MODEL, MODELS, capture_seconds
from tests.capture_requests import capture_request
from tests.capturing import padded

LAYERS, D_MODEL, VOCABULARY_SIZE = 6, 512, 50_304
SITE, HOOK = f"resid_post.{LAYERS - 1}", f"gpt_neox.layers.{LAYERS - 1}"
CONTEXT_LENGTH, BATCH, SHARDS = 256, 16, 4
TOKENS = 32_768
ROUNDS = 3
SIDES = ("forward", "torch_save", "saelens", "capture")


def save_model(folder: Path) -> None:
    """With a tokenizer that is not used, because the dataset is tokenized."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=D_MODEL,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        intermediate_size=4 * D_MODEL,
        max_position_embeddings=2048,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODELS / MODEL).save_pretrained(folder)


def write_inputs(folder: Path, tokens: int) -> None:
    save_model(folder / "models" / "pythia-70m-shape")
    (folder / "data").mkdir()
    ids = torch.randint(2, VOCABULARY_SIZE, (tokens // CONTEXT_LENGTH, CONTEXT_LENGTH), dtype=torch.int32)
    pq.write_table(pa.table({"tokens": ids.tolist()}), folder / "data" / "tokens.parquet")


def plan_sites(
    folder: Path, device: str, tokens: int, dense_sites: tuple[str, ...], norm_sites: tuple[str, ...]
) -> Plan:
    """`norm_sites` empty: all sites of the model."""
    request = capture_request(
        "pythia-70m-shape",
        "tokens.parquet",
        tokens_field="tokens",
        prepend_bos=False,
        context_length=CONTEXT_LENGTH,
        dense_sites=dense_sites,
        norm_sites=norm_sites,
        sequences_per_batch=BATCH,
        sequences_per_shard=tokens // CONTEXT_LENGTH // SHARDS,
    )
    catalog = ModelCatalog((folder / "models",))
    return plan_capture(request, catalog, PlanSettings(DatasetPlaces((folder / "data",)), device))


def forward(model: LanguageModel, plan: Plan, keep: Callable[[torch.Tensor], None], shard: int) -> None:
    for batch in plan.shard_sequences(shard).batches(BATCH):
        ids = torch.from_numpy(padded(batch)[0]).to(model.device)
        visit(model, ids, None, {parse_site(SITE)}, lambda _, rows: keep(rows))
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def torch_save(model: LanguageModel, plan: Plan, folder: Path, shard: int) -> None:
    kept: list[torch.Tensor] = []
    forward(model, plan, lambda rows: kept.append(rows.cpu()), shard)
    with (folder / f"{shard}.pt").open("wb") as file:
        torch.save(torch.cat(kept), file)
        file.flush()
        os.fsync(file.fileno())


def saelens_runner(plan: Plan, folder: Path, device: str) -> Callable[[], object]:
    """Runs SAELens once over all tokens; a new one each round, because it refuses to write twice."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its imports trigger deprecation warnings
        from datasets import Dataset
        from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig

    config = CacheActivationsRunnerConfig(
        dataset_path="same-tokens",
        model_name=str(plan.model_source.folder),
        model_class_name="AutoModelForCausalLM",
        model_kwargs={"logits_to_keep": 1},
        model_batch_size=BATCH,
        hook_name=HOOK,
        d_in=D_MODEL,
        training_tokens=plan.record.tokens_total,
        context_size=CONTEXT_LENGTH,
        new_cached_activations_path=str(folder),
        buffer_size_gb=plan.record.tokens_total * D_MODEL * 4 / SHARDS / 1e9,
        shuffle=False,
        streaming=False,
        prepend_bos=False,
        device=device,
    )
    dataset = Dataset.from_dict({"input_ids": plan.sequences.tokens.reshape(-1, CONTEXT_LENGTH).tolist()})
    runner = CacheActivationsRunner(config, override_dataset=dataset)

    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it mistakes sequences for tokens, and copies tensors unnecessarily
            runner.run()

    return run


def measure(plan: Plan, device: str, folder: Path, bucket: Bucket) -> dict[str, float]:
    """Seconds of each side in one round, over all shards but the first, which is the warm-up; SAELens has no first
    shard.
    """
    model = load_model(plan.model_source, device=torch.device(device))
    folder.mkdir()
    record = create_run(bucket, replace(plan.record, run=folder.name))
    worker = CaptureWorker(bucket, torch.device(device))
    saelens = saelens_runner(plan, folder / "saelens", device)
    forward(model, plan, lambda _: None, 0)
    capture_seconds(worker, plan, record, range(1))
    shards = range(1, plan.record.shards_total)
    sides: dict[str, Callable[[], object]] = {
        "forward": lambda: [forward(model, plan, lambda _: None, shard) for shard in shards],
        "torch_save": lambda: [torch_save(model, plan, folder, shard) for shard in shards],
        "capture": lambda: capture_seconds(worker, plan, record, shards),
    }
    seconds = {name: _seconds(side) for name, side in sides.items()}
    return seconds | {"saelens": _seconds(saelens) * len(shards) / plan.record.shards_total}


def _seconds(side: Callable[[], object]) -> float:
    started = time.perf_counter()
    side()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, arguments.tokens)
        plan = plan_sites(folder, arguments.device, arguments.tokens, (SITE,), (SITE,))
        (folder / "store").mkdir()
        bucket = open_bucket(str(folder / "store"))
        print(f"tokens/s: {', '.join(SIDES)}")
        rounds = []
        for number in range(ROUNDS):
            seconds = measure(plan, arguments.device, folder / f"round-{number}", bucket)
            rounds.append(seconds)
            tokens = plan.record.tokens_total * (SHARDS - 1) / SHARDS
            print(" ".join(f"{tokens / seconds[side]:10.0f}" for side in SIDES), flush=True)
    numbers = {
        f"ratio_to_{side}": median(seconds[side] / seconds["capture"] for seconds in rounds) for side in SIDES[:-1]
    }
    print(", ".join(f"{name} {ratio:.2f}" for name, ratio in numbers.items()))
    if arguments.json:
        print(json.dumps(numbers))


if __name__ == "__main__":
    main()
