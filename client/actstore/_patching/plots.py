"""Heat maps of a patch sweep."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actstore import _checks as _arguments
from actstore._errors import refused
from actstore._view.plot import pyplot
from actstore._view.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from actstore._patching.sweep import Sweep

COLOUR_MAP = "RdBu_r"
LABEL = f"normalised logit difference: 0 base run, 1 source run ({COLOUR_MAP}: red positive, blue negative)"
BASE_PROMPT = {"denoise": "corrupt", "noise": "clean"}
TOKEN_CHARACTERS = 12
ALL_POSITIONS = -1
PANEL_INCHES_MIN, PANEL_INCHES_MAX, CELL_INCHES = 2.0, 12.0, 0.38


@dataclass(frozen=True)
class Panel:
    """One heat map. `values` is [layer, across]; across is heads of a site that has them, else positions, of which one
    None stands for all of them.
    """

    direction: str
    site: str
    layers: list[int]
    across: list[int | None]
    by_head: bool
    values: npt.NDArray[np.float64]


def panels(sweep: "Sweep", z_position: int | None) -> list[Panel]:
    """Direction by direction, site by site, in the order of the table; the mean over pairs."""
    several = "pair" in sweep.table.column_names and len(pc.unique(sweep.table["pair"])) > 1
    cells = sweep.mean().table if several else sweep.table
    cells = cells.filter(_has_square(cells))
    found = []
    for direction in dict.fromkeys(cells.column("direction").to_pylist()):
        for site in dict.fromkeys(cells.column("site").to_pylist()):
            mask = pc.and_(pc.equal(cells["direction"], direction), pc.equal(cells["site"], site))
            found.append(_panel(direction, site, cells.filter(mask), z_position))
    return found


def _has_square(cells: pa.Table) -> pa.ChunkedArray:
    """Cells of a layer and of positions; joint cells, spans, embeddings and features have none."""
    found = pc.is_valid(cells["layer"])
    for name in ("name", "feature"):
        if name in cells.column_names:
            found = pc.and_(found, pc.is_null(cells[name]))
    return found


def _panel(direction: str, site: str, cells: pa.Table, z_position: int | None) -> Panel:
    by_head = cells["head"].null_count < len(cells)
    if by_head and z_position is not None:
        cells = cells.filter(pc.equal(cells["position"], _known_position(cells, z_position)))
    across = cells.column("head" if by_head else "position")
    layers, layer_index = np.unique(cells.column("layer").to_numpy(), return_inverse=True)
    columns, column_index = np.unique(pc.fill_null(across, ALL_POSITIONS).to_numpy(), return_inverse=True)
    shown: list[int | None] = [None if column == ALL_POSITIONS else column for column in columns.tolist()]
    values = np.full((len(layers), len(columns)), np.nan)
    for row, column, value in zip(layer_index, column_index, cells.column("normalised").to_numpy(), strict=True):
        # Several positions of a head fall on one square: the strongest by absolute value stays, with its sign. A cell
        # that a screen left out stays blank.
        if not np.isnan(value) and not abs(value) <= abs(values[row, column]):
            values[row, column] = value
    return Panel(direction, site, layers.tolist(), shown, by_head, values)


def _known_position(cells: pa.Table, position: int) -> int:
    known = sorted(set(cells.column("position").to_pylist()))
    if _arguments.count(position, "z_position") not in known:
        raise refused(f"the prompts have no position {position}", "z_position", position, f"0..{known[-1]}")
    return position


def draw(sweep: "Sweep", z_position: int | None) -> "Figure":
    found = panels(sweep, z_position)
    if not found:
        message = "joint cells, spans, embeddings and features have no place in a heat map of layers and positions"
        raise refused(message, "sites", "none", "a sweep with sites of layers")
    directions = list(dict.fromkeys(panel.direction for panel in found))
    sites = list(dict.fromkeys(panel.site for panel in found))
    widths = [
        min(max(PANEL_INCHES_MIN, CELL_INCHES * len(panel.across)), PANEL_INCHES_MAX) for panel in found[: len(sites)]
    ]
    height = 1.6 + 0.3 * max(len(panel.layers) for panel in found)
    figure, axes = pyplot().subplots(
        len(directions),
        len(sites),
        figsize=(1.5 + sum(widths), 1.0 + height * len(directions)),
        squeeze=False,
        layout="constrained",
        width_ratios=widths,
    )
    limit = max(float(np.nan_to_num(np.abs(panel.values)).max()) for panel in found) or 1.0
    image: Any = None
    for panel, ax in zip(found, axes.flat, strict=True):
        image = ax.imshow(panel.values, cmap=COLOUR_MAP, vmin=-limit, vmax=limit, aspect="auto", interpolation="none")
        _label(ax, panel, sweep, z_position)
    figure.colorbar(image, ax=axes, orientation="horizontal", shrink=0.6, aspect=50, label=LABEL)
    figure.suptitle(_title(sweep), fontsize=10)
    drawn: Figure = figure
    return drawn


def _title(sweep: "Sweep") -> str:
    answers = ""
    if len(sweep.pairs) == 1:
        clean, corrupt = sweep.answer_texts or map(str, sweep.pairs[0].answers)
        answers = f" of {visible(clean)!r} over {visible(corrupt)!r}"
    if len(sweep.pairs) > 1:
        return f"{sweep.provenance.model}: mean over {len(sweep.pairs)} pairs of prompts"
    return (
        f"{sweep.provenance.model}: logit difference{answers}, {sweep.clean_logit_difference:.3g} on the clean prompt, "
        f"{sweep.corrupt_logit_difference:.3g} on the corrupt one"
    )


def _label(ax: "Axes", panel: Panel, sweep: "Sweep", z_position: int | None) -> None:
    ax.set_yticks(range(len(panel.layers)), [str(layer) for layer in panel.layers])
    ax.set_ylabel("layer")
    if panel.by_head:
        where = "strongest position" if z_position is None else f"position {z_position}"
        ax.set_title(f"{panel.direction}: {panel.site}\n({where})", fontsize=9)
        ax.set_xticks(range(len(panel.across)), [str(head) for head in panel.across])
        ax.set_xlabel("head")
        return
    ax.set_title(f"{panel.direction}: {panel.site}", fontsize=9)
    _label_tokens(ax, panel, sweep)


def _label_tokens(ax: "Axes", panel: Panel, sweep: "Sweep") -> None:
    prompts, base = sweep.tokens, BASE_PROMPT[panel.direction]
    if panel.across == [None]:
        ax.set_xticks([0], ["all positions"])
        return
    # A dollar sign would begin a formula.
    texts = [
        visible(prompts[base][position])[:TOKEN_CHARACTERS].replace("$", r"\$")
        for position in panel.across
        if position is not None
    ]
    ax.set_xticks(range(len(texts)), texts, rotation=90, fontsize=7, family="monospace")
    ax.set_xlabel(f"{base} prompt")
    for position, tick in zip(panel.across, ax.get_xticklabels(), strict=True):
        if position is not None and prompts["clean"][position] != prompts["corrupt"][position]:
            tick.set_fontweight("bold")
