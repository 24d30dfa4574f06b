"""Bars of a logit lens, strips of ablated texts, and a feature's page as one figure (extra `plot`)."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from actstore._features.live import ABLATION_WORDS
from actstore._view.plot import COLOURS, feature_histogram, pyplot
from actstore._view.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from actstore._features.live import DirectionAblation, LogitLens, TextAblation
    from actstore._features.page import FeaturePage

# As in notebooks: sky blue below 0, white, orange above. All are light, so that black numbers can be read on them.
CHANGE_COLOURS = ("#56b4e9", "#ffffff", "#e69f00")
RAISED, LOWERED = COLOURS[1], COLOURS[0]
TOKEN_CHARACTERS = 14
PAGE_INCHES, PANEL_INCHES, STRIP_INCHES, SQUARE_INCHES = 11.0, 4.2, 1.5, 5.5
# A change below this share of the largest is left without its number.
TOLD_SHARE = 0.1


def lens_bars(answer: "LogitLens", ax: "Axes | None", feature: int | None) -> "Axes":
    """The tokens that are raised most on top, those that are lowered most at the bottom."""
    ax = pyplot().subplots(figsize=(6, 4), layout="constrained")[1] if ax is None else ax
    rows = [*answer.end("top", feature), *reversed(answer.end("bottom", feature))]
    logits = [row["logit"] for row in rows]
    colours = [RAISED if logit > 0 else LOWERED for logit in logits]
    ax.barh(range(len(rows)), logits, color=colours)
    ax.set_yticks(range(len(rows)), [_label(row["text"]) for row in rows], family="monospace", fontsize=7)
    ax.invert_yaxis()
    ax.axvline(0, color="black", linewidth=0.6)
    ax.set_xlabel("logit")
    ax.set_title(f"logit lens of the {answer.side} direction", fontsize=10)
    return ax


def ablation_strip(answer: "TextAblation", ax: "Axes | None") -> "Axes":
    tokens = [row for row in answer.tokens.to_pylist() if answer.first <= row["position"] <= answer.position]
    place = {row["position"]: i for i, row in enumerate(tokens)}
    pairs = [row for row in answer if row["second"] is not None]
    values = np.full((len(tokens) if pairs else 1, len(tokens)), np.nan)
    for row in answer:
        first = place[row["first"]]
        if row["second"] is None:
            values[first if pairs else 0, first] = row["change"]
        else:
            second = place[row["second"]]
            values[first, second] = values[second, first] = row["change"]
    height = SQUARE_INCHES if pairs else STRIP_INCHES
    title = (
        f"feature {answer.feature} at the last token, {answer.activation:.3g}: change with each token "
        f"{ABLATION_WORDS[answer.ablation]}" + (", or each two of them" if pairs else "")
    )
    ax = _strip(ax, values, [row["text"] for row in tokens], title, answer.scale, height)
    if pairs:
        ax.set_yticks(range(len(tokens)), [_label(row["text"]) for row in tokens], family="monospace", fontsize=7)
    return ax


def direction_strip(answer: "DirectionAblation", ax: "Axes | None") -> "Axes":
    rows = list(answer)
    values = np.array([[row["change"] for row in rows]])
    title = f"log-probability of each token without what feature {answer.feature} writes: change, nats"
    return _strip(ax, values, [row["next_text"] for row in rows], title, answer.scale, STRIP_INCHES)


def page(answer: "FeaturePage") -> "Figure":
    strips: list[TextAblation | DirectionAblation] = [*answer.ablated_text, *answer.ablated_direction]
    heights = [PANEL_INCHES, *[STRIP_INCHES] * len(strips)]
    figure = pyplot().figure(figsize=(PAGE_INCHES, sum(heights)), layout="constrained")
    rows = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    panels = rows[0].subgridspec(1, 1 if answer.lens is None else 2)
    feature_histogram(answer.statistics, figure.add_subplot(panels[0]))
    if answer.lens is not None:
        lens_bars(answer.lens, figure.add_subplot(panels[1]), answer.statistics.feature)
    for i, part in enumerate(strips, start=1):
        part.plot(figure.add_subplot(rows[i]))
    drawn: Figure = figure
    return drawn


def _strip(
    ax: "Axes | None",
    values: npt.NDArray[np.float64],
    texts: list[str],
    title: str,
    scale: float,
    height: float,
) -> "Axes":
    """A square a token under its text; NaN, which is of no token, stays grey."""
    ax = pyplot().subplots(figsize=(PAGE_INCHES, height), layout="constrained")[1] if ax is None else ax
    ax.set_facecolor("#dddddd")
    limit = scale or 1.0
    image: Any = ax.imshow(values, cmap=_colours(), vmin=-limit, vmax=limit, aspect="auto", interpolation="none")
    for row, column in zip(*np.nonzero(np.abs(np.nan_to_num(values)) >= TOLD_SHARE * limit), strict=True):
        number = f"{values[row, column]:.2g}"
        ax.text(float(column), float(row), number, ha="center", va="center", fontsize=7, color="black")
    ax.set_xticks(range(len(texts)), [_label(text) for text in texts], rotation=60, ha="right", rotation_mode="anchor")
    ax.tick_params(axis="x", labelsize=8, labelfontfamily="monospace")
    ax.set_yticks([])
    ax.set_title(title, fontsize=10)
    ax.get_figure().colorbar(image, ax=ax, pad=0.01, fraction=0.03)  # type: ignore[union-attr]
    return ax


def _colours() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("change", CHANGE_COLOURS)


def _label(text: str) -> str:
    """A dollar sign would begin a formula."""
    return visible(text)[:TOKEN_CHARACTERS].replace("$", r"\$")
