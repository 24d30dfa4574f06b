"""A model's live answers in pictures: heat maps of heads, patterns, a lens, ablations, and lines of steered texts."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actstore._view.plot import AMOUNTS, CHANGES, COLOURS, axes, heat, slanted_ticks, spread, tell, token_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Row = Mapping[str, Any]

CELL_INCHES, ROW_INCHES, INCHES_MIN, INCHES_MAX = 0.62, 0.32, 3.5, 18.0
# Text on a darker cell than this share of the scale is white.
DARK = 0.6


def heads(ax: "Axes | None", rows: "Sequence[Row]", measure: str) -> "Axes":
    """Layers by heads, coloured by a measure of the rows."""
    layers, columns = (sorted({row[name] for row in rows}) for name in ("layer", "head"))
    values = spread(layers, columns, ((row["layer"], row["head"], row[measure]) for row in rows))
    ax = _sized(ax, values)
    heat(ax, values, AMOUNTS, 0.0, None, measure)
    _named(ax, layers, columns)
    ax.set_xlabel("head")
    return ax


def pattern(ax: "Axes | None", weights: NDArray[np.float32], texts: Sequence[str]) -> "Axes":
    """Queries by keys, under their tokens."""
    labels = list(map(token_label, texts))
    ax = _sized(ax, weights)
    heat(ax, weights, AMOUNTS, 0.0, 1.0, "weight")
    _named(ax, labels, labels)
    ax.set_xlabel("key")
    ax.set_ylabel("query")
    return ax


def lens(
    ax: "Axes | None",
    values: NDArray[np.float64],
    likeliest: NDArray[Any],
    layers: Sequence[int],
    texts: Sequence[str],
    label: str,
) -> "Axes":
    """Layers by tokens, the last layer on top: each cell has its likeliest next token, in the colour of a value.

    What is no number, such as the last position's next token, stays grey.
    """
    low, high = float(min(0.0, np.nanmin(values))), float(max(0.0, np.nanmax(values)))
    ax = _sized(ax, values)
    heat(ax, values, AMOUNTS, low, high, label)
    _named(ax, layers, list(map(token_label, texts)))
    ax.invert_yaxis()
    for (row, column), text in np.ndenumerate(likeliest):
        dark = (values[row, column] - low) / ((high - low) or 1.0) > DARK
        color = "white" if dark else "black"
        tell(ax, row, column, token_label(text), color, fontsize=6, family="monospace", clip_on=True)
    ax.set_xlabel("token")
    return ax


def steering(ax: "Axes | None", texts: "Mapping[str, Sequence[Row]]") -> "Axes":
    """How far the steered prediction is from the unsteered one at each position, one line for each text."""
    ax = axes(ax, 8, 3.5)
    for (by, rows), color in zip(texts.items(), COLOURS, strict=False):
        ax.plot([row["position"] for row in rows], [row["kl"] for row in rows], "o-", color=color, label=f"{by} text")
    ax.set_xlabel("position")
    ax.set_ylabel("KL(steered || unsteered), nats")
    ax.legend(fontsize=8)
    return ax


def ablation(ax: "Axes | None", rows: "Sequence[Row]") -> "Axes":
    """Layers by parts, coloured by the change of the loss, which is written into each cell."""
    layers = sorted({row["layer"] for row in rows})
    parts = list(dict.fromkeys(map(_part, sorted(rows, key=lambda row: (row["kind"], row["head"] or 0)))))
    values = spread(layers, parts, ((row["layer"], _part(row), row["change"]) for row in rows))
    limit = float(np.nanmax(np.abs(values))) or 1.0
    ax = _sized(ax, values)
    heat(ax, values, CHANGES, -limit, limit, "change of loss, nats")
    _named(ax, layers, parts)
    for row, column in zip(*np.nonzero(~np.isnan(values)), strict=True):
        tell(ax, row, column, f"{values[row, column]:.2g}", fontsize=7)
    return ax


def _part(row: "Row") -> str:
    return str(row["kind"]) if row["head"] is None else f"{row['kind']} {row['head']}"


def _sized(ax: "Axes | None", values: NDArray[Any]) -> "Axes":
    """As large as the cells need, within limits."""
    sizes = ((CELL_INCHES, values.shape[1]), (ROW_INCHES, values.shape[0]))
    return axes(ax, *(min(INCHES_MAX, max(INCHES_MIN, 1.5 + inches * count)) for inches, count in sizes))


def _named(ax: "Axes", down: Sequence[object], across: Sequence[object]) -> None:
    slanted_ticks(ax, list(map(str, across)), fontsize=7)
    ax.set_yticks(range(len(down)), list(map(str, down)), fontsize=7)
    ax.set_ylabel("layer")
