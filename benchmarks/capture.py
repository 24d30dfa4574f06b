"""Measures the cost of a capture relative to its forward passes: `python -m benchmarks.capture --json`.

Both sides run the same batches of real text (the standard library of this Python) through the same model on the same
device, in turns, round after round, and the ratios of each round are compared, because a machine's speed drifts.
Forward: the trunk in transformers, without logits, stopped after the last layer that the run needs. Capture: a
capture worker with norms of every site of every layer, one dense site and the features of a TopK SAE, written to a
local bucket, synced and committed. Neither side includes loading the model.

Predicted for the bundled model on two cores, in us of one core per token: forward 35 to 40; the SAE's matrix 3 and
finding its 16 largest 2.5; norms 0.5; writing 1; sorting and writing the index and syncing 3.5, in parallel with the
next shard's forward pass. So at best 0.8 of a forward pass that keeps both cores busy, which is
`ratio_to_forward_in_lanes`: the same batches, split over single threads. The plain forward pass is slower than that,
because threads that split every small operation wait for each other, and capture splits its batches, so
`ratio_to_forward` is higher. docs/explanation/benchmarks.md has the measurements.
"""

import argparse
import json
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.format.sites import parse_site
from actstore_storage.format.specification import RunRecord
from actstore_storage.runs.opening import create_run
from actstore_worker.capture.plan import Plan, PlanSettings, plan_capture
from actstore_worker.capture.shards.tasks import ShardTask
from actstore_worker.capture.shards.worker import TASKS, CaptureWorker
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.places import DatasetPlaces
from actstore_worker.datasets.sequences import TokenSequences
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.taps import visit
from tests.capture_requests import capture_request
from tests.capturing import padded

MODELS = Path(__file__).parents[1] / "models"
MODEL, SITE, SAE = "pystdlib", "resid_post.1", "pystdlib-resid_post.1"
TOKENS = 262_144
ROUNDS = 7
NUMBERS = (
    "tokens_per_second_forward",
    "tokens_per_second_forward_in_lanes",
    "tokens_per_second_capture",
    "ratio_to_forward",
    "ratio_to_forward_in_lanes",
)


def write_text(folder: Path) -> None:
    """One JSON line per file, with as many files as the tokens need."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    with (folder / "stdlib.jsonl").open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps({"text": file.read_text(encoding="utf-8")}) + "\n" for file in files)


def prepare(folder: Path, model_name: str, device: str, tokens: int) -> Plan:
    write_text(folder)
    name, _, revision = model_name.partition("@")
    request = capture_request(
        name, "stdlib.jsonl", model_revision=revision, dense_sites=(SITE,), saes=(SAE,), max_tokens=tokens
    )
    return plan_capture(request, ModelCatalog((MODELS,)), PlanSettings(DatasetPlaces((folder,)), device))


def forward_seconds(model: LanguageModel, plan: Plan, shard: int) -> float:
    asked = plan.record.specification
    last = max(map(parse_site, asked.norm_sites), key=lambda site: (site.layer, site.kind == "resid_post"))
    own = plan.shard_sequences(shard)
    started = time.perf_counter()
    for batch in own.batches(asked.sequences_per_batch):
        ids = torch.from_numpy(padded(batch)[0]).to(model.device)
        visit(model, ids, None, {last}, lambda *_: None)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def lanes_seconds(model: LanguageModel, plan: Plan, shard: int) -> float:
    """The same forward passes, each batch split over single threads, as capture runs them on a CPU."""
    asked, threads = plan.record.specification, torch.get_num_threads()
    own = plan.shard_sequences(shard)
    trunk = model.family.decoder(model.module)

    @torch.inference_mode()
    def run(batch: TokenSequences) -> None:
        trunk(input_ids=torch.from_numpy(padded(batch)[0]), use_cache=False)

    started = time.perf_counter()
    with ThreadPoolExecutor(threads, "lane", torch.set_num_threads, (1,)) as lanes:
        list(lanes.map(run, own.batches(-(-asked.sequences_per_batch // threads))))
    seconds = time.perf_counter() - started
    torch.set_num_threads(threads)
    return seconds


def capture_seconds(worker: CaptureWorker, plan: Plan, record: RunRecord, shards: range) -> float:
    """As many shards in progress at once as the coordinator gives a worker."""
    tasks = [
        ShardTask(
            record,
            plan.model_source,
            plan.sae_paths,
            shard,
            plan.shard_sequences(shard),
            "benchmark",
            plan.shard_sources(shard),
        )
        for shard in shards
    ]
    started = time.perf_counter()
    with ThreadPoolExecutor(TASKS) as pool:
        list(pool.map(worker.capture, tasks))
    return time.perf_counter() - started


def measure(plan: Plan, device: str, bucket: Bucket) -> Iterator[tuple[float, float, float]]:
    """Tokens/s of forward, of forward in lanes and of capture, over all shards but the first, round after round."""
    model = load_model(plan.model_source, device=torch.device(device))
    shards = range(1, plan.record.shards_total)
    tokens = sum(len(plan.shard_sequences(shard).tokens) for shard in shards)
    for number in range(ROUNDS):
        record = create_run(bucket, replace(plan.record, run=f"round-{number}"))
        worker = CaptureWorker(bucket, torch.device(device))
        capture_seconds(worker, plan, record, range(1))  # loads and warms up
        forward = sum(forward_seconds(model, plan, shard) for shard in shards)
        lanes = sum(lanes_seconds(model, plan, shard) for shard in shards) if device == "cpu" else forward
        yield tokens / forward, tokens / lanes, tokens / capture_seconds(worker, plan, record, shards)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    parser.add_argument("--model", default=MODEL, help="NAME or NAME@REVISION below models/")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan = prepare(folder, arguments.model, arguments.device, arguments.tokens)
        (folder / "store").mkdir()
        rounds = []
        print(f"{arguments.model}, tokens/s: forward, forward in lanes, capture")
        for forward, lanes, captured in measure(plan, arguments.device, open_bucket(str(folder / "store"))):
            rounds.append((forward, lanes, captured, captured / forward, captured / lanes))
            print(f"{forward:10.0f} {lanes:10.0f} {captured:10.0f}", flush=True)
    medians = dict(zip(NUMBERS, (median(column) for column in zip(*rounds, strict=True)), strict=True))
    print(f"{arguments.model} on {arguments.device}: {medians['ratio_to_forward']:.2f} of the bare forward pass")
    if arguments.json:
        print(json.dumps(medians))


if __name__ == "__main__":
    main()
