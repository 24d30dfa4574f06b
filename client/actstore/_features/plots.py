"""Features in pictures: histograms, bars of a logit lens, strips of ablated texts, and a page of these together."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from actstore._view.plot import CHANGES, COLOURS, axes, heat, pyplot, slanted_ticks, tell, token_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Picture = Callable[[Axes], object]

RAISED, LOWERED = COLOURS[1], COLOURS[0]
TOKEN_CHARACTERS = 14
PAGE_INCHES, PANEL_INCHES, STRIP_INCHES, SQUARE_INCHES = 11.0, 4.2, 1.5, 5.5
# A change below this share of the largest is left without its number.
TOLD_SHARE = 0.1


def histogram(ax: "Axes | None", bins: Mapping[str, list[Any]]) -> "Axes":
    """Bars of the columns low, high and count; counts on a log axis where there are any."""
    ax = axes(ax, 6, 3.5)
    widths = [high - low for low, high in zip(bins["low"], bins["high"], strict=True)]
    ax.bar(bins["low"], bins["count"], width=widths, align="edge", color=COLOURS[0], edgecolor="white")
    if any(bins["count"]):
        ax.set_yscale("log")
        ax.set_ylim(bottom=0.5)  # so that a bin with one token has a height
    ax.set_xlabel("activation")
    ax.set_ylabel("tokens")
    return ax


def lens_bars(ax: "Axes | None", texts: Sequence[str], logits: Sequence[float]) -> "Axes":
    """One bar for each token, the first on top: what is raised in one colour, what is lowered in another."""
    ax = axes(ax, 6, 4)
    ax.barh(range(len(logits)), logits, color=[RAISED if logit > 0 else LOWERED for logit in logits])
    ax.set_yticks(range(len(texts)), _labels(texts), family="monospace", fontsize=7)
    ax.invert_yaxis()
    ax.axvline(0, color="black", linewidth=0.6)
    ax.set_xlabel("logit")
    return ax


def strip(ax: "Axes | None", changes: Sequence[float | None], texts: Sequence[str], scale: float) -> "Axes":
    """A square a token over its text, coloured by its change: fully by one of `scale`, not at all by None."""
    ax = axes(ax, PAGE_INCHES, STRIP_INCHES)
    return _squares(ax, np.array([changes], np.float64), texts, scale)


def pairs_square(
    ax: "Axes | None",
    texts: Sequence[str],
    changes: Mapping[tuple[int, int], float],
    scale: float,
) -> "Axes":
    """Tokens by tokens: a cell has the color of the pair's change, and on the diagonal of a single token's change."""
    ax = axes(ax, PAGE_INCHES, SQUARE_INCHES)
    values = np.full((len(texts), len(texts)), np.nan)
    for (first, second), change in changes.items():
        values[first, second] = values[second, first] = change
    _squares(ax, values, texts, scale)
    ax.set_yticks(range(len(texts)), _labels(texts), family="monospace", fontsize=7)
    return ax


def page(panels: "Sequence[Picture]", strips: "Sequence[Picture]") -> "Figure":
    """One figure of several pictures: panels side by side, and strips below them."""
    heights = [PANEL_INCHES, *[STRIP_INCHES] * len(strips)]
    figure: Figure = pyplot().figure(figsize=(PAGE_INCHES, sum(heights)), layout="constrained")
    rows = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    columns = rows[0].subgridspec(1, len(panels))
    for number, draw in enumerate(panels):
        draw(figure.add_subplot(columns[number]))
    for number, draw in enumerate(strips, start=1):
        draw(figure.add_subplot(rows[number]))
    return figure


def _squares(ax: "Axes", values: npt.NDArray[np.float64], texts: Sequence[str], scale: float) -> "Axes":
    limit = scale or 1.0
    heat(ax, values, CHANGES, -limit, limit)
    for row, column in zip(*np.nonzero(np.abs(np.nan_to_num(values)) >= TOLD_SHARE * limit), strict=True):
        tell(ax, row, column, f"{values[row, column]:.2g}", fontsize=7)
    slanted_ticks(ax, _labels(texts), fontsize=8, family="monospace")
    ax.set_yticks([])
    return ax


def _labels(texts: Sequence[str]) -> list[str]:
    return [token_label(text, TOKEN_CHARACTERS) for text in texts]
