"""A small run with planted content, written into any bucket as the workers would.

What it holds can be told without running anything:

- Norms: a text token's norm is `2 * 1.5**layer * (1 + position / 10)`, so the mean norm grows by exactly 1.5 a layer;
  BOS has 1000 at every layer, and the one special token 500. Centred norms are half of that.
- Feature FIRING rises with sequence and position over text tokens; BOS_ONLY fires on BOS alone; SILENT never;
  feature 0 fires on everything, with 0.25.
- Sequences are of 4 to 16 tokens, BOS first; sequences 2 and 3 are one document cut in two.
- Documents are rows of a file, but for the last one, which is a file.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from actstore_storage.bucket import Bucket
from actstore_storage.format.norm_columns import CENTRED_L2, NormColumn
from actstore_storage.format.sites import Site
from actstore_storage.format.specification import RunRecord, SaeRecord, Specification
from actstore_storage.format.tokens import BOS, SPECIAL
from actstore_storage.registry.models import ModelRecord, register_model
from actstore_storage.registry.saes import SaeModelRecord, register_sae
from actstore_storage.runs.document_sources import WHOLE, DocumentSources
from actstore_storage.runs.feature_index import SparseFeatures
from actstore_storage.runs.opening import create_run
from actstore_storage.runs.shard_writer import ShardWriter, TokenRows

LENGTHS = (16, 5, 16, 9, 4, 12, 7)
DOCUMENTS = (0, 1, 2, 2, 3, 4, 5)
LAYERS, D_MODEL, D_SAE, VOCABULARY = 3, 8, 12, 40
GROWTH = 1.5
BOS_NORM, SPECIAL_NORM = 1000.0, 500.0
EVERYWHERE, FIRING, BOS_ONLY, SILENT = 0, 3, 5, 7
DENSE_SITE, SAE, MODEL = "resid_post.1", "planted-sae", "planted-model"
TOKEN_TEXTS = ("<bos>", "<end>", *(f" word{token}" for token in range(2, VOCABULARY)))
CENTRED = tuple(NormColumn(CENTRED_L2, Site(layer, "resid_post")) for layer in range(LAYERS))
SOURCES = DocumentSources(
    np.arange(6), np.array([*["in/part-0.jsonl"] * 5, "<b>.txt"], np.object_), np.array([0, 1, 2, 3, 4, WHOLE])
)
SPECIAL_AT = (5, 11)  # (sequence, position) of the one <end>


@dataclass(frozen=True)
class StoredRun:
    """What was written, with a row a token: norms [rows], dense [rows, d_model], features [rows, d_sae]."""

    record: RunRecord
    tokens: TokenRows
    dense: dict[str, np.ndarray]
    norms: dict[str, np.ndarray]
    features: dict[str, np.ndarray]

    def rows(self, excluded_flags: int = BOS) -> np.ndarray:
        """Which rows count when tokens with any of these flags do not: a boolean for each row."""
        return (self.tokens.flags & excluded_flags) == 0


def write_stored_run(
    bucket: Bucket,
    run: str = "planted",
    dtype: str = "float32",
    shards: Iterable[int] | None = None,
    *,
    revision: str = "",
    scale: float = 1.0,
    sources: DocumentSources | None = SOURCES,
) -> StoredRun:
    """Registers model and SAE, creates the run, and commits these shards (None: all of them).

    `scale` multiplies every norm, as of a model at another point of its training, which is then another `revision`.
    Without `sources` it is as one that was captured before there were any.
    """
    stored = plant(run, dtype, revision, scale)
    if sources is None:
        stored = replace(stored, record=replace(stored.record, document_sources=False))
    create_run(bucket, stored.record)
    register_model(bucket, _model_record(), TOKEN_TEXTS)
    register_sae(bucket, _sae_model_record())
    for shard in range(stored.record.shards_total) if shards is None else shards:
        _write_shard(bucket, stored, shard, sources)
    return stored


def plant(run: str = "planted", dtype: str = "float32", revision: str = "", scale: float = 1.0) -> StoredRun:
    record = _record(run, dtype, revision)
    tokens = _tokens()
    norms = {f"resid_post.{layer}": np.float32(scale) * _norms(tokens, layer) for layer in range(LAYERS)}
    # Directions that differ by token; of the length that the norms say, up to the rounding of the dtype.
    angles = tokens.token[:, None] * (1.0 + np.arange(D_MODEL))
    directions = np.cos(angles) / np.linalg.norm(np.cos(angles), axis=1, keepdims=True)
    dense = (directions * norms[DENSE_SITE][:, None]).astype(np.float32)
    return StoredRun(record, tokens, {DENSE_SITE: widened(_bits(dense, dtype))}, norms, {SAE: _features(tokens)})


def widened(bits: np.ndarray) -> np.ndarray:
    """float32 of what a dense array stores; uint16 stands for bfloat16, the upper half of a float32."""
    if bits.dtype == np.uint16:
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.astype(np.float32)


def _bits(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(dtype)


def _record(run: str, dtype: str, revision: str) -> RunRecord:
    specification = Specification(
        model=MODEL,
        model_revision=revision,
        weights_sha256="a" * 64,
        tokenizer_sha256="b" * 64,
        dataset="planted-text",
        dataset_sha256="c" * 64,
        text_field="text",
        max_tokens=None,
        context_length=max(LENGTHS),
        prepend_bos=True,
        dense_sites=(DENSE_SITE,),
        norm_sites=tuple(f"resid_post.{layer}" for layer in range(LAYERS)),
        saes=(SaeRecord(SAE, "d" * 64, DENSE_SITE, D_SAE),),
        dtype=dtype,
        sequences_per_shard=3,
        sequences_per_batch=2,
        config_sha256="f" * 64,
        attention_implementation="eager",
    )
    return RunRecord(
        run=run,
        specification=specification,
        specification_sha256=specification.sha256,
        sequences_total=len(LENGTHS),
        tokens_total=sum(LENGTHS),
        layer_count=LAYERS,
        d_model=D_MODEL,
        attention_implementation="eager",
        device="cpu",
        code_version="0.1.0",
        document_sources=True,
    )


def _model_record() -> ModelRecord:
    return ModelRecord(
        name=MODEL,
        revision="",
        weights_sha256="a" * 64,
        tokenizer_sha256="b" * 64,
        family="gpt2",
        layer_count=LAYERS,
        d_model=D_MODEL,
        head_count=2,
        vocabulary_size=VOCABULARY,
        context_length=max(LENGTHS),
        config_sha256="f" * 64,
    )


def _sae_model_record() -> SaeModelRecord:
    return SaeModelRecord(
        name=SAE, sha256="d" * 64, architecture="standard", site=DENSE_SITE, d_in=D_MODEL, d_sae=D_SAE, model=MODEL
    )


def _tokens() -> TokenRows:
    sequence = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    position = np.concatenate([np.arange(length) for length in LENGTHS])
    token = 2 + (7 * sequence + 3 * position) % (VOCABULARY - 2)
    flags = np.zeros(len(token), np.uint8)
    special = (sequence == SPECIAL_AT[0]) & (position == SPECIAL_AT[1])
    token[special], flags[special] = 1, SPECIAL
    token[position == 0], flags[position == 0] = 0, BOS
    return TokenRows(
        sequence=sequence.astype(np.int64),
        position=position.astype(np.int32),
        document=np.repeat(DOCUMENTS, LENGTHS).astype(np.int64),
        token=token.astype(np.int32),
        flags=flags,
    )


def _norms(tokens: TokenRows, layer: int) -> np.ndarray:
    norms = 2.0 * GROWTH**layer * (1.0 + tokens.position / 10.0)
    norms = np.where(tokens.flags & BOS, BOS_NORM, norms)
    return np.where(tokens.flags & SPECIAL, SPECIAL_NORM, norms).astype(np.float32)


def _features(tokens: TokenRows) -> np.ndarray:
    features = np.zeros((len(tokens.token), D_SAE), np.float32)
    features[:, EVERYWHERE] = 0.25
    text = tokens.flags == 0
    fires = text & ((tokens.sequence + tokens.position) % 3 == 0)
    features[fires, FIRING] = tokens.sequence[fires] + tokens.position[fires] / 16.0
    features[tokens.flags == BOS, BOS_ONLY] = 9.0
    return features


def _write_shard(bucket: Bucket, stored: StoredRun, shard: int, sources: DocumentSources | None) -> None:
    sequences = stored.record.shard_sequences(shard)
    size = stored.record.specification.sequences_per_batch
    with ShardWriter(bucket, stored.record, shard, f"attempt{shard}", columns=CENTRED, sources=sources) as writer:
        for first in range(sequences.start, sequences.stop, size):
            of_batch = (stored.tokens.sequence >= first) & (stored.tokens.sequence < min(first + size, sequences.stop))
            _add_batch(writer, stored, of_batch)
        assert writer.commit()


def _add_batch(writer: ShardWriter, stored: StoredRun, rows: np.ndarray) -> None:
    tokens = stored.tokens
    features = stored.features[SAE][rows]
    row, feature = np.nonzero(features)
    writer.add(
        TokenRows(
            tokens.sequence[rows], tokens.position[rows], tokens.document[rows], tokens.token[rows], tokens.flags[rows]
        ),
        {site: _bits(values[rows], stored.record.specification.dtype) for site, values in stored.dense.items()},
        {name: values for site, whole in stored.norms.items() for name, values in _norm_columns(site, whole[rows])},
        {SAE: SparseFeatures(row.astype(np.int64), feature.astype(np.int32), features[row, feature])},
    )


def _norm_columns(site: str, norms: np.ndarray) -> list[tuple[str, np.ndarray]]:
    return [(site, norms), (f"{CENTRED_L2}.{site}", norms / 2)]
