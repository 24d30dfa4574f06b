"""Heat maps of heads, patterns, a lens and ablations, and lines of a steered text (extra `plot`)."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actstore._view.plot import COLOURS, pyplot
from actstore._view.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from actstore._models.answers import Attention, InductionScores, SiteAblation, SteeredText, TextLens

# From white to Okabe and Ito's blue, on which black and white numbers can be read; and as notebooks tint signed values.
AMOUNTS = ("#ffffff", "#0072b2")
CHANGES = ("#56b4e9", "#ffffff", "#e69f00")
TOKEN_CHARACTERS = 12
CELL_INCHES, ROW_INCHES, INCHES_MIN, INCHES_MAX = 0.62, 0.32, 3.5, 18.0
# Text on a darker cell than this share of the scale is white.
DARK = 0.6


def heads(answer: "Attention | InductionScores", measure: str, ax: "Axes | None") -> "Axes":
    values, layers, columns = _layers_by_heads(answer, measure)
    ax = _heat(ax, values, [str(head) for head in columns], layers, measure, _map(AMOUNTS), 0.0, None)
    ax.set_xlabel("head")
    ax.set_title(f"{answer.provenance.model}: {measure}", fontsize=10)
    return ax


def pattern(answer: "Attention", layer: int, head: int, ax: "Axes | None") -> "Axes":
    texts = [_label(text) for text in answer.tokens["text"].to_pylist()]
    ax = _heat(ax, answer.pattern(layer, head), texts, texts, "weight", _map(AMOUNTS), 0.0, 1.0)
    ax.set_xlabel("key")
    ax.set_ylabel("query")
    ax.set_title(f"{answer.provenance.model}: attention of head {layer}.{head}", fontsize=10)
    return ax


def lens(answer: "TextLens", column: str, ax: "Axes | None") -> "Axes":
    """The last layer on top. What is no number, such as the last position's next token, stays grey."""
    values = answer.grid(column).astype(np.float64)
    texts = [_label(text) for text in answer.tokens["text"].to_pylist()]
    layers = [str(layer) for layer in answer.layers]
    unit = "" if column == "probability" else ", nats"
    ax = _heat(ax, values, texts, layers, column + unit, _map(AMOUNTS), *_limits(values))
    ax.invert_yaxis()
    low, high = _limits(values)
    for (row, place), text in np.ndenumerate(answer.grid("text")):
        dark = (values[row, place] - low) / ((high - low) or 1.0) > DARK
        colour = "white" if dark else "black"
        ax.text(
            place,
            row,
            _label(text),
            ha="center",
            va="center",
            fontsize=6,
            color=colour,
            family="monospace",
            clip_on=True,
        )
    ax.set_xlabel("token")
    ax.set_ylabel("layer")
    ax.set_title(f"{answer.provenance.model}: likeliest next token by layer, at {answer.site}", fontsize=10)
    return ax


def steering(answer: "SteeredText", ax: "Axes | None") -> "Axes":
    ax = pyplot().subplots(figsize=(8, 3.5), layout="constrained")[1] if ax is None else ax
    for by, colour in zip(("steered", "unsteered"), COLOURS, strict=False):
        rows = list(answer.written(by))
        ax.plot([row["position"] for row in rows], [row["kl"] for row in rows], "o-", color=colour, label=f"{by} text")
    ax.set_xlabel("position")
    ax.set_ylabel("KL(steered || unsteered), nats")
    ax.set_title(f"{answer.provenance.model} steered at {answer.site}", fontsize=10)
    ax.legend(fontsize=8)
    return ax


def ablation(answer: "SiteAblation", ax: "Axes | None") -> "Axes":
    rows = answer.table.to_pylist()
    layers = sorted({row["layer"] for row in rows})
    columns = list(dict.fromkeys(_part(row) for row in sorted(rows, key=lambda row: (row["kind"], row["head"] or 0))))
    values = np.full((len(layers), len(columns)), np.nan)
    for row in rows:
        values[layers.index(row["layer"]), columns.index(_part(row))] = row["change"]
    limit = float(np.nanmax(np.abs(values))) or 1.0
    shown = [str(layer) for layer in layers]
    ax = _heat(ax, values, columns, shown, "change of loss, nats", _map(CHANGES), -limit, limit)
    for (place, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            ax.text(column, place, f"{value:.2g}", ha="center", va="center", fontsize=7)
    ax.set_ylabel("layer")
    ax.set_title(
        f"{answer.provenance.model} without each part ({answer.ablation}), loss {answer.loss:.4g}", fontsize=10
    )
    return ax


def _part(row: dict[str, Any]) -> str:
    return str(row["kind"]) if row["head"] is None else f"{row['kind']} {row['head']}"


def _layers_by_heads(
    answer: "Attention | InductionScores", measure: str
) -> tuple[NDArray[np.float64], list[str], list[int]]:
    rows = answer.table.to_pylist()
    layers, columns = sorted({row["layer"] for row in rows}), sorted({row["head"] for row in rows})
    values = np.full((len(layers), len(columns)), np.nan)
    for row in rows:
        values[layers.index(row["layer"]), columns.index(row["head"])] = row[measure]
    return values, [str(layer) for layer in layers], columns


def _heat(
    ax: "Axes | None",
    values: NDArray[Any],
    across: list[str],
    down: list[str],
    label: str,
    colours: Any,
    low: float,
    high: float | None,
) -> "Axes":
    size = tuple(
        min(INCHES_MAX, max(INCHES_MIN, 1.5 + inches * count))
        for inches, count in ((CELL_INCHES, len(across)), (ROW_INCHES, len(down)))
    )
    ax = pyplot().subplots(figsize=size, layout="constrained")[1] if ax is None else ax
    ax.set_facecolor("#dddddd")
    image = ax.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="none")
    ax.set_xticks(range(len(across)), across, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
    ax.set_yticks(range(len(down)), down, fontsize=7)
    ax.set_ylabel("layer")
    ax.get_figure().colorbar(image, ax=ax, pad=0.01, fraction=0.03, label=label)  # type: ignore[union-attr]
    return ax


def _limits(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(min(0.0, np.nanmin(values))), float(max(0.0, np.nanmax(values)))


def _map(colours: tuple[str, ...]) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("actstore", colours)


def _label(text: str) -> str:
    """A dollar sign would begin a formula."""
    return visible(text)[:TOKEN_CHARACTERS].replace("$", r"\$")
