"""Results of a sweep as tables: one row per cell, one column per metric."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actstore_worker.patching.direct import Share
from actstore_worker.patching.metrics import NORMALIZED, SMALLEST_DIFFERENCE, Metrics, Values
from actstore_worker.patching.plan import Entry, SweepPlan

_METRICS = tuple(field.name for field in fields(Metrics))
_PLACE = pa.schema(
    [
        pa.field("pair", pa.int32(), nullable=False),
        pa.field("direction", pa.string(), nullable=False),
        pa.field("site", pa.string(), nullable=False),
        pa.field("layer", pa.int32()),
        pa.field("position", pa.int32()),
        pa.field("head", pa.int32()),
        pa.field("feature", pa.int32()),
        pa.field("name", pa.string()),
        pa.field("token", pa.string()),
        pa.field("unchanged", pa.bool_(), nullable=False),
    ]
)

_DIRECT = pa.schema(
    [
        pa.field("pair", pa.int32(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("part", pa.string(), nullable=False),
        pa.field("layer", pa.int32()),
        pa.field("head", pa.int32()),
        pa.field("share", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class ComputedCells:
    """Rows of the grid, for one pair and direction. `exact` marks those that were computed: `found` has a number for
    each of them, `base` and `source` one number each. `estimates` has one per row.
    """

    rows: range
    unchanged: npt.NDArray[np.bool_]
    exact: npt.NDArray[np.bool_]
    found: Metrics
    base: Metrics
    source: Metrics
    estimates: Values | None


def normalized_column(metric: str) -> str:
    return "normalized" if metric == "logit_difference" else f"normalized_{metric}"


def cell_table(plan: SweepPlan, pair: int, direction: str, texts: Sequence[str], computed: ComputedCells) -> pa.Table:
    """Returns the table; the comment of SweepCells in patching.proto defines its columns. `texts`: of the base run's
    tokens.
    """
    rows = [_place(plan.grid[row], texts) for row in computed.rows]
    columns: dict[str, pa.Array] = {
        "pair": pa.array([pair] * len(rows), pa.int32()),
        "direction": pa.array([direction] * len(rows), pa.string()),
        "unchanged": pa.array(computed.unchanged, pa.bool_()),
    }
    for field in _PLACE:
        if field.name not in columns:
            columns[field.name] = pa.array([row[field.name] for row in rows], field.type)
    table = pa.Table.from_arrays([columns[name] for name in _PLACE.names], schema=_PLACE)
    for name, values, nullable in _metrics(computed):
        array = pa.nulls(len(rows), pa.float64()) if values is None else _spread(values, computed.exact)
        table = table.append_column(_number(name, nullable=nullable), array)
    if plan.screen is None or computed.estimates is None:
        return table
    estimates = _estimates(computed.estimates, computed, signed=not plan.screen.grad_drop)
    return table.append_column(_number("estimate", nullable=True), estimates)


def _metrics(computed: ComputedCells) -> Iterator[tuple[str, Values | None, bool]]:
    """Yields the name, the numbers of computed cells, and whether values may be null."""
    for name in _METRICS:
        yield name, getattr(computed.found, name), computed.estimates is not None
    for name in NORMALIZED:
        yield normalized_column(name), computed.found.normalized(name, computed.base, computed.source), True


def _spread(values: Values, exact: npt.NDArray[np.bool_]) -> pa.Array:
    spread = np.zeros(len(exact))
    spread[exact] = values
    return pa.array(spread, mask=~exact)


def _estimates(estimates: Values, computed: ComputedCells, *, signed: bool) -> pa.Array:
    """Returns estimates as fractions of the difference between base and source run, like `normalized`."""
    difference = float(computed.source.logit_difference[0] - computed.base.logit_difference[0])
    if abs(difference) < SMALLEST_DIFFERENCE:
        return pa.nulls(len(estimates), pa.float64())
    return pa.array(estimates / (difference if signed else abs(difference)) + 0.0)  # -0.0 + 0.0 is 0.0


def baseline_table(pairs: Sequence[tuple[Metrics, Metrics]]) -> pa.Table:
    """One row per pair and prompt, clean before corrupt."""
    rows: list[dict[str, Any]] = [
        {"pair": number, "prompt": prompt, **{name: float(getattr(metrics, name)[0]) for name in _METRICS[:-1]}}
        for number, pair in enumerate(pairs)
        for prompt, metrics in zip(("clean", "corrupt"), pair, strict=True)
    ]
    columns = [pa.field("pair", pa.int32()), pa.field("prompt", pa.string())]
    return pa.Table.from_pylist(rows, pa.schema([*columns, *(_number(name, nullable=True) for name in _METRICS[:-1])]))


def direct_table(pairs: Sequence[tuple[Sequence[Share], Sequence[Share]]]) -> pa.Table:
    """One row per pair, prompt and component, clean before corrupt."""
    rows: list[dict[str, Any]] = [
        {"pair": number, "prompt": prompt, **asdict(share)}
        for number, pair in enumerate(pairs)
        for prompt, shares in zip(("clean", "corrupt"), pair, strict=True)
        for share in shares
    ]
    return pa.Table.from_pylist(rows, _DIRECT)


def token_table(clean: Sequence[str], corrupt: Sequence[str]) -> pa.Table:
    """The tokens of both prompts; null past the end of the shorter one."""
    length = max(len(clean), len(corrupt))
    columns = {
        name: pa.array([*texts, *[None] * (length - len(texts))], pa.string())
        for name, texts in (("clean", clean), ("corrupt", corrupt))
    }
    return pa.table({"position": pa.array(range(length), pa.int32()), **columns})


def _place(entry: Entry, texts: Sequence[str]) -> dict[str, Any]:
    return {
        "site": entry.site,
        "layer": entry.layer,
        "position": entry.position,
        "head": entry.head,
        "feature": entry.feature,
        "name": entry.name,
        "token": None if entry.position is None else texts[entry.position],
    }


def _number(name: str, *, nullable: bool) -> pa.Field:
    return pa.field(name, pa.float64(), nullable=nullable)
