"""The options that decide what a capture stores, and in which form.

Errors here are BadRequest with field, value and what is allowed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actstore_api.records import capture as asked
from actstore_api.records.capture import CaptureSpecification, DatasetReference
from actstore_storage.errors import BadRequest
from actstore_storage.format.positions import KINDS_BY_PLACE
from actstore_storage.format.records import fields_in_common
from actstore_storage.format.sites import Site
from actstore_storage.format.specification import Positions, RowFilter
from actstore_worker.datasets.documents import DocumentQuery
from actstore_worker.datasets.row_filters import check_filter
from actstore_worker.models.model import ModelDescription
from actstore_worker.sae.autoencoder import SparseAutoencoder

# A token is a sink if its norm exceeds this many times the median of its sequence. Sinks of trained models exceed it by
# far: 100 to 1,000 times (Sun et al. 2024, "Massive activations in large language models").
SINK_RATIO = 10.0


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
    text_field = "" if dataset.tokens_field else dataset.text_field or "text"
    own = {"text_field": text_field, "row_filters": filters}
    return DocumentQuery(**fields_in_common(dataset, DocumentQuery) | own)


def row_filters(dataset: DatasetReference) -> tuple[RowFilter, ...]:
    """Returns the filters in the form of a run's specification: a single value as it is, several as a list.

    Errors: BadRequest if a comparison with one value has none, or several.
    """
    return tuple(map(_row_filter, dataset.row_filters))


def _row_filter(found: asked.RowFilter) -> RowFilter:
    several = found.comparison in ("in", "not in")
    if len(found.values) != 1 and not several:
        allowed = "one value; any number of values with in and not in"
        message = f"the filter of {found.column} has {len(found.values)} values"
        raise BadRequest(message, field="dataset.row_filters", value=found.column, allowed=allowed)
    return RowFilter(found.column, found.comparison, found.values if several else found.values[0])


def stored_positions(positions: asked.Positions) -> Positions:
    """Returns the positions in the form of a run's specification."""
    return Positions(**vars(positions))


def checked_options(
    request: CaptureSpecification, model: ModelDescription, dense: Sequence[Site], saes: Sequence[SparseAutoencoder]
) -> StoreOptions:
    dtype = request.dtype or "float32"
    storage = request.storage_dtype or dtype
    ratio = SINK_RATIO if request.sink_ratio is None else request.sink_ratio
    if not (ratio == 0 or 1 < ratio < np.inf):
        raise _invalid("sink_ratio", ratio, "above 1, or 0 to flag no sinks")
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


def _check_packing(model: ModelDescription, dense: Sequence[Site]) -> None:
    """Refuses packing if stored values would depend on which tokens share a row of the batch."""
    if not model.family.causal:
        raise _invalid("packing", True, f"False: a {model.family.name} model's attention is bidirectional")
    if not model.family.packs:
        raise _invalid(
            "packing", True, f"False: transformers cannot separate packed sequences in {model.family.name} models"
        )
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
