"""Runs whose dense rows are sums of a few directions of a planted dictionary, written as the workers would."""

from dataclasses import dataclass

import numpy as np

from actstore_storage.bucket import Bucket
from actstore_storage.format.specification import RunRecord, Specification
from actstore_storage.format.tokens import BOS
from actstore_storage.runs.opening import create_run
from actstore_storage.runs.shard_writer import ShardWriter, TokenRows

SITE, TOKENS = "resid_post.1", 65
# BOS rows are like those of real models: long, all alike, and nothing of the dictionary.
BOS_NORM = 300.0


@dataclass(frozen=True)
class PlantedRows:
    """`dictionary` [feature, d] has rows of norm 1; `rows` [row, d] are in the run's order, BOS included."""

    record: RunRecord
    dictionary: np.ndarray
    rows: np.ndarray
    tokens: TokenRows


def write_planted_rows(
    bucket: Bucket,
    run: str = "planted",
    *,
    d: int = 32,
    features: int = 64,
    active: float = 3.0,
    sequences: int = 60,
    shards: int = 3,
    dtype: str = "float32",
    seed: int = 0,
) -> PlantedRows:
    """Each feature is on a row with probability `active / features`, and then between 0.5 and 1.5 high."""
    planted = plant_rows(run, d, features, active, sequences, shards, dtype, seed)
    create_run(bucket, planted.record)
    for shard in range(planted.record.shards_total):
        write_planted_shard(bucket, planted, shard)
    return planted


def plant_rows(
    run: str, d: int, features: int, active: float, sequences: int, shards: int, dtype: str, seed: int
) -> PlantedRows:
    rng = np.random.default_rng(seed)
    dictionary = rng.standard_normal((features, d)).astype(np.float32)
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    size = sequences * TOKENS
    position = np.tile(np.arange(TOKENS, dtype=np.int32), sequences)
    heights = (rng.random((size, features)) < active / features) * rng.uniform(0.5, 1.5, (size, features))
    rows = heights.astype(np.float32) @ dictionary
    rows[position == 0] = BOS_NORM / d**0.5
    if dtype == "bfloat16":
        rows = (rows.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    sequence = np.repeat(np.arange(sequences, dtype=np.int64), TOKENS)
    flags = np.where(position == 0, BOS, 0).astype(np.uint8)
    tokens = TokenRows(sequence, position, sequence, np.zeros(size, np.int32), flags)
    return PlantedRows(_record(run, d, sequences, shards, dtype), dictionary, rows, tokens)


def write_planted_shard(bucket: Bucket, planted: PlantedRows, shard: int) -> None:
    held = planted.record.shard_sequences(shard)
    own = slice(held.start * TOKENS, held.stop * TOKENS)
    values = planted.rows[own]
    if planted.record.specification.dtype == "bfloat16":
        values = (values.view(np.uint32) >> 16).astype(np.uint16)
    tokens = TokenRows(*(getattr(planted.tokens, name)[own] for name in TokenRows.__dataclass_fields__))
    with ShardWriter(bucket, planted.record, shard, "attempt") as writer:
        writer.add(tokens, {SITE: values}, {}, {})
        assert writer.commit()


def _record(run: str, d: int, sequences: int, shards: int, dtype: str) -> RunRecord:
    specification = Specification(
        model="model", model_revision="", weights_sha256="a" * 64, tokenizer_sha256="b" * 64, dataset="planted",
        dataset_sha256="c" * 64, text_field="text", max_tokens=None, context_length=TOKENS, prepend_bos=True,
        dense_sites=(SITE,), norm_sites=(), saes=(), dtype=dtype, sequences_per_shard=-(-sequences // shards),
        sequences_per_batch=8,
    )  # fmt: skip
    rows = sequences * TOKENS
    return RunRecord(run, specification, specification.sha256, sequences, rows, 2, d, "none", "cpu", "test")
