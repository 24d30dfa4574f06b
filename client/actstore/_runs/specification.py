"""What a caller asks of a capture, checked as far as the client can."""

from collections.abc import Iterable
from typing import TypedDict, get_args

from actstore import _checks
from actstore._errors import refused
from actstore_api.records.capture import (
    CaptureSpecification,
    Comparison,
    DatasetReference,
    Positions,
    PositionsKind,
    RowFilter,
)
from actstore_api.records.terms import Dtype, ModelReference


class CaptureOptions(TypedDict, total=False):
    """What a capture may be told beside its model, dataset and name; Lab.capture says what each means."""

    sites: Iterable[str]
    norms: Iterable[str] | None
    saes: Iterable[str]
    context_length: int | None
    max_tokens: int | None
    dtype: str
    text_field: str
    bos: bool | None
    sequences_per_shard: int | None
    sequences_per_batch: int | None
    storage_dtype: str
    widen_on_overflow: bool
    packing: bool
    positions: Positions | None
    tokens_field: str
    filters: Iterable[tuple[str, str, object]]
    max_documents: int | None
    sink_ratio: float | None
    source_field: str


def specification(
    model: str,
    dataset: str,
    *,
    revision: str = "",
    name: str | None = None,
    sites: Iterable[str] = (),
    norms: Iterable[str] | None = None,
    saes: Iterable[str] = (),
    context_length: int | None = None,
    max_tokens: int | None = None,
    dtype: str = "float32",
    text_field: str = "",
    bos: bool | None = None,
    sequences_per_shard: int | None = None,
    sequences_per_batch: int | None = None,
    storage_dtype: str = "",
    widen_on_overflow: bool = False,
    packing: bool = False,
    positions: Positions | None = None,
    tokens_field: str = "",
    filters: Iterable[tuple[str, str, object]] = (),
    max_documents: int | None = None,
    sink_ratio: float | None = None,
    source_field: str = "",
) -> CaptureSpecification:
    """The capture that these arguments ask for. Errors: BadRequest with the argument's name."""
    return CaptureSpecification(
        run=_checks.text(name or "", "name"),
        model=ModelReference(_checks.name(model, "model"), _checks.text(revision, "revision")),
        dataset=DatasetReference(
            name=_checks.name(dataset, "dataset"),
            text_field=_checks.text(text_field, "text_field"),
            tokens_field=_checks.text(tokens_field, "tokens_field"),
            source_field=_checks.text(source_field, "source_field"),
            row_filters=_row_filters(filters),
            max_documents=_checks.optional_count(max_documents, "max_documents"),
            max_tokens=_checks.optional_count(max_tokens, "max_tokens"),
        ),
        context_length=_checks.optional_count(context_length, "context_length"),
        prepend_bos=_checks.tristate(bos, "bos"),
        packing=_checks.switch(packing, "packing"),
        dense_sites=_checks.names(sites, "sites"),
        positions=_positions(positions),
        norm_sites=_checks.names(norms, "norms"),
        saes=_checks.names(saes, "saes"),
        sink_ratio=None if sink_ratio is None else _checks.fractions([sink_ratio], "sink_ratio")[0],
        dtype=_dtype(dtype, "dtype"),
        storage_dtype=_dtype(storage_dtype, "storage_dtype"),
        widen_on_overflow=_checks.switch(widen_on_overflow, "widen_on_overflow"),
        sequences_per_shard=_checks.optional_count(sequences_per_shard, "sequences_per_shard"),
        sequences_per_batch=_checks.optional_count(sequences_per_batch, "sequences_per_batch"),
    )


def dataset_name(specification: CaptureSpecification) -> str:
    """Empty where the rows of another run are encoded."""
    return specification.dataset.name if specification.dataset else ""


def _dtype(value: str, field: str) -> Dtype | None:
    """Empty: the default."""
    return None if value == "" else _checks.one_of(value, field, get_args(Dtype))


def _positions(value: object) -> Positions:
    """Numbers that the wire could not carry are refused here, the rest by the workers."""
    if value is None:
        return Positions()
    if not isinstance(value, Positions):
        allowed = "Positions.last(), .every(stride), .random(fraction, seed), .active(sae, feature)"
        raise refused(f"positions cannot be {value!r}", "positions", repr(value), allowed)
    return Positions(
        kind=_checks.one_of(value.kind, "positions", get_args(PositionsKind)),
        stride=_checks.count(value.stride, "positions.stride"),
        fraction=_checks.fractions([value.fraction], "positions.fraction")[0],
        seed=_checks.count(value.seed, "positions.seed", maximum=2**64 - 1),
        sae=_checks.text(value.sae, "positions.sae"),
        feature=_checks.count(value.feature, "positions.feature"),
    )


def _row_filters(values: object) -> tuple[RowFilter, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise refused(f"filters are several, not {values!r}", "filters", repr(values), "a list of filters")
    return tuple(_row_filter(value) for value in values)


def _row_filter(value: object) -> RowFilter:
    comparisons = get_args(Comparison)
    allowed = f"(column, one of {' '.join(comparisons)}, value)"
    if not isinstance(value, tuple | list) or len(value) != 3 or value[1] not in comparisons:
        raise refused(f"{value!r} is not a filter", "filters", repr(value), allowed)
    column, comparison, wanted = value
    several = comparison in ("in", "not in")
    if several and (isinstance(wanted, str) or not isinstance(wanted, Iterable)):
        raise refused(f"{comparison!r} compares with several values", "filters", repr(value), allowed)
    wanted_values = tuple(wanted) if several and isinstance(wanted, Iterable) else (wanted,)
    for one in wanted_values:
        if isinstance(one, str):
            _checks.text(one, "filters")
        elif type(one) not in (int, float, bool) or (type(one) is int and not -(2**63) <= one < 2**63):
            raise refused(f"a filter compares with text or numbers, not {one!r}", "filters", repr(value), allowed)
    return RowFilter(_checks.name(column, "filters"), comparison, wanted_values)
