"""Compares reading and writing dense rows with the speed of the file system.

A shard of one dense site (192 MiB of bfloat16 rows, d_model 768) is written through ShardWriter and read through
`read_activations`, against a copy and a read of a plain file of the same bytes on the same file system. Copy and shard
are both flushed to the disk (fsync), as a commit demands; reads come from the page cache. The runs alternate, and each
number is a median.

Predicted: a write costs one encoding and checksum pass (measured alone: 1.0 GB/s, of which CRC-32 is a third) before
the flush, and SHA-256 (1.8 GB/s) beside it on another core; against a copy that is flushed at 1.0 GB/s, a ratio near
0.5. A read costs one copy and a CRC-32 pass (2.4 GB/s alone) against a plain read at 2 to 5 GB/s: near 0.6.

Measured on two cores with nothing else heavy on them (load 1.5, three times): copy 1.3 GB/s, write 0.50 to 0.59 GB/s,
ratio 0.40 to 0.46; plain read 1.5 to 1.7 GB/s, read 1.8 to 1.9 GB/s, ratio 1.1 to 1.2. The write computes
where a copy only waits for the kernel, so it suffers more from other work on the cores: at load 6 it ran at 0.2 GB/s
against a copy at 0.8. Pages of 256 KiB were written 1.6 times as fast as pages of a megabyte (at load 2, medians of
five). The read does better than predicted because `read_bytes` too spends most of its time on fresh pages of memory.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.format.specification import RunRecord
from actstore_storage.rows.reading import read_activations
from actstore_storage.runs.opening import create_run, open_run
from actstore_storage.runs.shard_writer import ShardWriter, TokenRows
from benchmarks.parts.synthetic_runs import synthetic_record

D_MODEL, POSITIONS, BATCH_ROWS = 768, 128, 4096
SHARD_BYTES = 192 << 20
ROWS = SHARD_BYTES // (D_MODEL * 2) // BATCH_ROWS * BATCH_ROWS
MEGABYTES = ROWS * D_MODEL * 2 / 1e6
RUNS = 5


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments.add_argument("--folder", help="on the file system to measure; a temporary folder by default")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        speeds = measure(Path(folder))
    for name, speed in speeds.items():
        print(f"{name:<14}{speed:8.0f} MB/s")
    write_ratio = speeds["write shard"] / speeds["copy file"]
    read_ratio = speeds["read shard"] / speeds["read file"]
    print(f"{'write_ratio':<14}{write_ratio:8.2f}\n{'read_ratio':<14}{read_ratio:8.2f}")
    if options.json:
        named = {f"{name.replace(' ', '_')}_megabytes_per_second": round(speed, 1) for name, speed in speeds.items()}
        ratios = {"write_ratio": round(write_ratio, 3), "read_ratio": round(read_ratio, 3)}
        print(json.dumps({**ratios, **named, "megabytes": round(MEGABYTES, 1), "runs": RUNS}))


def measure(folder: Path) -> dict[str, float]:
    """Median MB/s of each of the four, taken in turn."""
    (folder / "store").mkdir()
    bucket = open_bucket(str(folder / "store"))
    values = np.random.default_rng(0).integers(0, 2**15, (ROWS, D_MODEL), dtype=np.uint16)
    (folder / "plain").write_bytes(values.tobytes())
    seconds: dict[str, list[float]] = {name: [] for name in ("copy file", "write shard", "read file", "read shard")}
    for number in range(RUNS + 1):  # the first is the warm-up
        record = _record(f"run-{number}")
        create_run(bucket, record)
        works: list[Callable[[], object]] = [
            lambda: _copy(folder / "plain", folder / "copy"),
            lambda record=record: _write(bucket, record, values),
            lambda: (folder / "plain").read_bytes(),
            lambda record=record: _read(bucket, record.run),
        ]
        for name, work in zip(seconds, works, strict=True):
            began = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - began)
        shutil.rmtree(folder / "store" / "runs")
    return {name: MEGABYTES / statistics.median(taken[1:]) for name, taken in seconds.items()}


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reading, target.open("wb") as writing:
        shutil.copyfileobj(reading, writing, 1 << 20)
        os.fsync(writing.fileno())


def _write(bucket: Bucket, record: RunRecord, values: np.ndarray) -> None:
    with ShardWriter(bucket, record, 0, "attempt") as writer:
        for first in range(0, ROWS, BATCH_ROWS):
            row = np.arange(first, first + BATCH_ROWS)
            sequence, position = row // POSITIONS, (row % POSITIONS).astype(np.int32)
            token = np.zeros(BATCH_ROWS, np.int32)
            tokens = TokenRows(sequence, position, sequence, token, (position == 0).astype(np.uint8))
            norms = np.ones(BATCH_ROWS, np.float32)  # as in runs by default; 0.3 % of the bytes
            dense = {"resid_post.0": values[first : first + BATCH_ROWS]}
            writer.add(tokens, dense, {"resid_post.0": norms}, {})
        if not writer.commit():
            raise RuntimeError("nobody else writes here")


def _read(bucket: Bucket, run: str) -> None:
    rows = sum(batch.num_rows for batch in read_activations(open_run(bucket, run), "resid_post.0"))
    if rows != ROWS:
        raise RuntimeError(f"read {rows} of {ROWS} rows")


def _record(run: str) -> RunRecord:
    sequences = ROWS // POSITIONS
    return synthetic_record(
        run,
        sequences=sequences,
        sequence_tokens=POSITIONS,
        d_model=D_MODEL,
        dense_sites=("resid_post.0",),
        norm_sites=("resid_post.0",),
        dtype="bfloat16",
        sequences_per_shard=sequences,
        sequences_per_batch=BATCH_ROWS // POSITIONS,
    )


if __name__ == "__main__":
    main()
