"""Growth in pictures: norms on a log axis, several runs on one, and the factor of each step with a line at 1."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from actstore._errors import refused
from actstore._view.plot import COLOURS, FIT_COLOUR, log_ticks, pyplot, titled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from actstore._norms.profile import Growth
    from actstore._norms.toy import DepthSimulation
    from actstore._norms.weights import WeightNorms

SIMULATED_LINES = 8
# Of provenance; as the store has it where it compares runs.
COMPUTED_WITH = ("dtype", "attention_implementation", "device")
STEP_LABELS = {"layer": "layer", "checkpoint": "step of training"}


def steps(answer: "Growth") -> list[Any]:
    """Where its points stand on the axis."""
    found: list[Any] = answer.points["layer" if answer.axis == "layer" else "step"].to_pylist()
    return found


def growth(answers: "Sequence[Growth]", ax: "Axes | None") -> "Axes":
    ax = _axes(ax, answers)
    ax.set_yscale("log")
    quantities = sorted({answer.quantity for answer in answers})
    ax.set_ylabel("mean L2 norm" if quantities == ["l2"] else f"mean {', '.join(quantities)}")
    for answer, colour in zip(answers, _colours(len(answers)), strict=True):
        at, alone = steps(answer), len(answers) == 1
        name = f"mean, {answer.site}" if alone else f"{_name(answer)}, {answer.label}"
        ax.plot(at, answer.points["mean"].to_pylist(), "o", color=colour, label=name)
        _ring(ax, answer, "mean", colour, named=answer is _first_departing(answers))
        line, label = (FIT_COLOUR, f"fit, {answer.label}") if alone else (colour, None)
        ax.plot(at, answer.points["fitted"].to_pylist(), "--", color=line, label=label)
    log_ticks(ax, integers=answers[0].axis == "layer")
    return _finished(ax, answers, "norm of activations")


def ratios(answers: "Sequence[Growth]", ax: "Axes | None") -> "Axes":
    ax = _axes(ax, answers)
    ax.axhline(1.0, color=FIT_COLOUR, linewidth=1, label="1: no growth")
    ax.set_ylabel("factor of a step")
    if answers[0].axis == "layer":
        ax.set_xticks(sorted({step for answer in answers for step in steps(answer)[1:]}))
    for answer, colour in zip(answers, _colours(len(answers)), strict=True):
        rows = list(zip(steps(answer), answer.points.to_pylist(), strict=True))[1:]
        at, values = [step for step, _ in rows], [row["ratio"] for _, row in rows]
        ax.plot(at, values, "o-", color=colour, label=f"{_name(answer)}, {answer.site}")
        _ring(ax, answer, "ratio", colour, named=answer is _first_departing(answers))
        if answer.rate_interval is not None:
            low, high = ([row[name] for _, row in rows] for name in ("ratio_low", "ratio_high"))
            ax.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
    return _finished(ax, answers, "growth from point to point")


def _ring(ax: "Axes", answer: "Growth", column: str, colour: str, *, named: bool) -> None:
    """Around the points whose step departs from the others."""
    points = zip(steps(answer), answer.points.to_pylist(), strict=True)
    found = [(step, row[column]) for step, row in points if row.get("departs")]
    if found:
        size, name = 2 * pyplot().rcParams["lines.markersize"], "departs from the median step" if named else None
        ax.plot(*zip(*found, strict=True), "o", markersize=size, markerfacecolor="none", color=colour, label=name)


def _first_departing(answers: "Sequence[Growth]") -> "Growth | None":
    """Which names the rings of all in the legend."""
    return next((answer for answer in answers if len(answer.departures)), None)


def _colours(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def _name(answer: "Growth") -> str:
    found = answer.provenance
    if answer.axis == "checkpoint" or not found.model_revision:
        return found.model
    return f"{found.model}@{found.model_revision}"


def _axes(ax: "Axes | None", answers: "Sequence[Growth]") -> "Axes":
    ax = pyplot().subplots(figsize=(7, 4.5), layout="constrained")[1] if ax is None else ax
    ax.set_xlabel(STEP_LABELS[answers[0].axis])
    return ax


def _finished(ax: "Axes", answers: "Sequence[Growth]", what: str) -> "Axes":
    left_out = "; ".join(dict.fromkeys(answer.left_out for answer in answers))
    titled(ax, f"{what} by {STEP_LABELS[answers[0].axis]} ({left_out})", _warnings(answers))
    if len(answers) > 1:  # below, where it hides no point
        ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.14), borderaxespad=0, frameon=False)
    else:
        ax.legend(fontsize=8)
    return ax


def _warnings(answers: "Sequence[Growth]") -> list[str]:
    """Of each, and what they differ by beside model and revision, which the legend has."""
    found = dict.fromkeys(text for answer in answers for text in answer.warnings)
    for name in COMPUTED_WITH:
        values = dict.fromkeys(getattr(answer.provenance, name) for answer in answers)
        values.pop("", None)  # of simulations
        if len(values) > 1:
            found[f"{name} differs, so that numbers differ by rounding as well: {', '.join(values)}"] = None
    return list(found)


def simulated(simulation: "DepthSimulation", ax: "Axes | None") -> "Axes":
    ax = pyplot().subplots(figsize=(7, 4.5), layout="constrained")[1] if ax is None else ax
    steps, norms = simulation.steps, simulation.norms()
    count = min(SIMULATED_LINES, len(steps))
    chosen = [round(i * (len(steps) - 1) / max(1, count - 1)) for i in range(count)]
    for number in chosen:
        shade = 0.2 + 0.7 * number / max(1, len(steps) - 1)
        ax.plot(
            simulation.layers, norms[number], "o-", color=pyplot().cm.viridis(shade), label=f"step {steps[number]:g}"
        )
    ax.set_yscale("log")
    ax.set_xlabel("layer")
    ax.set_ylabel("norm of the layer's weights")
    log_ticks(ax, integers=True)
    ax.set_title(f"{simulation.kind}, simulated", fontsize=10)
    ax.legend(fontsize=8)
    return ax


def weights(answer: "WeightNorms", ax: "Axes | None", component: str, folded: bool) -> "Axes":
    ax = pyplot().subplots(figsize=(7, 4.5), layout="constrained")[1] if ax is None else ax
    column, rows = "frobenius_folded" if folded else "frobenius", answer.of(component).to_pylist()
    squares: dict[int, float] = {}
    for row in rows:
        if row["layer"] is None or row[column] is None:
            raise refused(f"{component} has no {column} by layer", "component", component, "one of a layer, that reads")
        squares[row["layer"]] = squares.get(row["layer"], 0.0) + row[column] ** 2
    if rows[0]["head"] is not None:
        ax.plot([row["layer"] for row in rows], [row[column] for row in rows], ".", color=COLOURS[0], label="each head")
    label = "all heads, root sum of squares" if rows[0]["head"] is not None else component
    ax.plot(list(squares), [square**0.5 for square in squares.values()], "o-", color=COLOURS[1], label=label)
    return _by_layer(ax, f"{component} of {answer.provenance.model}" + (", norm folded" if folded else ""), "norm")


def sublayers(answer: "WeightNorms", ax: "Axes | None", sublayer: str) -> "Axes":
    ax = pyplot().subplots(figsize=(7, 4.5), layout="constrained")[1] if ax is None else ax
    rows = [row for row in answer.sublayers.to_pylist() if row["sublayer"] == sublayer]
    for name, colour in zip(dict.fromkeys(row["input"] for row in rows), COLOURS, strict=False):
        of_input = [row for row in rows if row["input"] == name]
        layers = [row["layer"] for row in of_input]
        ax.plot(layers, [row["sampled"] for row in of_input], "o", color=colour, label=f"{name}, sampled")
        if of_input[0]["expected"] is not None:
            ax.plot(layers, [row["expected"] for row in of_input], "-", color=colour, label=f"{name}, formula")
    return _by_layer(ax, f"what {sublayer} writes in {answer.provenance.model}", "root mean square norm")


def _by_layer(ax: "Axes", title: str, ylabel: str) -> "Axes":
    ax.set_yscale("log")
    ax.set_xlabel("layer")
    ax.set_ylabel(ylabel)
    log_ticks(ax, integers=True)
    ax.set_title(title, fontsize=10)
    ax.legend(fontsize=8)
    return ax
