"""Measures what a capture costs the host behind the model: `python -m benchmarks.capture_host --json`.

On a GPU the model takes about a microsecond a token, so what the host does with its outputs decides. Here the forward
pass is replaced by ready arrays, as the device would have copied them: norms of 24 sites with what is stored beside
them, one bfloat16 site of 768, and 32 nonzeros of an SAE of 16,384 features. The rest is a capture: windows of
sequences are put into order, and rows, moments, sketches and the index are written to a local bucket, hashed, synced
and committed.

Told in microseconds of one core a token, over all threads. What a product costs is the difference to the same shard
without it, in the same round. The other side is the limit: the same bytes, hashed and written to one file, and
synced.
"""

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.parts.ready_shards import (
    PRODUCTS,
    SHARDS_EACH,
    Ready,
    drawn_sequences,
    ready_batch,
    write_shard,
    write_shards,
)

ROUNDS = 5


def write_bytes(folder: Path, n_bytes: float) -> float:
    """The CPU microseconds a token of as many bytes that are hashed, written and synced."""
    tokens = len(drawn_sequences().tokens)
    data = np.random.default_rng(2).bytes(round(n_bytes * tokens))
    cpu = time.process_time()
    with (folder / "bytes").open("wb") as file:
        hashlib.sha256(data)
        file.write(data)
        os.fsync(file.fileno())
    return 1e6 * (time.process_time() - cpu) / tokens


def measure(folder: Path, ready: Ready) -> Iterator[dict[str, float]]:
    """One round after another."""
    for number in range(ROUNDS + 1):
        whole = write_shard(folder, tuple(PRODUCTS), ready, f"whole-{number}")
        found = {"us_per_token": whole.cpu_us, "wall_us_per_token": whole.wall_us, "bytes_per_token": whole.n_bytes}
        for left_out in PRODUCTS:
            rest = tuple(product for product in PRODUCTS if product != left_out)
            found[f"us_{left_out}"] = whole.cpu_us - write_shard(folder, rest, ready, f"no-{left_out}-{number}").cpu_us
        found["us_tokens"] = write_shard(folder, (), ready, f"tokens-{number}").cpu_us
        found["us_limit"] = write_bytes(folder, whole.n_bytes)
        if number:  # the first one warms up
            yield found


def tokens_per_second(folder: Path, processes: int) -> float:
    """Over processes of one thread of torch each, which have started and written a shard before."""
    with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        list(pool.map(write_shards, [folder] * processes, [f"warm-{processes}-{i}" for i in range(processes)]))
        began = time.perf_counter()
        list(pool.map(write_shards, [folder] * processes, [f"of-{processes}-{i}" for i in range(processes)]))
        return processes * SHARDS_EACH * len(drawn_sequences().tokens) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    parser.add_argument("--folder", type=Path, help="where it writes; None: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        rounds = list(measure(Path(name), ready_batch()))
        numbers = {key: median(found[key] for found in rounds) for key in rounds[0]}
        alone, two = (tokens_per_second(Path(name), processes) for processes in (1, 2))
    numbers |= {"tokens_per_second_1": alone, "tokens_per_second_2": two, "two_over_one": two / alone}
    numbers["limit_share"] = numbers["us_limit"] / numbers["us_per_token"]
    for key, value in numbers.items():
        print(f"{key:24} {value:12.2f}")
    if arguments.json:
        print(json.dumps(numbers))


if __name__ == "__main__":
    main()
