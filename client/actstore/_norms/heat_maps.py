"""Norms as heat maps: layers by positions, by checkpoints, or by single tokens; of one layer's tokens a line."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actstore._errors import refused
from actstore._view.plot import COLOURS, axes, log_ticks, slanted_ticks, spread, token_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Values = npt.NDArray[np.float64]

# More than so many would lie on each other.
LABELLED_TOKENS_MAX, TICKS_MAX = 80, 24


def by_position(ax: "Axes | None", table: pa.Table, quantity: str) -> "Axes":
    """Means of one site kind, one row for each layer and one column for each position; blank where no token counts."""
    from matplotlib.ticker import MaxNLocator

    kinds = sorted(set(table["site"].to_pylist()))
    if len(kinds) != 1:
        raise refused("a heat map can show one site kind", "sites", kinds, "run.norms('resid_post', by='position')")
    layers, positions = (np.array(table[name].to_pylist()) for name in ("layer", "position"))
    means = np.full((layers.max() + 1, positions.max() + 1), np.nan)
    means[layers, positions] = table["mean"].to_pylist()
    ax, first = axes(ax, 8, 3.5), layers.min()
    extent = (-0.5, positions.max() + 0.5, first - 0.5, layers.max() + 0.5)
    _heat(ax, means[first:], f"mean {quantity}", norm=_log_where_positive(means), extent=extent)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("position")
    return ax


def by_checkpoint(ax: "Axes | None", rows: pa.Table, quantity: str) -> "Axes":
    """Means of one site kind, one row for each layer and one column for each checkpoint."""
    cells, steps, layers = _over_training(rows, "mean")
    ax = axes(ax, 7, 3.8)
    _heat(ax, cells, f"mean {quantity}", norm=_log_where_positive(cells))
    return _name_checkpoints(ax, steps, layers)


def interaction(ax: "Axes | None", rows: pa.Table) -> "Axes":
    """Factors over a product, by layer (rows) and checkpoint (columns); a factor and its inverse are as far from 1."""
    from matplotlib.colors import LogNorm

    cells, steps, layers = _over_training(rows, "factor")
    ax = axes(ax, 7, 3.8)
    far = max(1.01, float(np.exp(np.abs(np.log(rows["factor"].to_numpy())).max())))
    bar = _heat(ax, cells, "mean over product", norm=LogNorm(1 / far, far), cmap="RdBu_r")
    bar.set_ticks([1 / far, 1, far], labels=[f"{tick:.3g}" for tick in (1 / far, 1, far)], minor=False)
    bar.minorticks_off()
    return _name_checkpoints(ax, steps, layers)


def _over_training(rows: pa.Table, column: str) -> "tuple[Values, list[float], list[int]]":
    """[layer, checkpoint] of a column, the steps and the layers. Checkpoints stand side by side, whatever lies between
    their steps; NaN where there is no number.
    """
    layers, steps = (sorted(set(rows[name].to_pylist())) for name in ("layer", "step"))
    values = ((row["layer"], row["step"], row[column]) for row in rows.to_pylist())
    return spread(layers, steps, values), steps, layers


def _name_checkpoints(ax: "Axes", steps: Sequence[float], layers: Sequence[int]) -> "Axes":
    ax.set_xticks(range(len(steps)), [f"{step:g}" for step in steps])
    ax.set_yticks(range(len(layers)), list(map(str, layers)))
    ax.set_xlabel("step of training")
    return ax


def _heat(ax: "Axes", values: "Values", label: str, **how: Any) -> Any:
    """Draw values [layer, column], the first layer at the bottom. Returns the bar of colours."""
    image = ax.imshow(values, aspect="auto", origin="lower", interpolation="nearest", **how)
    ax.set_ylabel("layer")
    return ax.figure.colorbar(image, ax=ax, label=label)


def _log_where_positive(values: "Values") -> Any:
    """A log scale of colours where there are numbers and all are above 0; else None, which is a linear one."""
    from matplotlib.colors import LogNorm

    return LogNorm() if 0 < np.nanmin(values, initial=np.inf) < np.inf else None


def by_token(
    ax: "Axes | None", values: "Values", layers: Sequence[str], quantity: str, sequences: "npt.NDArray[np.integer]"
) -> "Axes":
    """`values` [token, layer], a column for each token; one layer is a line. `sequences` has each token's sequence."""
    ax, starts = axes(ax, 10, 4), _starts(sequences)
    if len(layers) == 1:
        _token_line(ax, values[:, 0], starts)
        ax.set_ylabel(quantity)
    else:
        shown = np.where(np.isfinite(values), values, np.nan).T
        _heat(ax, shown, quantity, norm=_log_where_positive(shown))
        ax.set_yticks(range(len(layers)), layers)
    for start in starts[1:]:
        ax.axvline(start - 0.5, color="#888888" if len(layers) == 1 else "white", linewidth=1.5)
    return ax


def _starts(sequences: "npt.NDArray[np.integer]") -> list[int]:
    """Rows that sequences begin at."""
    return np.flatnonzero(np.diff(sequences, prepend=-1)).tolist()


def _token_line(ax: "Axes", values: "Values", starts: list[int]) -> None:
    """Sequences do not go on in each other."""
    for first, last in zip(starts, [*starts[1:], len(values)], strict=True):
        ax.plot(range(first, last), values[first:last], ".-", color=COLOURS[0])
    if np.nanmin(values, initial=np.inf) > 0:
        ax.set_yscale("log")
        log_ticks(ax, integers=False)
    ax.margins(x=0.01)


def name_tokens(ax: "Axes", tokens: pa.Table) -> None:
    """Label tokens by their texts; if they are many, by their positions, or by the sequences that begin there."""
    sequences, starts = tokens["sequence"].to_pylist(), _starts(tokens["sequence"].to_numpy())
    first, last = sequences[0], sequences[-1]
    if len(tokens) <= LABELLED_TOKENS_MAX:
        slanted_ticks(ax, [token_label(text) for text in tokens["text"].to_pylist()], fontsize=7)
        ax.set_xlabel(f"tokens of sequence {first}" if first == last else f"tokens of sequences {first} to {last}")
        return
    several = len(starts) > 1
    places = starts if several else range(len(tokens))
    numbers = [sequences[start] for start in starts] if several else tokens["position"].to_pylist()
    step = -(-len(places) // TICKS_MAX)
    ax.set_xticks(places[::step], [str(number) for number in numbers[::step]])
    ax.set_xlabel("sequence" if several else f"position in sequence {first}")
