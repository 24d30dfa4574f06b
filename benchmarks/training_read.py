"""Measures how fast stored rows reach a training loop in random order, and how well they are mixed.

1 GiB of bfloat16 rows of d_model 768 in sixteen shards of a local directory, batches of 4,096, all in the page cache:

- the loader, pools of eight row groups of 10,922 rows; in the first epoch checksums are verified, later not;
- a sequential read of one plain file of the same bytes;
- a memory map of that file with random rows, the least that shuffling can cost;
- SAELens's reader of cached activations with its mixing buffer, on the layout that `export_saelens` writes, a part of
  the rows, in float32 as it must be there.

Mixing is measured by the distance, in rows of the run, between two random rows of a batch, divided by that of random
rows of the whole run (so 1.0 is perfect), and by the number of the run's row groups that a batch has rows from.

Predicted: a core copies a row group out of the page cache at 7 GB/s and another gathers rows of 1.5 kB out of 128 MiB
as fast as a memory map does; the two overlap on two cores, so that most of a memory map's rows/s should be reached.

Measured: 0.56 to 0.61 of a memory map's 3.7 M rows/s; reading and gathering share the machine's memory bandwidth, and a
batch is fresh memory on both sides. Decoded by Arrow into fresh memory it was 0.36 to 0.44 on the same machine.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.format.specification import RunRecord
from actstore_storage.rows.export import export_saelens
from actstore_storage.rows.loader import TrainingLoader
from actstore_storage.runs.opening import create_run, open_run
from actstore_storage.runs.shard_writer import ShardWriter, TokenRows
from actstore_worker.models.dtypes import as_tensor
from benchmarks.parts.synthetic_runs import synthetic_record

SITE, D_MODEL, POSITIONS, BATCH_ROWS = "resid_post.0", 768, 128, 4096
SHARDS, ROWS = 16, (1 << 30) // (D_MODEL * 2) // (16 * POSITIONS) * (16 * POSITIONS)
SAELENS_SHARDS, SAELENS_BATCHES = 2, 20
ROUNDS = 3


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "store").mkdir()
        bucket = open_bucket(str(folder / "store"))
        write(bucket, "run", SHARDS, folder / "plain")
        write(bucket, "part", SAELENS_SHARDS, folder / "part-plain")
        export_saelens(open_run(bucket, "part"), SITE, folder / "saelens")
        batches = training_loader(bucket)
        loader(batches)  # verifies what later epochs read
        ways: dict[str, Callable[[], float]] = {
            "loader": lambda: loader(batches),
            "first_epoch": lambda: loader(training_loader(bucket)),
            "sequential": lambda: sequential(folder / "plain"),
            "memmap": lambda: memmap(folder / "plain"),
            "saelens": lambda: saelens(folder / "saelens"),
        }
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                speeds[name].append(way())
        rows = {name: statistics.median(found) for name, found in speeds.items()}
        mixing = mixed(bucket)
    found = {f"ratio_to_{name}": round(rows["loader"] / rows[name], 3) for name in ("sequential", "memmap", "saelens")}
    found |= {"first_epoch_ratio_to_memmap": round(rows["first_epoch"] / rows["memmap"], 3)}
    found |= {f"{name}_rows_per_second": round(value) for name, value in rows.items()}
    found |= {"loader_megabytes_per_second": round(rows["loader"] * D_MODEL * 2 / 1e6)} | mixing
    for name, value in found.items():
        print(f"{name:<34}{value:>14,}")
    if options.json:
        print(json.dumps(found))


def training_loader(bucket: Bucket, columns: tuple[str, ...] = ()) -> TrainingLoader:
    return TrainingLoader(open_run(bucket, "run"), (SITE,), batch_rows=BATCH_ROWS, columns=columns, exclude=frozenset())


def loader(batches: TrainingLoader) -> float:
    """Rows per second of an epoch, as tensors."""
    began, rows = time.perf_counter(), 0
    for batch in batches:
        rows += len(as_tensor(batch.sites[SITE], batch.dtypes[SITE]))
    if rows != ROWS:
        raise RuntimeError(f"{rows} of {ROWS} rows")
    return rows / (time.perf_counter() - began)


def sequential(path: Path) -> float:
    began = time.perf_counter()
    memory = bytearray(BATCH_ROWS * D_MODEL * 2)
    with path.open("rb", buffering=0) as file:
        while file.readinto(memory):
            pass
    return ROWS / (time.perf_counter() - began)


def memmap(path: Path) -> float:
    rows = np.memmap(path, np.uint16, "r", shape=(ROWS, D_MODEL))
    order = np.random.default_rng(0).permutation(ROWS)
    began = time.perf_counter()
    for first in range(0, ROWS, BATCH_ROWS):
        as_tensor(rows[order[first : first + BATCH_ROWS]], "bfloat16")
    return ROWS / (time.perf_counter() - began)


def saelens(folder: Path) -> float:
    """With its default buffer and mixing, after the buffer has been filled for the first time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sae_lens.training.activations_store import ActivationsStore

        store = ActivationsStore(
            model=None, dataset=None, streaming=False, hook_name="blocks.0.hook_resid_post", hook_head_index=None,
            context_size=POSITIONS, d_in=D_MODEL, n_batches_in_buffer=64, total_training_tokens=ROWS,
            store_batch_size_prompts=32, train_batch_size_tokens=BATCH_ROWS, prepend_bos=True,
            normalize_activations="none", device=torch.device("cpu"), dtype="float32",
            cached_activations_path=str(folder),
        )  # fmt: skip
        next(store)
        began = time.perf_counter()
        for _ in range(SAELENS_BATCHES):
            next(store)
    return SAELENS_BATCHES * BATCH_ROWS / (time.perf_counter() - began)


def mixed(bucket: Bucket) -> dict[str, float]:
    batches = training_loader(bucket, ("sequence", "position"))
    chosen, distances, groups = np.random.default_rng(1), [], []
    for batch in batches:
        row = chosen.permutation(batch.tokens["sequence"] * POSITIONS + batch.tokens["position"])
        distances.append(np.abs(np.diff(row)).mean())
        groups.append(len(np.unique(row // (ROWS // batches.row_groups))))
    random_distance = ROWS / 3  # for two independent uniform places
    return {
        "mixing_distance": round(float(np.mean(distances)) / random_distance, 3),
        "row_groups_in_a_batch": round(float(np.mean(groups)), 1),
        "row_groups": batches.row_groups,
    }


def write(bucket: Bucket, run: str, shards: int, plain: Path) -> None:
    """The run, and the same rows in one plain file."""
    record = _record(run, shards)
    create_run(bucket, record)
    rng = np.random.default_rng(0)
    with plain.open("wb") as file:
        for shard in range(shards):
            held = record.shard_sequences(shard)
            with ShardWriter(bucket, record, shard, "attempt") as writer:
                for first in range(held.start, held.stop, BATCH_ROWS // POSITIONS):
                    size = min(BATCH_ROWS // POSITIONS, held.stop - first) * POSITIONS
                    row = first * POSITIONS + np.arange(size)
                    values = rng.integers(0, 2**15, (size, D_MODEL), dtype=np.uint16)
                    sequence, position = row // POSITIONS, (row % POSITIONS).astype(np.int32)
                    flags = (position == 0).astype(np.uint8)
                    tokens = TokenRows(sequence, position, sequence, np.zeros(size, np.int32), flags)
                    writer.add(tokens, {SITE: values}, {}, {})
                    file.write(values.data)
                writer.commit()


def _record(run: str, shards: int) -> RunRecord:
    sequences = ROWS // POSITIONS // SHARDS * shards
    return synthetic_record(
        run,
        sequences=sequences,
        sequence_tokens=POSITIONS,
        d_model=D_MODEL,
        dense_sites=(SITE,),
        dtype="bfloat16",
        sequences_per_shard=sequences // shards,
        sequences_per_batch=BATCH_ROWS // POSITIONS,
    )


if __name__ == "__main__":
    main()
