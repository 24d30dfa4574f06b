"""What a caller asks of a capture, checked as far as the client can."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Unpack, get_args, get_type_hints

from actstore import _checks
from actstore._errors import refused
from actstore_api.records.capture import (
    CaptureSpecification,
    Comparison,
    DatasetKeywords,
    DatasetReference,
    Positions,
    PositionsKind,
    RowFilter,
    SpecificationKeywords,
)
from actstore_api.records.terms import Dtype, ModelReference


class CaptureOptions(DatasetKeywords, SpecificationKeywords, total=False):
    """What a capture may be told beside its model, dataset and name; Lab.capture says what each means.

    These are named or typed otherwise than the record's fields.
    """

    sites: Iterable[str]
    norms: Iterable[str] | None
    saes: Iterable[str]
    dtype: str
    bos: bool | None
    storage_dtype: str
    positions: Positions | None
    filters: Iterable[tuple[str, str, object]]


# Options whose field has another name.
_FIELDS = {"sites": "dense_sites", "norms": "norm_sites", "bos": "prepend_bos", "filters": "row_filters"}


def specification(
    model: str, dataset: str, *, revision: str = "", name: str | None = None, **options: Unpack[CaptureOptions]
) -> CaptureSpecification:
    """The capture that these arguments ask for.

    Errors: BadRequest with the argument's name; TypeError for an option that there is none of.
    """
    for unknown in options.keys() - CaptureOptions.__annotations__.keys():
        raise TypeError(f"a capture has no option {unknown!r}")
    return CaptureSpecification(
        run=_checks.text(name or "", "name"),
        model=ModelReference(_checks.name(model, "model"), _checks.text(revision, "revision")),
        dataset=DatasetReference(name=_checks.name(dataset, "dataset"), **_checked(options, DatasetReference)),
        **_checked({"dtype": "float32", **options}, CaptureSpecification),
    )


def _checked(options: Mapping[str, Any], kind: type[Any]) -> dict[str, Any]:
    """Those options that are fields of a record, each checked as the field's type wants it."""
    types = get_type_hints(kind)
    named = ((option, _FIELDS.get(option, option)) for option in options)
    return {field: _CHECKS[types[field]](options[option], option) for option, field in named if field in types}


def dataset_name(specification: CaptureSpecification) -> str:
    """Empty where the rows of another run are encoded."""
    return specification.dataset.name if specification.dataset else ""


def _ratio(value: float | None, field: str) -> float | None:
    return None if value is None else _checks.fractions([value], field)[0]


def _dtype(value: str, field: str) -> Dtype | None:
    """Empty: the default."""
    return None if value == "" else _checks.one_of(value, field, get_args(Dtype))


def _positions(value: object, field: str) -> Positions:
    """Numbers that the wire could not carry are refused here, the rest by the workers."""
    if value is None:
        return Positions()
    if not isinstance(value, Positions):
        allowed = "Positions.last(), .every(stride), .random(fraction, seed), .active(sae, feature)"
        raise refused(f"{field} cannot be {value!r}", field, repr(value), allowed)
    return Positions(
        kind=_checks.one_of(value.kind, field, get_args(PositionsKind)),
        stride=_checks.count(value.stride, f"{field}.stride"),
        fraction=_checks.fractions([value.fraction], f"{field}.fraction")[0],
        seed=_checks.count(value.seed, f"{field}.seed", maximum=2**64 - 1),
        sae=_checks.text(value.sae, f"{field}.sae"),
        feature=_checks.count(value.feature, f"{field}.feature"),
    )


def _row_filters(values: object, field: str) -> tuple[RowFilter, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise refused(f"{field} are several, not {values!r}", field, repr(values), "a list of filters")
    return tuple(_row_filter(value, field) for value in values)


def _row_filter(value: object, field: str) -> RowFilter:
    comparisons = get_args(Comparison)
    allowed = f"(column, one of {' '.join(comparisons)}, value)"
    if not isinstance(value, tuple | list) or len(value) != 3 or value[1] not in comparisons:
        raise refused(f"{value!r} is not a filter", field, repr(value), allowed)
    column, comparison, wanted = value
    several = comparison in ("in", "not in")
    if several and (isinstance(wanted, str) or not isinstance(wanted, Iterable)):
        raise refused(f"{comparison!r} compares with several values", field, repr(value), allowed)
    wanted_values = tuple(wanted) if several and isinstance(wanted, Iterable) else (wanted,)
    for one in wanted_values:
        if isinstance(one, str):
            _checks.text(one, field)
        elif type(one) not in (int, float, bool) or (type(one) is int and not -(2**63) <= one < 2**63):
            raise refused(f"a filter compares with text or numbers, not {one!r}", field, repr(value), allowed)
    return RowFilter(_checks.name(column, field), comparison, wanted_values)


# How a value is checked that a field of a type is made of.
_CHECKS: Mapping[Any, Callable[[Any, str], Any]] = {
    str: _checks.text,
    bool: _checks.switch,
    bool | None: _checks.tristate,
    int | None: _checks.optional_count,
    float | None: _ratio,
    tuple[str, ...]: _checks.names,
    Dtype | None: _dtype,
    Positions: _positions,
    tuple[RowFilter, ...]: _row_filters,
}
