"""Norms of single tokens in pictures: a heat map over layers, or of one layer a line."""

from typing import TYPE_CHECKING

import numpy as np

from actstore._view.plot import COLOURS, log_ticks, pyplot, titled
from actstore._view.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from actstore._norms.tokens import TokenNorms

# More than so many would lie on each other.
LABELLED_TOKENS_MAX, TICKS_MAX = 80, 24
TOKEN_CHARACTERS = 12


def draw(answer: "TokenNorms", ax: "Axes | None", kind: str) -> "Axes":
    sites = answer.sites_of(kind)
    ax = pyplot().subplots(figsize=(10, 4), layout="constrained")[1] if ax is None else ax
    values = answer.to_numpy(kind).astype(np.float64)
    starts = _starts(answer)
    if len(sites) == 1:
        _line(ax, answer, values[:, 0], starts)
    else:
        _heatmap(ax, answer, values, [site.rpartition(".")[2] for site in sites])
    for start in starts[1:]:
        ax.axvline(start - 0.5, color="#888888" if len(sites) == 1 else "white", linewidth=1.5)
    _label_tokens(ax, answer, starts)
    what = sites[0] if len(sites) == 1 else kind
    return titled(ax, f"{answer.quantity} of {what} ({answer.left_out})", answer.warnings)


def _starts(answer: "TokenNorms") -> list[int]:
    """Rows that sequences begin at."""
    sequence = answer.table["sequence"].to_numpy()
    return np.flatnonzero(np.diff(sequence, prepend=-1)).tolist()


def _heatmap(ax: "Axes", answer: "TokenNorms", values: np.ndarray, layers: list[str]) -> None:
    """Blank where there is no finite number."""
    from matplotlib.colors import LogNorm

    shown = np.where(np.isfinite(values), values, np.nan).T
    scale = LogNorm() if np.nanmin(shown, initial=np.inf) > 0 and np.isfinite(shown).any() else None
    image = ax.imshow(shown, aspect="auto", origin="lower", norm=scale, interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label=answer.quantity)
    ax.set_yticks(range(len(layers)), layers)
    ax.set_ylabel("layer")


def _line(ax: "Axes", answer: "TokenNorms", values: np.ndarray, starts: list[int]) -> None:
    """Sequences do not go on in each other."""
    for first, last in zip(starts, [*starts[1:], len(values)], strict=True):
        ax.plot(range(first, last), values[first:last], ".-", color=COLOURS[0])
    if np.nanmin(values, initial=np.inf) > 0:
        ax.set_yscale("log")
        log_ticks(ax, integers=False)
    ax.margins(x=0.01)
    ax.set_ylabel(answer.quantity)


def _label_tokens(ax: "Axes", answer: "TokenNorms", starts: list[int]) -> None:
    """Their texts; of many tokens their positions, or the sequences' numbers where these begin."""
    first, last = answer.sequences[0], answer.sequences[-1]
    if len(answer) > LABELLED_TOKENS_MAX:
        several = len(starts) > 1
        places = starts if several else range(len(answer))
        numbers = answer.sequences if several else answer.table["position"].to_pylist()
        step = -(-len(places) // TICKS_MAX)
        ax.set_xticks(places[::step], [str(number) for number in numbers[::step]])
        ax.set_xlabel("sequence" if several else f"position in sequence {first}")
        return
    texts = [_label(text) for text in answer.table["text"].to_pylist()]
    ax.set_xticks(range(len(texts)), texts, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
    ax.set_xlabel(f"tokens of sequence {first}" if first == last else f"tokens of sequences {first} to {last}")


def _label(text: str) -> str:
    """A dollar sign would begin a formula."""
    return visible(text)[:TOKEN_CHARACTERS].replace("$", r"\$")
