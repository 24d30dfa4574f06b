"""Heat maps of a patch sweep."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from actstore._errors import refused
from actstore._view.plot import pyplot, token_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOR_MAP = "RdBu_r"
LABEL = f"normalized logit difference: 0 base run, 1 source run ({COLOR_MAP}: red positive, blue negative)"
BASE_PROMPT = {"denoise": "corrupt", "noise": "clean"}
ALL_POSITIONS = -1
PANEL_INCHES_MIN, PANEL_INCHES_MAX, CELL_INCHES = 2.0, 12.0, 0.38


@dataclass(frozen=True)
class Panel:
    """One heat map. `values` is [layer, across]: across are the heads if the site has heads, else the positions. A
    position None stands for all positions.
    """

    direction: str
    site: str
    layers: list[int]
    across: list[int | None]
    by_head: bool
    values: npt.NDArray[np.float64]


def panels(cells: pa.Table, z_position: int | None) -> list[Panel]:
    """The panels of a sweep's cells, direction by direction, site by site, in the order of the table."""
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
    for row, column, value in zip(layer_index, column_index, cells.column("normalized").to_numpy(), strict=True):
        # Several positions of a head fall on one square: the strongest by absolute value stays, with its sign. A cell
        # that a screen left out stays blank.
        if not np.isnan(value) and not abs(value) <= abs(values[row, column]):
            values[row, column] = value
    return Panel(direction, site, layers.tolist(), shown, by_head, values)


def _known_position(cells: pa.Table, position: int) -> int:
    known = sorted(set(cells.column("position").to_pylist()))
    if position not in known:
        raise refused(f"the prompts have no position {position}", "z_position", position, f"0..{known[-1]}")
    return position


def heat_maps(cells: pa.Table, prompts: Mapping[str, list[str]], z_position: int | None, title: str) -> "Figure":
    """All panels in one figure, over one scale of colours; `prompts` has the texts of both prompts' tokens."""
    found = panels(cells, z_position)
    if not found:
        message = "joint cells, spans, embeddings and features have no place in a heat map of layers and positions"
        raise refused(message, "sites", "none", "a sweep with sites of layers")
    figure, axes = _grid(found)
    limit = max(float(np.nan_to_num(np.abs(panel.values)).max()) for panel in found) or 1.0
    image: Any = None
    for panel, ax in zip(found, axes.flat, strict=True):
        image = ax.imshow(panel.values, cmap=COLOR_MAP, vmin=-limit, vmax=limit, aspect="auto", interpolation="none")
        _label(ax, panel, prompts, z_position)
    figure.colorbar(image, ax=axes, orientation="horizontal", shrink=0.6, aspect=50, label=LABEL)
    figure.suptitle(title, fontsize=10)
    return figure


def _grid(found: list[Panel]) -> "tuple[Figure, Any]":
    """A figure with a row for each direction and a column for each site, as wide as its positions or heads need."""
    directions = {panel.direction for panel in found}
    columns = found[: len({panel.site for panel in found})]
    widths = [min(max(PANEL_INCHES_MIN, CELL_INCHES * len(panel.across)), PANEL_INCHES_MAX) for panel in columns]
    height = 1.6 + 0.3 * max(len(panel.layers) for panel in found)
    made: tuple[Figure, Any] = pyplot().subplots(
        len(directions),
        len(widths),
        figsize=(1.5 + sum(widths), 1.0 + height * len(directions)),
        squeeze=False,
        layout="constrained",
        width_ratios=widths,
    )
    return made


def _label(ax: "Axes", panel: Panel, prompts: Mapping[str, list[str]], z_position: int | None) -> None:
    ax.set_yticks(range(len(panel.layers)), [str(layer) for layer in panel.layers])
    ax.set_ylabel("layer")
    if panel.by_head:
        where = "strongest position" if z_position is None else f"position {z_position}"
        ax.set_title(f"{panel.direction}: {panel.site}\n({where})", fontsize=9)
        ax.set_xticks(range(len(panel.across)), [str(head) for head in panel.across])
        ax.set_xlabel("head")
        return
    ax.set_title(f"{panel.direction}: {panel.site}", fontsize=9)
    _label_tokens(ax, panel, prompts)


def _label_tokens(ax: "Axes", panel: Panel, prompts: Mapping[str, list[str]]) -> None:
    base = BASE_PROMPT[panel.direction]
    if panel.across == [None]:
        ax.set_xticks([0], ["all positions"])
        return
    texts = [token_label(prompts[base][position]) for position in panel.across if position is not None]
    ax.set_xticks(range(len(texts)), texts, rotation=90, fontsize=7, family="monospace")
    ax.set_xlabel(f"{base} prompt")
    for position, tick in zip(panel.across, ax.get_xticklabels(), strict=True):
        if position is not None and prompts["clean"][position] != prompts["corrupt"][position]:
            tick.set_fontweight("bold")
