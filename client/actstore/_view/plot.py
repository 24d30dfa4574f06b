"""Line plots and histograms (extra `plot`). Colours are Okabe and Ito's, which colour-blind readers can tell apart."""

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from actstore._answer import library

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from actstore._features.stored import FeatureStatistics
    from actstore._norms.profile import Growth, NormProfile

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
FIT_COLOUR = "#000000"
TITLE_COLUMNS = 95
FITTED_LAYERS_MIN = 3  # what a fit needs
INSTALL = "matplotlib pandas"


def pyplot() -> Any:
    return library("matplotlib.pyplot", INSTALL)


def norm_profile(profile: "NormProfile", ax: "Axes | None", fit: str | None) -> "Axes":
    ax = _norm_axes(ax)
    if profile.quantity != "l2":
        ax.set_ylabel(profile.quantity)
        ax.set_yscale("log" if pc.min(profile.table["minimum"]).as_py() > 0 else "linear")
    kinds = list(dict.fromkeys(profile.table.column("site").to_pylist()))
    for kind, colour in zip(kinds, COLOURS * (1 + len(kinds) // len(COLOURS)), strict=False):
        rows = profile.table.filter(pc.equal(profile.table["site"], kind))
        ax.plot(_column(rows, "layer"), _column(rows, "mean"), "o-", color=colour, label=f"mean, {kind}")
        # Bands of every kind over each other would hide them all.
        if kind == fit or len(kinds) == 1:
            _draw_band(ax, kind, rows, profile.quantiles, colour)
    if fit is not None and pc.sum(pc.equal(profile.table["site"], fit)).as_py() >= FITTED_LAYERS_MIN:
        layers = profile.table.filter(pc.equal(profile.table["site"], fit)).column("layer")
        _draw_fit(profile.fit_growth(fit, (pc.min(layers).as_py(), pc.max(layers).as_py())), ax)
    return _finished(ax, profile)


def feature_histogram(answer: "FeatureStatistics", ax: "Axes | None") -> "Axes":
    ax = pyplot().subplots(figsize=(6, 3.5), layout="constrained")[1] if ax is None else ax
    low, high = _column(answer.table, "low"), _column(answer.table, "high")
    widths = [upper - lower for lower, upper in zip(low, high, strict=True)]
    ax.bar(low, _column(answer.table, "count"), width=widths, align="edge", color=COLOURS[0], edgecolor="white")
    if answer.active_tokens:
        ax.set_yscale("log")
        ax.set_ylim(bottom=0.5)  # so that a bin with one token has a height
    ax.set_xlabel("activation")
    ax.set_ylabel("tokens")
    ax.set_title(
        f"feature {answer.feature} of {answer.sae}\nactive on {answer.density:.3%} of {answer.tokens:,} tokens",
        fontsize=10,
    )
    return ax


def _norm_axes(ax: "Axes | None") -> "Axes":
    if ax is None:
        ax = pyplot().subplots(figsize=(7, 4.5), layout="constrained")[1]
    ax.set_yscale("log")
    ax.set_xlabel("layer")
    ax.set_ylabel("L2 norm")
    return ax


def _draw_band(ax: "Axes", kind: str, rows: pa.Table, quantiles: tuple[str, ...], colour: str) -> None:
    if len(quantiles) < 2:
        return
    low, high = quantiles[0], quantiles[-1]
    band = f"{float(low[1:]):.0%} to {float(high[1:]):.0%}, {kind}"
    ax.fill_between(
        _column(rows, "layer"),
        _column(rows, low),
        _column(rows, high),
        color=colour,
        alpha=0.15,
        linewidth=0,
        label=band,
    )


def _draw_fit(answer: "Growth", ax: "Axes") -> None:
    layers, fitted = _column(answer.points, "layer"), _column(answer.points, "fitted")
    ax.plot(layers, fitted, "--", color=FIT_COLOUR, label=f"fit, {answer.label}")


def _finished(ax: "Axes", profile: "NormProfile") -> "Axes":
    if ax.get_yscale() == "log":
        log_ticks(ax, integers=True)
    ax.legend(fontsize=8)
    return titled(ax, f"norm of activations by layer ({profile.left_out})", profile.warnings)


def titled(ax: "Axes", what: str, warnings: Iterable[str]) -> "Axes":
    """Each warning below the title, as wide as the picture."""
    lines = [line for text in warnings for line in textwrap.wrap(f"warning: {text}", TITLE_COLUMNS)]
    ax.set_title("\n".join([what, *lines]), fontsize=10)
    return ax


def log_ticks(ax: "Axes", *, integers: bool) -> None:
    """Readable ticks of a log axis; `integers`: of the other one."""
    from matplotlib.ticker import LogFormatter, MaxNLocator, NullLocator, ScalarFormatter

    if integers:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    low, high = ax.get_ylim()
    if high < 10 * low:  # a log axis would label one tick of less than a decade, or none
        ax.yaxis.set_major_locator(MaxNLocator(6))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(ScalarFormatter())
    else:
        ax.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))


def _column(table: pa.Table, name: str) -> list[Any]:
    values: list[Any] = table.column(name).to_pylist()
    return values
