"""Estimates how much a run will store and compute, before it is captured."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from actstore_storage.errors import BadRequest
from actstore_storage.format.keys import features_product, index_product
from actstore_storage.format.positions import selected
from actstore_storage.format.products import NORMS, POSITIONS, TOKENS
from actstore_storage.format.sketches import SKETCH_K
from actstore_storage.format.specification import DTYPES, Positions, RunRecord
from actstore_worker.capture.planning.options import StoreOptions
from actstore_worker.capture.planning.work import last_layer
from actstore_worker.datasets.sequences import TokenSequences
from actstore_worker.models.files.source import ModelSource
from actstore_worker.models.loading import weight_shapes
from actstore_worker.models.model import ModelDescription
from actstore_worker.sae.autoencoder import SparseAutoencoder, TopKSae

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
# Bytes per token of tokens.parquet as compressed on text, per norm, and per nonzero in the index by row and by feature:
# measured on the bundled model and SAE, 1.8, 4.0, 5.9 and 8.0.
_TOKEN_BYTES, _NORM_BYTES, _BY_ROW_BYTES, _BY_FEATURE_BYTES = 2, 4, 6, 8
_POSITION_BYTES = 1
# For the object of a shard's sketches: Parquet's overhead for each name of statistics, and the compression ratio of
# zstd.
_SKETCH_COLUMN_BYTES, _SKETCH_COMPRESSED = 200, 0.8
# If the architecture does not fix the number of active features, and if a feature selects the rows.
_NONZEROS_GUESS, _ACTIVE_GUESS = 64, 0.05


def bytes_by_product(
    options: StoreOptions,
    widths: Mapping[str, int],
    norm_columns: int,
    saes: Sequence[SparseAutoencoder],
    tokens: int,
    dense_rows: int,
) -> dict[str, int]:
    """Estimates the bytes of each product; exact except for Parquet's overhead if rows have a fixed size."""
    sizes = {TOKENS: _TOKEN_BYTES * tokens}
    if norm_columns:
        sizes[NORMS] = _NORM_BYTES * norm_columns * tokens
    element_bytes = DTYPES[options.storage_dtype or options.dtype]
    sizes |= {site: element_bytes * width * dense_rows for site, width in widths.items()}
    if widths and options.positions.kind != "all":
        sizes[POSITIONS] = _POSITION_BYTES * dense_rows
    return sizes | feature_bytes(saes, tokens)


def sketch_bytes(names: int, sequences: TokenSequences, bos_id: int | None, shards: int) -> int:
    """Estimates the bytes of all shards' sketches: for each name of statistics one sketch for text and one for BOS. It
    does not include special tokens and sinks, which are few, and merged sketches of checkpoints.
    """
    bos = 0 if bos_id is None else int((sequences.tokens[sequences.offsets[:-1]] == bos_id).sum())
    of_classes = sum(_one_sketch_bytes(count / shards) for count in (len(sequences.tokens) - bos, bos) if count)
    return int(shards * names * (_SKETCH_COLUMN_BYTES + _SKETCH_COMPRESSED * of_classes))


def _one_sketch_bytes(values: float) -> float:
    """A header, where each level begins, the extremes, and the kept values as float32: all of them if they are few,
    otherwise between k and 3 k, as levels fill and are halved. Estimated as 1.5 k.
    """
    levels = 1 + np.log2(max(1.0, values / SKETCH_K))
    return float(20 + 4 * levels + 4 * (2 + min(values, 1.5 * SKETCH_K)))


def feature_bytes(saes: Sequence[SparseAutoencoder], tokens: int) -> dict[str, int]:
    """Estimates the bytes of features, by product."""
    sizes = {}
    for sae in saes:
        nonzeros = tokens * (sae.k if isinstance(sae, TopKSae) else min(_NONZEROS_GUESS, sae.d_sae))
        sizes[features_product(sae.name)] = _BY_ROW_BYTES * nonzeros
        sizes[index_product(sae.name)] = _BY_FEATURE_BYTES * nonzeros
    return sizes


def check_run_bytes(sizes: Mapping[str, int], run_bytes_max: int, how: str = "about") -> None:
    """Refuses a run that would store more. Errors: BadRequest LIMIT_EXCEEDED with both numbers."""
    total = sum(sizes.values())
    if total > run_bytes_max:
        largest = max(sizes, key=lambda product: sizes[product])
        raise BadRequest(
            f"the run would store {how} {total} bytes, mostly {largest}; the limit is {run_bytes_max}",
            reason="LIMIT_EXCEEDED",
            field="bytes",
            value=total,
            allowed=f"at most {run_bytes_max} bytes: capture fewer tokens, sites or positions",
        )


def dense_rows_of(positions: Positions, sequences: TokenSequences) -> int:
    """The tokens whose vectors are stored."""
    known = dense_rows_known(positions, len(sequences.tokens))
    if known is not None:
        return known
    rows = np.repeat(sequences.numbers, sequences.lengths)
    return int(selected(positions, rows, sequences.positions.astype(np.int32)).sum())


def dense_rows_known(positions: Positions, tokens: int) -> int | None:
    """The same, of so many tokens. None: it depends on where sequences begin and end."""
    if positions.kind == "all":
        return tokens
    if positions.kind == "feature":
        return int(_ACTIVE_GUESS * tokens)
    return int(positions.fraction * tokens) if positions.kind == "fraction" else None


def forward_flops_per_token(record: RunRecord, source: ModelSource, model: ModelDescription) -> float:
    """Two operations for each weight of a matrix in the layers that run, and four for each attention score.

    Kaplan et al. (2020), "Scaling laws for neural language models", section 2.1. A capture stops after its last site,
    and on average a token attends to half of its sequence.
    """
    last = last_layer(record)
    weights = 0
    for name, shape in weight_shapes(source, model.config):
        found = _LAYER.search(name)
        if found and int(found[1]) <= last and len(shape) == 2:
            weights += shape[0] * shape[1]
    length = record.tokens_total / record.sequences_total
    encoders = sum(model.d_model * sae.d_sae for sae in record.specification.saes)
    return 2.0 * (weights + encoders) + 2.0 * length * model.d_model * (last + 1)
