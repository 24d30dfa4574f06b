"""The request for a capture, checked as far as the client can."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypedDict, Unpack, get_args, get_type_hints

from actstore import _checks
from actstore._errors import refused
from actstore_api.records.capture import (
    CaptureSpecification,
    Comparison,
    DatasetOptions,
    DatasetReference,
    Positions,
    PositionsKind,
    RowFilter,
)
from actstore_api.records.terms import Dtype, ModelReference


@dataclass(frozen=True)
class Dataset(DatasetOptions):
    """A dataset, and what of it a capture reads.

    Args:
        name: A file or folder below one of the workers' dataset folders or stores, or `hf:OWNER/NAME[:CONFIG]:SPLIT`, a
            dataset of the Hugging Face hub, if the workers allow the hub.
        text_field: The column of a table that holds the text. Empty: `text`.
        tokens_field: The column that holds lists of token ids, in a dataset that is tokenized. Empty: text is
            tokenized.
        source_field: The column that says where a document comes from, such as a URL, which is shown with its
            examples. Empty: its file and row are shown.
        row_filters: Rows of a table to keep, as pyarrow's filters: ("language", "==", "en"). A row has to pass all;
            an empty collection keeps every row.
        max_documents: How many documents to read, of those that pass the filters. None: all.
    """

    row_filters: Iterable[tuple[str, Comparison, object]] = ()

    def __post_init__(self) -> None:
        # Several captures may read the same dataset, and an iterator would be empty for the second one.
        object.__setattr__(self, "row_filters", _without_iterators(self.row_filters))


def _without_iterators(values: Any) -> Any:
    """The same, with tuples in place of iterators and lists, at any depth."""
    if not isinstance(values, Iterator | list | tuple):
        return values
    return tuple(map(_without_iterators, values))


@dataclass(frozen=True)
class Batching:
    """How sequences are put together to be run. It changes speed and memory, and no stored number beyond rounding.

    Args:
        packing: Put several sequences into a row of a batch. They do not attend to each other.
        sequences_per_batch: Sequences that the model reads at once. None: the workers' setting.
        sequences_per_shard: Sequences that are stored together, and lost together if a worker dies. None: as many as
            make a shard of a good size.
    """

    packing: bool = False
    sequences_per_batch: int | None = None
    sequences_per_shard: int | None = None


class CaptureOptions(TypedDict, total=False):
    """Options of a capture beside its model, dataset and run; `Lab.capture` says what each means."""

    dense_sites: Iterable[str] | str
    norm_sites: Iterable[str] | str | None
    saes: Iterable[str] | str
    positions: Positions | None
    max_tokens: int | None
    context_length: int | None
    prepend_bos: bool | None
    sink_ratio: float | None
    dtype: Dtype
    storage_dtype: Dtype | None
    widen_on_overflow: bool
    batching: Batching | None


def specification(
    model: str,
    dataset: str | Dataset,
    *,
    revision: str = "",
    run: str | None = None,
    **options: Unpack[CaptureOptions],
) -> CaptureSpecification:
    """The capture that these arguments ask for.

    Errors: BadRequest with the argument's name; TypeError for an option that does not exist.
    """
    for unknown in options.keys() - CaptureOptions.__annotations__.keys():
        raise TypeError(f"a capture has no option {unknown!r}")
    asked: dict[str, Any] = {"dtype": "float32", **options}
    limit = {"max_tokens": asked.pop("max_tokens", None)}
    batching = _batching(asked.pop("batching", None))
    norm_sites = _checks.some_names(asked.pop("norm_sites", None), "norm_sites")
    return CaptureSpecification(
        run=_checks.text(run or "", "run"),
        model=ModelReference(_checks.name(model, "model"), _checks.text(revision, "revision")),
        dataset=_dataset(dataset, limit),
        norm_sites=norm_sites,
        **_checked({**asked, **batching}, CaptureSpecification),
    )


def _dataset(given: object, limit: Mapping[str, Any]) -> DatasetReference:
    chosen = given if isinstance(given, Dataset) else Dataset(_checks.name(given, "dataset"))
    options = {name: getattr(chosen, name) for name in Dataset.__dataclass_fields__ if name != "name"}
    return DatasetReference(_checks.name(chosen.name, "dataset"), **_checked({**options, **limit}, DatasetReference))


def _batching(given: object) -> dict[str, Any]:
    """The fields of a `Batching`; a specification has each as a field of its own."""
    if given is None:
        return {}
    if not isinstance(given, Batching):
        allowed = "actstore.Batching(packing=, sequences_per_batch=, sequences_per_shard=)"
        raise refused(f"batching cannot be {given!r}", "batching", repr(given), allowed)
    return asdict(given)


def _checked(options: Mapping[str, Any], kind: type[Any]) -> dict[str, Any]:
    """Options that are fields of a record, each checked as the field's type wants it."""
    types = get_type_hints(kind)
    return {name: _CHECKS[types[name]](value, name) for name, value in options.items()}


def dataset_name(specification: CaptureSpecification) -> str:
    """The dataset's name; empty if the run encodes the rows of another run."""
    return specification.dataset.name if specification.dataset else ""


def _ratio(value: float | None, field: str) -> float | None:
    return None if value is None else _checks.number(value, field, least=0.0)


def _dtype(value: Dtype | None, field: str) -> Dtype | None:
    return None if value is None else _checks.one_of(value, field, get_args(Dtype))


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
        fraction=_checks.number(value.fraction, f"{field}.fraction", least=0.0),
        seed=_checks.count(value.seed, f"{field}.seed", maximum=_checks.MAXIMUM_SEED),
        sae=_checks.text(value.sae, f"{field}.sae"),
        feature=_checks.count(value.feature, f"{field}.feature"),
    )


def _row_filters(values: object, field: str) -> tuple[RowFilter, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise refused(f"{field} must be a list, not {values!r}", field, repr(values), "a list of filters")
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
