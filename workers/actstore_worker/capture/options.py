"""What of a capture is stored, in which form, and about how much that will be: the parts of a request that decide it.

Errors here are BadRequest with field, value and what is allowed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actstore_api.records import capture as asked
from actstore_api.records.capture import CaptureSpecification, DatasetReference
from actstore_storage.errors import BadRequest
from actstore_storage.format.keys import features_product, index_product
from actstore_storage.format.positions import KINDS_BY_PLACE, selected
from actstore_storage.format.products import NORMS, POSITIONS, TOKENS
from actstore_storage.format.sites import Site
from actstore_storage.format.sketches import SKETCH_K
from actstore_storage.format.specification import DTYPES, Positions, RowFilter
from actstore_worker.datasets.documents import DocumentQuery
from actstore_worker.datasets.row_filters import check_filter
from actstore_worker.datasets.sequences import TokenSequences
from actstore_worker.models.model import ModelDescription
from actstore_worker.sae.autoencoder import SparseAutoencoder, TopKSae

# A token is flagged as a sink where its norm is so many times the median of its sequence. Sinks of trained models
# exceed it by far: 100 to 1,000 times (Sun et al. 2024, "Massive activations in large language models").
SINK_RATIO = 10.0
# Bytes of a token's row of tokens.parquet as it compressed on text, of one norm, of a nonzero by row and by feature:
# measured on the bundled model and SAE, 1.8, 4.0, 5.9 and 8.0.
_TOKEN_BYTES, _NORM_BYTES, _BY_ROW_BYTES, _BY_FEATURE_BYTES = 2, 4, 6, 8
_POSITION_BYTES = 1
# Of the object of a shard's sketches: what Parquet says of each name of statistics, and to what part zstd compresses.
_SKETCH_COLUMN_BYTES, _SKETCH_COMPRESSED = 200, 0.8
# Where the architecture does not fix how many features are on, and where a feature chooses the rows.
_NONZEROS_GUESS, _ACTIVE_GUESS = 64, 0.05


@dataclass(frozen=True)
class StoreOptions:
    """Fields of Specification, with every default filled in."""

    dtype: str
    storage_dtype: str
    widen_on_overflow: bool
    packing: bool
    positions: Positions
    sink_ratio: float | None


def document_query(dataset: DatasetReference) -> DocumentQuery:
    filters = row_filters(dataset)
    for found in filters:
        check_filter(found)
    if dataset.max_documents is not None and dataset.max_documents < 1:
        raise _invalid("dataset.max_documents", dataset.max_documents, "1 or more")
    if dataset.tokens_field and dataset.text_field:
        raise _invalid("dataset.tokens_field", dataset.tokens_field, "either tokens_field or text_field")
    return DocumentQuery(
        text_field="" if dataset.tokens_field else dataset.text_field or "text",
        tokens_field=dataset.tokens_field,
        source_field=dataset.source_field,
        row_filters=filters,
        max_documents=dataset.max_documents,
    )


def row_filters(dataset: DatasetReference) -> tuple[RowFilter, ...]:
    """The filters as a run's specification has them: of one value that value, of several a list.

    Errors: BadRequest for a comparison with one value that has none, or several.
    """
    return tuple(map(_row_filter, dataset.row_filters))


def _row_filter(found: asked.RowFilter) -> RowFilter:
    several = found.comparison in ("in", "not in")
    if len(found.values) != 1 and not several:
        allowed = "one value, or any number for in and not in"
        message = f"the filter of {found.column} has {len(found.values)} values"
        raise BadRequest(message, field="dataset.row_filters", value=found.column, allowed=allowed)
    return RowFilter(found.column, found.comparison, found.values if several else found.values[0])


def stored_positions(positions: asked.Positions) -> Positions:
    """The positions as a run's specification has them."""
    return Positions(**vars(positions))


def checked_options(
    request: CaptureSpecification, model: ModelDescription, dense: Sequence[Site], saes: Sequence[SparseAutoencoder]
) -> StoreOptions:
    dtype = request.dtype or "float32"
    storage = request.storage_dtype or dtype
    ratio = SINK_RATIO if request.sink_ratio is None else request.sink_ratio
    if not (ratio == 0 or 1 < ratio < np.inf):
        raise _invalid("sink_ratio", ratio, "above 1, or 0 to flag none")
    if request.packing:
        _check_packing(model, dense)
    positions = stored_positions(request.positions)
    _check_positions(positions, saes)
    return StoreOptions(
        dtype=dtype,
        storage_dtype="" if storage == dtype else storage,
        widen_on_overflow=request.widen_on_overflow,
        packing=request.packing,
        positions=positions if dense else Positions(),
        sink_ratio=ratio or None,
    )


def bytes_by_product(
    options: StoreOptions,
    widths: Mapping[str, int],
    norm_columns: int,
    saes: Sequence[SparseAutoencoder],
    sequences: TokenSequences,
) -> dict[str, int]:
    """Estimates; exact but for the Parquet files' own bytes where rows are of one size."""
    tokens = len(sequences.tokens)
    sizes = {TOKENS: _TOKEN_BYTES * tokens}
    if norm_columns:
        sizes[NORMS] = _NORM_BYTES * norm_columns * tokens
    rows = _dense_rows(options.positions, sequences)
    element_bytes = DTYPES[options.storage_dtype or options.dtype]
    sizes |= {site: element_bytes * width * rows for site, width in widths.items()}
    if widths and options.positions.kind != "all":
        sizes[POSITIONS] = _POSITION_BYTES * rows
    return sizes | feature_bytes(saes, tokens)


def sketch_bytes(names: int, sequences: TokenSequences, bos_id: int | None, shards: int) -> int:
    """Of all shards' sketches, estimated: for each name of statistics one of the shard's text and one of its BOS. What
    special tokens and sinks add, which are few, and what checkpoints merge is not in it.
    """
    bos = 0 if bos_id is None else int((sequences.tokens[sequences.offsets[:-1]] == bos_id).sum())
    of_classes = sum(_one_sketch_bytes(count / shards) for count in (len(sequences.tokens) - bos, bos) if count)
    return int(shards * names * (_SKETCH_COLUMN_BYTES + _SKETCH_COMPRESSED * of_classes))


def _one_sketch_bytes(values: float) -> float:
    """A header, where each level begins, the extremes, and what is kept, as float32: of few values all, and of many
    between k and 3 k, as levels fill and are halved. Taken as 1.5 k.
    """
    levels = 1 + np.log2(max(1.0, values / SKETCH_K))
    return float(20 + 4 * levels + 4 * (2 + min(values, 1.5 * SKETCH_K)))


def feature_bytes(saes: Sequence[SparseAutoencoder], tokens: int) -> dict[str, int]:
    """By product, estimated."""
    sizes = {}
    for sae in saes:
        nonzeros = tokens * (sae.k if isinstance(sae, TopKSae) else min(_NONZEROS_GUESS, sae.d_sae))
        sizes[features_product(sae.name)] = _BY_ROW_BYTES * nonzeros
        sizes[index_product(sae.name)] = _BY_FEATURE_BYTES * nonzeros
    return sizes


def _dense_rows(positions: Positions, sequences: TokenSequences) -> int:
    tokens = len(sequences.tokens)
    if positions.kind == "feature":
        return int(_ACTIVE_GUESS * tokens)
    if positions.kind == "fraction":
        return int(positions.fraction * tokens)
    rows = np.repeat(sequences.numbers, sequences.lengths)
    return int(selected(positions, rows, sequences.positions.astype(np.int32)).sum())


def _check_packing(model: ModelDescription, dense: Sequence[Site]) -> None:
    """Which tokens share a row of the batch must not show in what is stored."""
    if not model.family.causal:
        raise _invalid("packing", True, f"False: a {model.family.name} model's attention sees both sides")
    if not model.family.packs:
        raise _invalid("packing", True, f"False: transformers does not tell {model.family.name}'s sequences apart")
    for site in dense:
        if site.kind == "pattern":
            raise _invalid("packing", True, f"False, or no attention weights ({site})")


def _check_positions(positions: Positions, saes: Sequence[SparseAutoencoder]) -> None:
    if positions.kind not in (*KINDS_BY_PLACE, "feature"):
        raise _invalid("positions", positions.kind, (*KINDS_BY_PLACE, "feature"))
    if positions.stride < 1:
        raise _invalid("positions.stride", positions.stride, "1 or more")
    if not 0 < positions.fraction <= 1:
        raise _invalid("positions.random.fraction", positions.fraction, "above 0, at most 1")
    if not 0 <= positions.seed < 1 << 64:
        raise _invalid("positions.random.seed", positions.seed, f"0..{(1 << 64) - 1}")
    if positions.kind != "feature":
        return
    widths = {sae.name: sae.d_sae for sae in saes}
    if positions.sae not in widths:
        raise _invalid("positions.feature.sae", positions.sae, sorted(widths) or "one of the capture's SAEs")
    if not 0 <= positions.feature < widths[positions.sae]:
        raise BadRequest(
            f"{positions.sae} has no feature {positions.feature}",
            reason="FEATURE_OUT_OF_RANGE",
            field="positions.feature.feature",
            value=positions.feature,
            allowed=f"0..{widths[positions.sae] - 1}",
        )


def _invalid(field: str, value: object, allowed: object) -> BadRequest:
    return BadRequest(f"{field} cannot be {value!r}", field=field, value=value, allowed=allowed)
