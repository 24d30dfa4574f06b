"""What a sweep found, as tables: a row a cell, a column a metric."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pyarrow as pa

from actstore_worker.patching.metrics import NORMALISED, Metrics
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
        pa.field("name", pa.string()),
        pa.field("token", pa.string()),
        pa.field("unchanged", pa.bool_(), nullable=False),
    ]
)


def normalised_column(metric: str) -> str:
    return "normalised" if metric == "logit_difference" else f"normalised_{metric}"


def cell_table(
    plan: SweepPlan,
    pair: int,
    direction: str,
    texts: Sequence[str],
    found: Metrics,
    base: Metrics,
    source: Metrics,
    unchanged: Sequence[bool],
) -> pa.Table:
    """Of one pair and direction; columns as in proto SweepResult. `texts`: of the base run's tokens."""
    rows = [_place(entry, texts) for entry in plan.grid]
    columns: dict[str, pa.Array] = {
        "pair": pa.array([pair] * len(rows), pa.int32()),
        "direction": pa.array([direction] * len(rows), pa.string()),
        "unchanged": pa.array(unchanged, pa.bool_()),
    }
    for field in _PLACE:
        if field.name not in columns:
            columns[field.name] = pa.array([row[field.name] for row in rows], field.type)
    table = pa.Table.from_arrays([columns[name] for name in _PLACE.names], schema=_PLACE)
    for name in _METRICS:
        table = table.append_column(_number(name, nullable=False), pa.array(getattr(found, name)))
    for name in NORMALISED:
        values = found.normalised(name, base, source)
        array = pa.nulls(len(rows), pa.float64()) if values is None else pa.array(values)
        table = table.append_column(_number(normalised_column(name), nullable=True), array)
    return table


def baseline_table(pairs: Sequence[tuple[Metrics, Metrics]]) -> pa.Table:
    """A row a pair and prompt, clean before corrupt."""
    rows: list[dict[str, Any]] = [
        {"pair": number, "prompt": prompt, **{name: float(getattr(metrics, name)[0]) for name in _METRICS[:-1]}}
        for number, pair in enumerate(pairs)
        for prompt, metrics in zip(("clean", "corrupt"), pair, strict=True)
    ]
    columns = [pa.field("pair", pa.int32()), pa.field("prompt", pa.string())]
    return pa.Table.from_pylist(rows, pa.schema([*columns, *(_number(name, nullable=True) for name in _METRICS[:-1])]))


def token_table(clean: Sequence[str], corrupt: Sequence[str]) -> pa.Table:
    return pa.table(
        {
            "position": pa.array(range(len(clean)), pa.int32()),
            "clean": pa.array(clean, pa.string()),
            "corrupt": pa.array(corrupt, pa.string()),
        }
    )


def _place(entry: Entry, texts: Sequence[str]) -> dict[str, Any]:
    return {
        "site": entry.site,
        "layer": entry.layer,
        "position": entry.position,
        "head": entry.head,
        "name": entry.name,
        "token": None if entry.position is None else texts[entry.position],
    }


def _number(name: str, *, nullable: bool) -> pa.Field:
    return pa.field(name, pa.float64(), nullable=nullable)
