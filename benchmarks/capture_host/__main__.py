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
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actstore_storage.bucket.opening import open_bucket
from actstore_storage.format.norm_columns import columns_beside
from actstore_storage.format.sites import parse_site
from actstore_storage.format.specification import RunRecord, SaeRecord
from actstore_storage.runs.document_sources import DocumentSources
from actstore_storage.runs.feature_index import SparseFeatures
from actstore_storage.runs.opening import create_run, read_commit
from actstore_storage.runs.shard_writer import ShardWriter
from actstore_worker.capture.shards.host_copies import OnHost
from actstore_worker.capture.shards.shard import CapturedBatch, ShardCapture
from actstore_worker.datasets.batching import Batch
from actstore_worker.datasets.sequences import TokenSequences
from benchmarks.parts.synthetic_runs import synthetic_record

LAYERS, WIDTH, D_SAE, NONZEROS = 12, 768, 16_384, 32
KINDS = ("resid_mid", "resid_post")
SITE, SAE = "resid_post.6", "sae"
SEQUENCES, LENGTH, BATCH, ROUNDS = 512, 256, 16, 5
SHARDS_EACH, BOS_ID = 3, 0
# A shard's products by the name of what its bytes and time are told under.
PRODUCTS: dict[str, dict[str, Any]] = {
    "norms": {"norm_sites": tuple(f"{kind}.{layer}" for layer in range(LAYERS) for kind in KINDS)},
    "dense": {"dense_sites": (SITE,), "storage_dtype": "bfloat16"},
    "features": {"saes": (SaeRecord(SAE, "0" * 64, SITE, D_SAE),)},
}


@dataclass(frozen=True)
class Ready:
    """What a device gives of a batch, for as many rows as a batch can have."""

    norms: NDArray[np.float32]
    dense: NDArray[np.uint16]
    features: SparseFeatures

    @classmethod
    def drawn(cls) -> "Ready":
        chosen, rows = np.random.default_rng(0), BATCH * LENGTH
        scale = np.exp(np.linspace(1, 4, 1 + len(KINDS) * LAYERS * 4))[:, None]
        norms = (scale * chosen.lognormal(0, 0.3, (len(scale), rows))).astype(np.float32)
        dense = torch.from_numpy(chosen.normal(size=(rows, WIDTH)).astype(np.float32)).bfloat16()
        feature = np.sort(chosen.integers(0, D_SAE - NONZEROS, (rows, NONZEROS)), axis=1) + np.arange(NONZEROS)
        nonzeros = SparseFeatures(
            np.repeat(np.arange(rows), NONZEROS),
            feature.ravel().astype(np.int32),
            chosen.exponential(size=rows * NONZEROS).astype(np.float32) + np.float32(0.01),
        )
        return cls(norms, dense.view(torch.uint16).numpy(), nonzeros)


_drawn = lru_cache(1)(Ready.drawn)


class ReadyCapture(ShardCapture):
    """A shard's capture whose forward passes have ready outputs."""

    def __init__(self, record: RunRecord, ready: Ready) -> None:
        asked = record.specification
        self._record, self._ready = record, ready
        self._device, self._lanes, self._threads = torch.device("cuda"), 1, torch.get_num_threads()
        self._norms = {parse_site(site) for site in asked.norm_sites}
        self.norm_columns = columns_beside(asked.norm_sites, KINDS)
        self._names = [*asked.norm_sites, *(column.name for column in self.norm_columns)]
        self.check = lambda: None

    def capture(self, batch: Batch, widened: frozenset[str] = frozenset()) -> CapturedBatch:  # noqa: ARG002
        captured = CapturedBatch(batch, batch.sequences.rows(BOS_ID, frozenset({BOS_ID})))
        rows, asked = len(captured.tokens.token), self._record.specification
        for number, name in enumerate(self._names):
            captured.norms[name] = OnHost(torch.from_numpy(self._ready.norms[number, :rows]))
        if asked.dense_sites:
            captured.dense[SITE] = OnHost(torch.from_numpy(self._ready.dense[:rows]))
        if asked.saes:
            found, end = self._ready.features, rows * NONZEROS
            captured.features[SAE] = SparseFeatures(found.row[:end], found.feature[:end], found.activation[:end])
        return captured


def record_with(products: Sequence[str], run: str) -> RunRecord:
    stored = {name: value for product in products for name, value in PRODUCTS[product].items()}
    shard = {"sequences_per_shard": SEQUENCES, "sequences_per_batch": BATCH}
    return synthetic_record(
        run, sequences=SEQUENCES, sequence_tokens=LENGTH, d_model=WIDTH, layers=LAYERS, **shard, **stored
    )


def drawn_sequences() -> TokenSequences:
    """Three quarters are of full length, as in a corpus of long documents; the others end somewhere."""
    chosen, numbers = np.random.default_rng(1), np.arange(SEQUENCES)
    lengths = np.where(chosen.random(SEQUENCES) < 0.75, LENGTH, chosen.integers(2, LENGTH, SEQUENCES))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = chosen.integers(1, 50_000, int(offsets[-1])).astype(np.int32)
    tokens[offsets[:-1]] = BOS_ID
    return TokenSequences(tokens, offsets, numbers, numbers)


@dataclass(frozen=True)
class Cost:
    """Of one token of a shard: microseconds of one core, those of the clock, and bytes that are stored."""

    cpu_us: float
    wall_us: float
    n_bytes: float


def write_shard(folder: Path, products: Sequence[str], ready: Ready, run: str) -> Cost:
    bucket, sequences = open_bucket(str(folder)), drawn_sequences()
    record = create_run(bucket, record_with(products, run))
    sources = DocumentSources(sequences.numbers, np.full(SEQUENCES, "file", object), sequences.numbers)
    capture, tokens = ReadyCapture(record, ready), len(sequences.tokens)
    began, cpu = time.perf_counter(), time.process_time()
    with ShardWriter(bucket, record, 0, "attempt", (), capture.norm_columns, sources) as writer:
        capture.stream(writer, sequences)
        writer.commit()
    used, wall = time.process_time() - cpu, time.perf_counter() - began
    stored = sum(item.bytes for item in read_commit(bucket, record, 0).objects.values())
    return Cost(1e6 * used / tokens, 1e6 * wall / tokens, stored / tokens)


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


def write_shards(folder: Path, name: str) -> None:
    """What one of several processes does; each draws its own arrays before."""
    for number in range(SHARDS_EACH):
        write_shard(folder, tuple(PRODUCTS), _drawn(), f"{name}-{number}")


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
        rounds = list(measure(Path(name), _drawn()))
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
