"""Shards whose forward passes have ready outputs, as a device copies them: what is left is the host's work."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
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
SEQUENCES, LENGTH, BATCH = 512, 256, 16
SHARDS_EACH, BOS_ID = 3, 0
# What a shard may store, as fields of the specification.
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
        columns = 2 * len(KINDS) * LAYERS  # norms and centred norms
        scale = np.exp(np.linspace(1, 4, columns))[:, None]
        norms = (scale * chosen.lognormal(0, 0.3, (columns, rows))).astype(np.float32)
        dense = torch.from_numpy(chosen.normal(size=(rows, WIDTH)).astype(np.float32)).bfloat16()
        feature = np.sort(chosen.integers(0, D_SAE - NONZEROS, (rows, NONZEROS)), axis=1) + np.arange(NONZEROS)
        nonzeros = SparseFeatures(
            np.repeat(np.arange(rows), NONZEROS),
            feature.ravel().astype(np.int32),
            chosen.exponential(size=rows * NONZEROS).astype(np.float32) + np.float32(0.01),
        )
        return cls(norms, dense.view(torch.uint16).numpy(), nonzeros)


ready_batch = lru_cache(1)(Ready.drawn)


class ReadyCapture(ShardCapture):
    """A shard's capture whose forward passes have ready outputs."""

    def __init__(self, record: RunRecord, ready: Ready) -> None:
        asked = record.specification
        self._record, self._ready = record, ready
        # Only named: batches are as on a GPU.
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


def write_shards(folder: Path, name: str) -> None:
    """What one of several processes does; each draws its own arrays before."""
    for number in range(SHARDS_EACH):
        write_shard(folder, tuple(PRODUCTS), ready_batch(), f"{name}-{number}")
