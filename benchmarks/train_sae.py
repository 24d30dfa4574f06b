"""Compares a trainer that reads its rows from the store with the same trainer with all rows in memory.

A run of bfloat16 rows of d_model 512 in eight shards of a local directory, BOS rows left out; SAELens's TopK trainer at
width 4,096 and k 32, batches of 4,096, on whatever device there is:

- store: the training feed as `actstore train-sae` has it, over as many epochs as the steps take;
- memory: one float32 tensor of the same rows, a random permutation of it an epoch;
- feed, memory_feed: both without a trainer, which shows what is left over.

Rounds alternate, and each is after one warm round. The ratio is of medians.

Predicted: a step takes 4,096 x 512 x 4,096 x 2 x 6 flops, 103 G, or 0.5 s and more on two cores; reading and gathering
its rows takes 1 to 2 ms of one core. So nothing is to be seen on a CPU: 0.98. On a GPU that does a step in 5 ms the
feed runs ahead on a thread of its own: 0.95.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.format.specification import RunRecord
from actstore_storage.runs.opening import create_run, open_run
from actstore_storage.runs.shard_writer import ShardWriter, TokenRows
from actstore_storage.runs.snapshot import Snapshot
from actstore_worker.models.dtypes import as_tensor
from actstore_worker.training.feed import RowFeed, rows_of
from actstore_worker.training.recipe import Training
from benchmarks.parts.synthetic_runs import synthetic_record

SITE, D_MODEL, POSITIONS = "resid_post.0", 512, 128
SHARDS, SEQUENCES = 8, 2048
WIDTH, K, BATCH_ROWS = 4096, 32, 4096
STEPS, ROUNDS = 8, 3


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments.add_argument("--sequences", type=int, default=SEQUENCES, help=f"of {POSITIONS} (default: %(default)s)")
    arguments.add_argument("--steps", type=int, default=STEPS, help="of a round (default: %(default)s)")
    options = arguments.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        snapshot = write(open_bucket(scratch), options.sequences)
        training = training_of(snapshot)
        held = in_memory(snapshot, training)
        ways: dict[str, Callable[[], float]] = {
            "store": lambda: from_store(snapshot, training, device, options.steps, trained=True),
            "memory": lambda: from_memory(snapshot, training, held, device, options.steps, trained=True),
            "feed": lambda: from_store(snapshot, training, device, options.steps, trained=False),
            "memory_feed": lambda: from_memory(snapshot, training, held, device, options.steps, trained=False),
        }
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS + 1):
            for name, way in ways.items():
                speeds[name].append(way())
    rows = {name: statistics.median(found[1:]) for name, found in speeds.items()}
    found: dict[str, float | str] = {
        "ratio_to_memory": round(rows["store"] / rows["memory"], 3),
        "feed_over_training": round(rows["feed"] / rows["store"], 1),
        **{f"{name}_rows_per_second": round(value) for name, value in rows.items()},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu x {torch.get_num_threads()}",
    }
    for name, value in found.items():
        print(f"{name:<32}{value:>22,}" if isinstance(value, int | float) else f"{name:<32}{value:>22}")
    if options.json:
        print(json.dumps(found))


def training_of(snapshot: Snapshot) -> Training:
    return Training(
        "benchmark", "run", snapshot.record.specification_sha256, SITE, "topk", WIDTH, K, rows=1 << 40,
        batch_rows=BATCH_ROWS,
    )  # fmt: skip


def from_store(snapshot: Snapshot, training: Training, device: torch.device, steps: int, *, trained: bool) -> float:
    with RowFeed(snapshot, training, device) as feed:
        return rows_per_second(snapshot, training, feed, device, steps, trained=trained)


def from_memory(
    snapshot: Snapshot, training: Training, held: Tensor, device: torch.device, steps: int, *, trained: bool
) -> float:
    def batches() -> Iterator[Tensor]:
        rows = held.to(device)
        while True:
            order = torch.randperm(len(rows), device=device)
            for first in range(0, len(rows) - BATCH_ROWS + 1, BATCH_ROWS):
                yield rows[order[first : first + BATCH_ROWS]]

    return rows_per_second(snapshot, training, batches(), device, steps, trained=trained)


def rows_per_second(
    snapshot: Snapshot, training: Training, rows: Iterator[Tensor], device: torch.device, steps: int, *, trained: bool
) -> float:
    """Over steps after the first, in which both sides allocate what they then keep."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from actstore_worker.training.building import build_trainer

        trainer = build_trainer(training, snapshot, iter(()), device)
    trainer.activation_scaler.scaling_factor = 1.0
    use = trainer.step if trained else len
    use(next(rows))
    settle(device)
    began = time.perf_counter()
    for _ in range(steps):
        use(next(rows))
    settle(device)
    return steps * BATCH_ROWS / (time.perf_counter() - began)


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_memory(snapshot: Snapshot, training: Training) -> Tensor:
    batches = rows_of(snapshot, training)
    return torch.cat([as_tensor(batch.sites[SITE], batch.dtypes[SITE]).float() for batch in batches])


def write(bucket: Bucket, sequences: int) -> Snapshot:
    """Gaussian rows; their values do not affect speed."""
    record = _record(sequences)
    create_run(bucket, record)
    rng = np.random.default_rng(0)
    for shard in range(record.shards_total):
        held = record.shard_sequences(shard)
        with ShardWriter(bucket, record, shard, "attempt") as writer:
            size = len(held) * POSITIONS
            row = held.start * POSITIONS + np.arange(size)
            values = rng.standard_normal((size, D_MODEL), dtype=np.float32).view(np.uint32) >> 16
            sequence, position = row // POSITIONS, (row % POSITIONS).astype(np.int32)
            tokens = TokenRows(sequence, position, sequence, np.zeros(size, np.int32), (position == 0).astype(np.uint8))
            writer.add(tokens, {SITE: values.astype(np.uint16)}, {}, {})
            writer.commit()
    return open_run(bucket, "run")


def _record(sequences: int) -> RunRecord:
    return synthetic_record(
        "run",
        sequences=sequences,
        sequence_tokens=POSITIONS,
        d_model=D_MODEL,
        dense_sites=(SITE,),
        dtype="bfloat16",
        sequences_per_shard=-(-sequences // SHARDS),
        sequences_per_batch=32,
    )


if __name__ == "__main__":
    main()
