"""Writes a run with the features of a large SAE, merged as workers do, and the same rows in other tools' layouts."""

import gc
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.features.segments import Segment, chosen_segments
from actstore_storage.format.specification import RunRecord, SaeRecord
from actstore_storage.format.tokens import BOS, SPECIAL
from actstore_storage.registry.models import ModelRecord, register_model
from actstore_storage.runs.feature_index import SparseFeatures
from actstore_storage.runs.opening import create_run, open_run
from actstore_storage.runs.shard_writer import ShardWriter, TokenRows
from actstore_storage.upkeep.folding import fold_commits
from actstore_storage.upkeep.merging import finish_merge, merge_part, plan_merges
from benchmarks.parts.synthetic_runs import synthetic_record

RUN, SAE, D_SAE = "run", "sae", 16_384
# Features of a token, drawn with replacement; duplicates are removed.
DRAWS = 33
SEQUENCE_TOKENS, BATCH_SEQUENCES = 256, 32
VOCABULARY_SIZE = 50_304
SHARD_NONZEROS = 4_000_000
PROCESSES = 2
# delphi's default number of files for a module's features.
DELPHI_FILES = 5
# The densest features fire on a fifth of all tokens, the rarest on one of 3,500.
ZIPF_OFFSET = 20


@dataclass(frozen=True)
class Peers:
    """One Parquet file by feature for each row-group size; delphi's files in order of feature."""

    parquet: dict[int, Path]
    delphi: list[Path]


@dataclass(frozen=True)
class Rows:
    """What a run stores beside features: a dense site in bfloat16, or none, and sites with norms."""

    d_model: int = 1
    dense_sites: tuple[str, ...] = ()
    norm_sites: tuple[str, ...] = ()


def write_run(address: str, nonzeros: int, rows: Rows = Rows(), shard_nonzeros: int = SHARD_NONZEROS) -> None:
    """Writes a run with at least this many nonzeros, in shards, merged into one segment, with its commits folded."""
    bucket = open_bucket(address)
    record = _record(nonzeros, rows, shard_nonzeros)
    create_run(bucket, record)
    model = ModelRecord("model", "", "0" * 64, "0" * 64, "gpt_neox", 1, 1, 1, VOCABULARY_SIZE, SEQUENCE_TOKENS)
    register_model(bucket, model, [f"t{token}" for token in range(VOCABULARY_SIZE)])
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        list(pool.map(partial(_write_shard, address, record), range(record.shards_total)))
        [merge] = plan_merges(open_run(bucket, RUN), SAE, "merge")
        parts = list(pool.map(partial(merge_part, bucket, merge), range(len(merge.features))))
    if not finish_merge(bucket, merge, parts):
        raise RuntimeError("another merge stands")
    fold_commits(open_run(bucket, RUN))


def segment_of(bucket: Bucket) -> Segment:
    [segment] = chosen_segments(open_run(bucket, RUN), SAE)
    return segment


def write_peers(bucket: Bucket, folder: Path, row_groups: tuple[int, ...]) -> Peers:
    """Rows by feature, then activation, for all token classes; in row groups of each of these sizes."""
    segment = segment_of(bucket)
    files = {size: folder / f"by-feature-{size}.parquet" for size in row_groups}
    schema = pa.schema(list(_COLUMNS.items()))
    writers = {size: pq.ParquetWriter(path, schema) for size, path in files.items()}
    for part in segment.parts:
        with bucket.open(part.object.key) as source:
            table = pq.read_table(source, columns=list(_COLUMNS))
        table = table.take(np.lexsort((-table["activation"].to_numpy(), table["feature"].to_numpy()))).cast(schema)
        for size, writer in writers.items():
            writer.write_table(table, row_group_size=size)
    for writer in writers.values():
        writer.close()
    ends = np.linspace(0, D_SAE, DELPHI_FILES + 1).astype(int)
    delphi = [_write_delphi(bucket, segment, folder, *ends[i : i + 2].tolist()) for i in range(DELPHI_FILES)]
    return Peers(files, delphi)


_COLUMNS = {
    "feature": pa.int32(), "activation": pa.float32(), "sequence": pa.int64(), "position": pa.int32(),
    "token": pa.int32(), "flags": pa.uint8(),
}  # fmt: skip


def _write_delphi(bucket: Bucket, segment: Segment, folder: Path, first: int, end: int) -> Path:
    """Locations (sequence, position, feature) and activations, as delphi caches them; delphi's own are in order of
    token.
    """
    locations, activations = [], []
    for part in segment.parts:
        if part.first_feature < end and first < part.end_feature:
            with bucket.open(part.object.key) as source:
                table = pq.read_table(source, columns=list(_COLUMNS))
            chosen = table.filter((pa.compute.field("feature") >= first) & (pa.compute.field("feature") < end))
            locations.append(np.stack([chosen[name].to_numpy() for name in _LOCATION], axis=1).astype(np.uint32))
            activations.append(chosen["activation"].to_numpy())
    path = folder / f"{first}_{end - 1}.safetensors"
    save_file({"locations": np.concatenate(locations), "activations": np.concatenate(activations)}, path)
    return path


_LOCATION = ("sequence", "position", "feature")


def _write_shard(address: str, record: RunRecord, shard: int) -> None:
    rng = np.random.default_rng(shard)
    weights = 1 / (np.arange(D_SAE) + ZIPF_OFFSET)
    # Dense and rare features are in random order.
    ends = np.cumsum(np.random.default_rng(0).permutation(weights / weights.sum()))
    with ShardWriter(open_bucket(address), record, shard, "attempt") as writer:
        sequences = record.shard_sequences(shard)
        for first in range(sequences.start, sequences.stop, BATCH_SEQUENCES):
            batch = range(first, min(first + BATCH_SEQUENCES, sequences.stop))
            tokens = len(batch) * SEQUENCE_TOKENS
            features = {SAE: _features(rng, ends, tokens)}
            writer.add(_tokens(rng, batch), _dense(rng, record, tokens), _norms(rng, record, tokens), features)
        writer.commit()
    gc.collect()


def _dense(rng: np.random.Generator, record: RunRecord, tokens: int) -> dict[str, np.ndarray]:
    """Positive finite values; the bits of bfloat16."""
    shape = (tokens, record.d_model)
    return {site: rng.integers(0, 2**14, shape, np.uint16) for site in record.specification.dense_sites}


def _norms(rng: np.random.Generator, record: RunRecord, tokens: int) -> dict[str, np.ndarray]:
    return {site: rng.lognormal(size=tokens).astype(np.float32) for site in record.specification.norm_sites}


def _tokens(rng: np.random.Generator, sequences: range) -> TokenRows:
    rows = len(sequences) * SEQUENCE_TOKENS
    sequence = np.repeat(np.arange(sequences.start, sequences.stop), SEQUENCE_TOKENS)
    position = np.tile(np.arange(SEQUENCE_TOKENS, dtype=np.int32), len(sequences))
    flags = np.where(position == 0, BOS, np.where(rng.random(rows) < 1 / 500, SPECIAL, 0)).astype(np.uint8)
    token = rng.integers(0, VOCABULARY_SIZE, rows).astype(np.int32)
    return TokenRows(sequence, position, sequence, token, flags)


def _features(rng: np.random.Generator, ends: np.ndarray, rows: int) -> SparseFeatures:
    drawn = np.searchsorted(ends, rng.random(rows * DRAWS)).clip(max=D_SAE - 1)
    keys = np.unique(np.repeat(np.arange(rows), DRAWS) * D_SAE + drawn)
    row, feature = np.divmod(keys, D_SAE)
    return SparseFeatures(row, feature.astype(np.int32), rng.lognormal(size=len(keys)).astype(np.float32))


def _record(nonzeros: int, rows: Rows, shard_nonzeros: int) -> RunRecord:
    shards = -(-nonzeros // shard_nonzeros)
    # A token has a little more than 32 nonzeros.
    sequences = -(-nonzeros // (shards * 32 * SEQUENCE_TOKENS)) * shards
    return synthetic_record(
        RUN,
        sequences=sequences,
        sequence_tokens=SEQUENCE_TOKENS,
        d_model=rows.d_model,
        layers=max(1, len(rows.norm_sites)),
        dense_sites=rows.dense_sites,
        norm_sites=rows.norm_sites,
        dtype="bfloat16",
        saes=(SaeRecord(SAE, "0" * 64, "resid_post.0", D_SAE),),
        sequences_per_shard=sequences // shards,
        sequences_per_batch=BATCH_SEQUENCES,
    )
