"""What a sweep will do: pairs of prompts as tokens, and the cells of its grid."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from actstore_storage.errors import BadRequest
from actstore_storage.sites import HEAD_KINDS, Site, parse_site
from actstore_worker.chosen import chosen_heads, chosen_layers
from actstore_worker.model import LanguageModel
from actstore_worker.patching.checks import check_count, check_position, choices
from actstore_worker.patching.kernel import Cell
from actstore_worker.patching.pairs import PairTokens, check_equal_lengths, pair_tokens
from actstore_worker.patching.request import (
    DIRECTIONS,
    JOINT_CELLS_MAX,
    POSITIONS,
    SOURCES,
    WINDOW_LAYERS_MAX,
    JointCells,
    PatchingLimits,
    Screen,
    SweepRequest,
)
from actstore_worker.prompts import check_causal, prepends_bos

DEFAULT_KINDS = ("resid_pre", "attn_out", "mlp_out", "z")
JOINT = "joint"


@dataclass(frozen=True)
class Entry:
    """A row of the grid: cells that are replaced together. `layer` is the first of a window; of joint cells it is None,
    and so is `position`, which is None too where all positions are replaced at once.
    """

    cells: tuple[Cell, ...]
    site: str
    layer: int | None = None
    position: int | None = None
    head: int | None = None
    name: str | None = None


@dataclass(frozen=True)
class SweepPlan:
    """Every pair and direction has the same grid."""

    pairs: tuple[PairTokens, ...]
    directions: tuple[str, ...]
    source: str
    grid: tuple[Entry, ...]
    screen: Screen | None = None

    @property
    def length(self) -> int:
        return len(self.pairs[0].clean)

    @property
    def sites(self) -> set[Site]:
        return {cell.site.whole for entry in self.grid for cell in entry.cells}


def plan_sweep(model: LanguageModel, request: SweepRequest, limits: PatchingLimits) -> SweepPlan:
    """Errors: BadRequest for everything that the caller can get wrong, before any forward pass."""
    check_causal(model, "it predicts no next token whose logits a patch could change")
    check_count(len(request.pairs), limits.pairs, "pairs")
    prepend_bos = prepends_bos(model, request.prepend_bos)
    pairs = tuple(pair_tokens(model, pair, prepend_bos) for pair in request.pairs)
    check_equal_lengths(model, pairs)
    directions = choices(request.directions, DIRECTIONS, "directions") or DIRECTIONS
    choices((request.source,), SOURCES, "source")
    _check_screen(request, limits)
    grid = tuple(_grid(model, request, len(pairs[0].clean), len(pairs) * len(directions), limits))
    return SweepPlan(pairs, directions, request.source, grid, request.screen)


def _grid(
    model: LanguageModel, request: SweepRequest, length: int, repeats: int, limits: PatchingLimits
) -> Iterator[Entry]:
    """Errors: BadRequest before the first entry, which is repeated for each pair and direction."""
    kinds, layers = _kinds(model, request), chosen_layers(model, request.layers)
    positions = _positions(request, length)
    windows = _windows(layers, request.window_layers, model.layer_count)
    heads = {kind: chosen_heads(model, kind, request.heads) if kind in HEAD_KINDS else (None,) for kind in kinds}
    count = sum(len(heads[kind]) for kind in kinds) * len(windows) * len(positions) + len(request.joint)
    _check_cell_count(count * repeats, limits)
    for kind in kinds:
        for window in windows:
            for place in positions:
                for head in heads[kind]:
                    sites = [Site(layer, kind, head) for layer in window]
                    cells = tuple(Cell(site, position) for site in sites for position in place)
                    position = place[0] if len(place) == 1 and request.positions != "all" else None
                    yield Entry(cells, kind, window[0], position, head)
    for joint in request.joint:
        yield Entry(_joint_cells(model, joint, length), JOINT, name=joint.name)


def _windows(layers: Sequence[int], size: int, layer_count: int) -> list[range]:
    if not 1 <= size <= min(WINDOW_LAYERS_MAX, layer_count):
        raise BadRequest(
            f"a window of {size} layers does not fit into the model's {layer_count}",
            field="window_layers",
            value=size,
            allowed=f"1..{min(WINDOW_LAYERS_MAX, layer_count)}",
        )
    return [range(layer, layer + size) for layer in layers if layer + size <= layer_count]


def _positions(request: SweepRequest, length: int) -> list[range]:
    """Those that one cell replaces."""
    choices((request.positions,), POSITIONS, "positions")
    for position in request.only_positions:
        check_position(position, length, "only_positions")
    if request.positions == "all":
        return [range(length)]
    chosen = [length - 1] if request.positions == "last" else sorted(set(request.only_positions)) or range(length)
    return [range(position, position + 1) for position in chosen]


def _joint_cells(model: LanguageModel, joint: JointCells, length: int) -> tuple[Cell, ...]:
    check_count(len(joint.cells), JOINT_CELLS_MAX, f"cells of {joint.name!r}")
    cells = []
    for text, position in joint.cells:
        site = parse_site(text, _patchable(model), model.layer_count, model.head_counts)
        check_position(position, length, "joint")
        cells.append(Cell(site, position))
    return tuple(dict.fromkeys(cells))


def _patchable(model: LanguageModel) -> tuple[str, ...]:
    return (*model.kinds, *HEAD_KINDS)


def _kinds(model: LanguageModel, request: SweepRequest) -> tuple[str, ...]:
    there = _patchable(model)
    for kind in request.sites:
        if kind not in there:
            raise BadRequest(
                f"{model.name!r} has no site kind {kind!r} to patch; it has {', '.join(there)}",
                reason="SITE_UNKNOWN",
                field="sites",
                value=kind,
                allowed=there,
            )
    if not request.sites and request.joint:
        return ()
    return tuple(dict.fromkeys(request.sites)) or DEFAULT_KINDS


def _check_screen(request: SweepRequest, limits: PatchingLimits) -> None:
    """Of cells that lie behind each other, the estimates of each alone do not add up to that of all."""
    if request.screen is None:
        return
    check_count(request.screen.exact_cells, limits.cells, "screen.exact_cells")
    if request.joint:
        raise BadRequest(
            "a screen estimates single cells; ask for joint cells without one",
            field="joint",
            value=", ".join(joint.name for joint in request.joint),
            allowed="none, with a screen",
        )
    if request.window_layers != 1:
        raise BadRequest(
            "a screen estimates cells of one layer; ask for windows without one",
            field="window_layers",
            value=request.window_layers,
            allowed="1, with a screen",
        )


def _check_cell_count(count: int, limits: PatchingLimits) -> None:
    """Of all pairs and directions."""
    if count > limits.cells:
        raise BadRequest(
            f"the sweep has {count} cells; a sweep has at most {limits.cells}: name fewer sites or layers",
            reason="LIMIT_EXCEEDED",
            field="cells",
            value=count,
            allowed=f"at most {limits.cells}",
        )
