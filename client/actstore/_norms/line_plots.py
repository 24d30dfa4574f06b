"""Norms as lines: by layer or over training, several runs on one axis, with what was fitted to them; and histograms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from actstore._errors import refused
from actstore._view.plot import (
    COLOURS,
    FIT_COLOUR,
    axes,
    cycled_colours,
    log_ticks,
    ordered_colours,
    pyplot,
    titled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Row = Mapping[str, Any]

SIMULATED_LINES = 8
STEP_LABELS = {"layer": "layer", "checkpoint": "step of training"}


@dataclass(frozen=True)
class Curve:
    """A fit of growth as it is drawn: `points` as in `Growth`, along `axis` (layer, checkpoint).

    `model` is whose norms these are, and `label` what was fitted and how fast it grows; `computed_with` says how the
    norms were computed, so that runs that differ in it can be told apart.
    """

    axis: str
    site: str
    quantity: str
    points: pa.Table
    model: str
    label: str
    left_out: str
    warnings: tuple[str, ...]
    computed_with: Mapping[str, str]
    has_intervals: bool

    @property
    def steps(self) -> list[Any]:
        """Where the points stand on the axis."""
        found: list[Any] = self.points["layer" if self.axis == "layer" else "step"].to_pylist()
        return found

    def column(self, name: str) -> list[Any]:
        """The points' values of one name."""
        values: list[Any] = self.points[name].to_pylist()
        return values

    def departing(self, column: str) -> list[tuple[Any, Any]]:
        """(step, value of a column) of the points whose step departs from the others."""
        rows = zip(self.steps, self.points.to_pylist(), strict=True)
        return [(step, row[column]) for step, row in rows if row.get("departs")]


def by_layer(
    ax: "Axes | None",
    table: pa.Table,
    quantity: str,
    quantiles: Sequence[str],
    banded: str,
    fitted: Curve | None,
) -> "Axes":
    """A line of means per site kind; the kind that `banded` names has a band between its outer quantiles."""
    ax = axes(ax)
    ax.set_xlabel("layer")
    ax.set_ylabel("L2 norm" if quantity == "l2" else quantity)
    ax.set_yscale("log" if quantity == "l2" or pc.min(table["minimum"]).as_py() > 0 else "linear")
    kinds = list(dict.fromkeys(table["site"].to_pylist()))
    for kind, colour in zip(kinds, cycled_colours(len(kinds)), strict=True):
        rows = table.filter(pc.equal(table["site"], kind)).to_pydict()
        ax.plot(rows["layer"], rows["mean"], "o-", color=colour, label=f"mean, {kind}")
        # Bands of every kind over each other would hide them all.
        if len(quantiles) > 1 and (kind == banded or len(kinds) == 1):
            _band(ax, kind, rows, quantiles[0], quantiles[-1], colour)
    _line(ax, fitted)
    if ax.get_yscale() == "log":
        log_ticks(ax, integers=True)
    ax.legend(fontsize=8)
    return ax


def _line(ax: "Axes", fitted: Curve | None) -> None:
    if fitted is not None:
        ax.plot(fitted.steps, fitted.column("fitted"), "--", color=FIT_COLOUR, label=f"fit, {fitted.label}")


def _band(ax: "Axes", kind: str, rows: "Row", low: str, high: str, colour: str) -> None:
    label = f"{float(low[1:]):.0%} to {float(high[1:]):.0%}, {kind}"
    ax.fill_between(rows["layer"], rows[low], rows[high], color=colour, alpha=0.15, linewidth=0, label=label)


def by_checkpoint(ax: "Axes | None", rows: pa.Table, quantity: str, fitted: Curve | None) -> "Axes":
    """A line of means over layers for each checkpoint, from dark to light over training."""
    ax = axes(ax)
    steps = list(dict.fromkeys(rows.sort_by("step")["step"].to_pylist()))
    for step, colour in zip(steps, ordered_colours(len(steps)), strict=True):
        own = rows.filter(pc.equal(rows["step"], step)).to_pydict()
        ax.plot(own["layer"], own["mean"], "o-", color=colour, label=f"step {step:g}")
    _line(ax, fitted)
    if pc.min(rows["mean"]).as_py() > 0:
        ax.set_yscale("log")
        log_ticks(ax, integers=True)
    ax.set_xlabel("layer")
    ax.set_ylabel(f"mean {quantity}")
    ax.legend(fontsize=8)
    return ax


def histogram(ax: "Axes | None", bins: pa.Table, quantity: str) -> "Axes":
    """A line of counts for each layer, from dark to light; on a log axis where all values are above 0."""
    ax = axes(ax)
    layers = sorted(set(bins["layer"].to_pylist()))
    for layer, colour in zip(layers, ordered_colours(len(layers)), strict=True):
        own = bins.filter(pc.equal(bins["layer"], layer)).to_pydict()
        ax.stairs(own["count"], [*own["low"], own["high"][-1]], color=colour, label=f"layer {layer}")
    if pc.min(bins["low"]).as_py() > 0:
        ax.set_xscale("log")
    ax.set_xlabel(quantity)
    ax.set_ylabel("tokens")
    ax.legend(fontsize=8)
    return ax


def growth(ax: "Axes | None", curves: Sequence[Curve]) -> "Axes":
    """Mean norms and the fitted line of each curve, on a log axis; a ring is around points whose step departs."""
    ax = axes(ax)
    ax.set_yscale("log")
    quantities = sorted({curve.quantity for curve in curves})
    ax.set_ylabel("mean L2 norm" if quantities == ["l2"] else f"mean {', '.join(quantities)}")
    for curve, colour in zip(curves, cycled_colours(len(curves)), strict=True):
        alone = len(curves) == 1
        name = f"mean, {curve.site}" if alone else f"{curve.model}, {curve.label}"
        ax.plot(curve.steps, curve.column("mean"), "o", color=colour, label=name)
        _ring(ax, curve, "mean", colour, named=curve is _first_departing(curves))
        line, label = (FIT_COLOUR, f"fit, {curve.label}") if alone else (colour, None)
        ax.plot(curve.steps, curve.column("fitted"), "--", color=line, label=label)
    log_ticks(ax, integers=curves[0].axis == "layer")
    return _finished(ax, curves, "norm of activations")


def ratios(ax: "Axes | None", curves: Sequence[Curve]) -> "Axes":
    """The factor of each step with its interval, a ring around one that departs, and a line at 1."""
    ax = axes(ax)
    ax.axhline(1.0, color=FIT_COLOUR, linewidth=1, label="1: no growth")
    ax.set_ylabel("factor of a step")
    if curves[0].axis == "layer":
        ax.set_xticks(sorted({step for curve in curves for step in curve.steps[1:]}))
    for curve, colour in zip(curves, cycled_colours(len(curves)), strict=True):
        at = curve.steps[1:]
        ax.plot(at, curve.column("ratio")[1:], "o-", color=colour, label=f"{curve.model}, {curve.site}")
        _ring(ax, curve, "ratio", colour, named=curve is _first_departing(curves))
        if curve.has_intervals:
            low, high = (curve.column(name)[1:] for name in ("ratio_low", "ratio_high"))
            ax.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
    return _finished(ax, curves, "growth from point to point")


def _ring(ax: "Axes", curve: Curve, column: str, colour: str, *, named: bool) -> None:
    if found := curve.departing(column):
        size, name = 2 * pyplot().rcParams["lines.markersize"], "departs from the median step" if named else None
        ax.plot(*zip(*found, strict=True), "o", markersize=size, markerfacecolor="none", color=colour, label=name)


def _first_departing(curves: Sequence[Curve]) -> Curve | None:
    """Which names the rings of all in the legend."""
    return next((curve for curve in curves if curve.departing("ratio")), None)


def _finished(ax: "Axes", curves: Sequence[Curve], what: str) -> "Axes":
    along, left_out = STEP_LABELS[curves[0].axis], "; ".join(dict.fromkeys(curve.left_out for curve in curves))
    ax.set_xlabel(along)
    titled(ax, f"{what} by {along} ({left_out})", _warnings(curves))
    if len(curves) > 1:  # below, where it hides no point
        ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.14), borderaxespad=0, frameon=False)
    else:
        ax.legend(fontsize=8)
    return ax


def _warnings(curves: Sequence[Curve]) -> list[str]:
    """The warnings of each curve, and one if curves differ in more than model and revision, which the legend has."""
    found = dict.fromkeys(text for curve in curves for text in curve.warnings)
    for name in curves[0].computed_with:
        values = dict.fromkeys(curve.computed_with[name] for curve in curves)
        values.pop("", None)  # of simulations
        if len(values) > 1:
            found[f"{name} differs, so that numbers differ by rounding as well: {', '.join(values)}"] = None
    return list(found)


def simulated(ax: "Axes | None", steps: Sequence[float], layers: Sequence[int], norms: NDArray[np.float64]) -> "Axes":
    """Norms [step, layer] over layers at some of the steps, the first and last among them, from dark to light."""
    ax, colours = axes(ax), ordered_colours(len(steps), 0.2)
    count = min(SIMULATED_LINES, len(steps))
    for number in (round(i * (len(steps) - 1) / max(1, count - 1)) for i in range(count)):
        ax.plot(layers, norms[number], "o-", color=colours[number], label=f"step {steps[number]:g}")
    return _on_log_axis(ax, "norm of the layer's weights")


def weights(ax: "Axes | None", rows: "Sequence[Row]", column: str, component: str) -> "Axes":
    """Norms of a component by layer: a point for each head, if any, and a line of their root sum of squares."""
    ax = axes(ax)
    squares: dict[int, float] = {}
    for row in rows:
        if row["layer"] is None or row[column] is None:
            raise refused(f"{component} has no {column} by layer", "component", component, "a component with it")
        squares[row["layer"]] = squares.get(row["layer"], 0.0) + row[column] ** 2
    has_heads = rows[0]["head"] is not None
    if has_heads:
        ax.plot([row["layer"] for row in rows], [row[column] for row in rows], ".", color=COLOURS[0], label="each head")
    label = "all heads, root sum of squares" if has_heads else component
    ax.plot(list(squares), [square**0.5 for square in squares.values()], "o-", color=COLOURS[1], label=label)
    return _on_log_axis(ax, "norm")


def sublayers(ax: "Axes | None", rows: "Sequence[Row]") -> "Axes":
    """What a sublayer writes by layer, for each input: sampled points, and the formula as a line if there is one."""
    ax = axes(ax)
    for name, colour in zip(dict.fromkeys(row["input"] for row in rows), COLOURS, strict=False):
        of_input = [row for row in rows if row["input"] == name]
        layers = [row["layer"] for row in of_input]
        ax.plot(layers, [row["sampled"] for row in of_input], "o", color=colour, label=f"{name}, sampled")
        if of_input[0]["expected"] is not None:
            ax.plot(layers, [row["expected"] for row in of_input], "-", color=colour, label=f"{name}, formula")
    return _on_log_axis(ax, "root mean square norm")


def _on_log_axis(ax: "Axes", ylabel: str) -> "Axes":
    ax.set_yscale("log")
    ax.set_xlabel("layer")
    ax.set_ylabel(ylabel)
    log_ticks(ax, integers=True)
    ax.legend(fontsize=8)
    return ax
