"""What all pictures share (extra `plot`): axes, titles, ticks, labels of tokens, colours and heat maps.

Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from actstore._optional import library
from actstore._view.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
FIT_COLOUR = "#000000"
# Of heat maps. Amounts: white to blue, on which black or white text can be read. Changes: as notebooks tint them, blue
# below 0 and orange above; all are light, so that black numbers can be read on them.
AMOUNTS = ("#ffffff", COLOURS[0])
CHANGES = (COLOURS[5], "#ffffff", COLOURS[4])
NO_NUMBER = "#dddddd"
TITLE_COLUMNS = 95
TOKEN_CHARACTERS = 12
INSTALL = "matplotlib pandas"


def pyplot() -> Any:
    """matplotlib.pyplot, or MissingLibrary."""
    return library("matplotlib.pyplot", INSTALL)


def axes(ax: "Axes | None", width: float = 7, height: float = 4.5) -> "Axes":
    """`ax`; if it is None, the axes of a new figure of `width` by `height` inches."""
    if ax is not None:
        return ax
    made: Axes = pyplot().subplots(figsize=(width, height), layout="constrained")[1]
    return made


def titled(ax: "Axes", what: str, warnings: Iterable[str] = ()) -> "Axes":
    """`ax` under the title `what`, with each warning below it, as wide as the picture."""
    lines = [line for text in warnings for line in textwrap.wrap(f"warning: {text}", TITLE_COLUMNS)]
    ax.set_title("\n".join([what, *lines]), fontsize=10)
    return ax


def log_ticks(ax: "Axes", *, integers: bool) -> None:
    """Set readable ticks on a log y axis, and with `integers` only whole numbers on the x axis."""
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


def token_label(text: str, characters: int = TOKEN_CHARACTERS) -> str:
    """The first characters of a token as a label shows them; a dollar sign would begin a formula."""
    return visible(text)[:characters].replace("$", r"\$")


def slanted_ticks(ax: "Axes", labels: Sequence[str], **font: Any) -> None:
    """Label the columns of a picture with texts that end below them."""
    ax.set_xticks(range(len(labels)), labels, rotation=60, ha="right", rotation_mode="anchor", **font)


def cycled_colours(count: int) -> list[str]:
    """COLOURS for `count` lines, from the first again where there are more."""
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def ordered_colours(count: int, first: float = 0.0) -> list[Any]:
    """Colours of `count` lines that have an order, from dark to light; `first` is where on the scale they begin."""
    scale = pyplot().cm.viridis
    return [scale(first + (0.9 - first) * number / max(1, count - 1)) for number in range(count)]


def heat(
    ax: "Axes",
    values: npt.NDArray[Any],
    colours: tuple[str, ...],
    low: float,
    high: float | None,
    label: str = "",
) -> None:
    """Draw values [row, column] in a blend of colours from `low` to `high`, and the scale beside them.

    What is no number stays grey. `high` None is the largest value.
    """
    from matplotlib.colors import LinearSegmentedColormap

    blend = LinearSegmentedColormap.from_list("actstore", colours)
    ax.set_facecolor(NO_NUMBER)
    image = ax.imshow(values, cmap=blend, vmin=low, vmax=high, aspect="auto", interpolation="none")
    ax.get_figure().colorbar(image, ax=ax, pad=0.01, fraction=0.03, label=label)  # type: ignore[union-attr]


def tell(ax: "Axes", row: float, column: float, text: str, colour: str = "black", **font: Any) -> None:
    """Write a text into the middle of a heat map's cell."""
    ax.text(column, row, text, ha="center", va="center", color=colour, **font)


def spread(
    rows: Sequence[object], columns: Sequence[object], values: Iterable[tuple[Any, Any, float]]
) -> npt.NDArray[np.float64]:
    """[row, column] of (row, column, value); NaN where there is none."""
    found = np.full((len(rows), len(columns)), np.nan)
    for row, column, value in values:
        found[rows.index(row), columns.index(column)] = value
    return found
