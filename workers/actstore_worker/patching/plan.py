"""The plan of a sweep: pairs of prompts as tokens, and the cells of its grid."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from actstore_api.records.patching import (
    JointCells,
    PatchDirection,
    PatchSource,
    RunSweep,
    SaeError,
    Screen,
    StoredSource,
)
from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import HEAD_KINDS, Site, parse_site, why_missing
from actstore_worker.models.chosen import chosen_heads, chosen_layers
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.prompts import check_causal
from actstore_worker.patching.inputs.checks import (
    check_count,
    check_position,
    check_screen,
    check_sources,
    check_spans_alone,
)
from actstore_worker.patching.inputs.kinds import EMBEDDING, FEATURES
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.inputs.prompts import (
    PairTokens,
    check_equal_lengths,
    check_pair_characters,
    check_spans,
    pair_tokens,
)
from actstore_worker.patching.inputs.receivers import check_heard, find_receivers
from actstore_worker.patching.inputs.sae_features import active_features, check_features
from actstore_worker.patching.inputs.stored_rows import check_stored_rows
from actstore_worker.patching.inputs.supplies import Supplies, needed
from actstore_worker.patching.kernels.full import Cell
from actstore_worker.patching.kernels.receivers import Receivers
from actstore_worker.sae.autoencoder import SparseAutoencoder

WINDOW_LAYERS_MAX, JOINT_CELLS_MAX = 64, 1024
_DIRECTIONS: tuple[PatchDirection, ...] = get_args(PatchDirection)
# The default kinds; those that a model does not have are skipped.
DEFAULT_KINDS = ("resid_pre", "attn_out", "mlp_out", "z")
JOINT = "joint"
# Names of rows for features: all features at a position together, and the SAE's error.
TOGETHER, ERROR = "together", "error"


@dataclass(frozen=True)
class Entry:
    """A row of the grid: cells that are patched together. `layer` is the first layer of a window, None for joint cells.
    `position` is None for joint cells, and if all positions or a span are patched together. With `span`, an index among
    the spans of every pair, the cells are those of the first pair's clean prompt.

    With an SAE, `features` are patched together (None: all), and its error if `is_error`; `feature` is set if the row
    is for one feature.
    """

    cells: tuple[Cell, ...]
    site: str
    layer: int | None = None
    position: int | None = None
    head: int | None = None
    name: str | None = None
    span: int | None = None
    feature: int | None = None
    features: tuple[int, ...] | None = ()
    is_error: bool = False


@dataclass(frozen=True)
class SweepPlan:
    """A sweep that passed all checks. Every pair and direction has the same grid. `stored` is for the sources mean and
    resample, `sae` for features.
    """

    pairs: tuple[PairTokens, ...]
    directions: tuple[PatchDirection, ...]
    source: PatchSource
    grid: tuple[Entry, ...]
    screen: Screen | None = None
    stored: StoredSource | None = None
    sae: SparseAutoencoder | None = None
    sae_error: SaeError = RunSweep.sae_error
    receivers: Receivers | None = None

    @property
    def length(self) -> int:
        """The number of tokens of the longest prompt."""
        return max(pair.longer for pair in self.pairs)

    def cells(self, entry: Entry, tokens: PairTokens, direction: str) -> tuple[Cell, ...]:
        """Returns the cells of an entry in the base run of a pair."""
        if entry.span is None:
            return entry.cells
        base, _ = tokens.spans[entry.span].sides(direction)
        return tuple(
            Cell(site, position) for site in dict.fromkeys(cell.site for cell in entry.cells) for position in base
        )

    def is_unchanged(self, entry: Entry, tokens: PairTokens) -> bool:
        """Whether a patch cannot change anything: up to the first difference of the prompts both runs are equal, and a
        sender without a path to a receiver has no effect.
        """
        if self.receivers is not None and not any(self._is_heard(entry, tokens, way) for way in self.directions):
            return True
        if self.source != "prompt" or (entry.site == FEATURES and self.sae_error == "dropped"):
            return False
        if entry.span is None:
            return all(cell.position < tokens.first_difference for cell in entry.cells)
        span = tokens.spans[entry.span]
        return span.clean == span.corrupt and span.clean.stop <= tokens.first_difference

    def _is_heard(self, entry: Entry, tokens: PairTokens, direction: str) -> bool:
        assert self.receivers is not None  # noqa: S101  by `is_unchanged`
        cells = self.cells(entry, tokens, direction)
        return self.receivers.are_reached(cells, len(tokens.base(direction)))

    @property
    def sites(self) -> set[Site]:
        """The sites whose activations are taken from a source."""
        return {cell.site.whole for entry in self.grid for cell in entry.cells}

    @property
    def recorded_sites(self) -> set[Site]:
        """The sites that are recorded in both prompts' runs."""
        return self.sites | {site.whole for site in (self.receivers.sites if self.receivers else ())}


@dataclass(frozen=True)
class _Place:
    """The positions that one cell patches, in the first pair's clean prompt."""

    positions: range
    position: int | None = None
    name: str | None = None
    span: int | None = None

    def cells(self, sites: Sequence[Site]) -> tuple[Cell, ...]:
        return tuple(Cell(site, position) for site in sites for position in self.positions)

    def of(self, pair: PairTokens) -> tuple[range, range]:
        """Returns the positions in a pair's clean and corrupt prompt."""
        if self.span is None:
            return self.positions, self.positions
        return pair.spans[self.span].clean, pair.spans[self.span].corrupt


def plan_sweep(
    model: LanguageModel, request: RunSweep, limits: PatchingLimits, supplies: Supplies | None = None
) -> SweepPlan:
    """Plans a sweep. Errors: BadRequest for every mistake in the request, before any forward pass except those that
    find active features.
    """
    check_causal(model, "it does not predict next tokens, so a patch has no logits to change")
    sized = size_of(model, request, limits)
    pairs, receivers, repeats = sized.pairs, sized.receivers, sized.repeats
    check_sources(request)
    check_spans_alone(request, pairs)
    check_screen(request, limits.cells)
    sae = _sae(model, request, supplies)
    grid = (*_grid(model, request, sized.rows, pairs), *_feature_grid(model, sae, request, pairs, repeats, limits))
    check_heard(receivers, {cell.site for entry in grid for cell in entry.cells}, request)
    _check_cell_count(len(grid) * repeats, limits)
    plan = SweepPlan(
        pairs, sized.directions, request.source, grid, request.screen, request.stored, sae, request.sae_error, receivers
    )
    if request.stored is not None:
        sites = dict.fromkeys(cell.site for entry in plan.grid for cell in entry.cells)
        check_stored_rows(needed(supplies).bucket, model, sites, request.stored)
    return plan


@dataclass(frozen=True)
class _RowsOfLayers:
    """The rows of a grid that patch sites of layers: by kind, the windows of layers and the heads; and the places."""

    windows: Mapping[str, Sequence[range]]
    heads: Mapping[str, Sequence[int | None]]
    places: Sequence[_Place]

    @property
    def count(self) -> int:
        return sum(len(self.heads[kind]) * len(found) for kind, found in self.windows.items()) * len(self.places)


@dataclass(frozen=True)
class SweepSize:
    """What is known of a sweep from its request and its prompts' tokens alone."""

    pairs: tuple[PairTokens, ...]
    directions: tuple[PatchDirection, ...]
    receivers: Receivers | None
    rows: _RowsOfLayers

    @property
    def repeats(self) -> int:
        """How often the grid is computed."""
        return len(self.pairs) * len(self.directions)


def size_of(model: LanguageModel, request: RunSweep, limits: PatchingLimits) -> SweepSize:
    """Tokenizes the pairs of a sweep and counts its cells. Errors: BadRequest for too many pairs, or for prompts that
    must be too long, before any is tokenized; for too many cells, before an SAE is opened.
    """
    check_count(len(request.pairs), limits.pairs, "pairs")
    check_spans(request.spans)
    for pair in request.pairs:
        check_pair_characters(model, pair)
    pairs = tuple(pair_tokens(model, pair, request.prepend_bos, request.spans) for pair in request.pairs)
    if not request.spans:
        check_equal_lengths(model, pairs)
    receivers = find_receivers(model, request)
    directions = tuple(dict.fromkeys(request.directions)) or _DIRECTIONS
    size = SweepSize(pairs, directions, receivers, _rows_of_layers(model, request, receivers, pairs))
    _check_cell_count((size.rows.count + _known_rows_beside(request, size.rows)) * size.repeats, limits)
    return size


def _rows_of_layers(
    model: LanguageModel, request: RunSweep, receivers: Receivers | None, pairs: Sequence[PairTokens]
) -> _RowsOfLayers:
    """Errors: BadRequest."""
    kinds, layers = _kinds(model, request), chosen_layers(model, request.layers)
    places = _places(request, pairs)
    windows = _windows(layers, request.window_layers, model.layer_count)
    windows_of = {kind: [found for found in windows if _sends(receivers, Site(found[0], kind))] for kind in kinds}
    heads = {kind: chosen_heads(model, kind, request.heads) if kind in HEAD_KINDS else (None,) for kind in kinds}
    return _RowsOfLayers(windows_of, heads, places)


def _known_rows_beside(request: RunSweep, rows: _RowsOfLayers) -> int:
    """Of features that are not named, it is not known how many there are."""
    features = len(set(request.features)) + 2 if request.sae else 0
    return (features + (EMBEDDING in request.sites)) * len(rows.places) + len(request.joint)


def _grid(model: LanguageModel, request: RunSweep, rows: _RowsOfLayers, pairs: Sequence[PairTokens]) -> Iterator[Entry]:
    """Yields all entries except features, which are repeated for each pair and direction. Errors: BadRequest."""
    for kind, windows in rows.windows.items():
        for window in windows:
            for place in rows.places:
                for head in rows.heads[kind]:
                    sites = [Site(layer, kind, head) for layer in window]
                    yield Entry(place.cells(sites), kind, window[0], place.position, head, place.name, place.span)
    for place in rows.places if EMBEDDING in request.sites else ():
        cells = place.cells([Site(0, "resid_pre")])
        yield Entry(cells, EMBEDDING, position=place.position, name=place.name, span=place.span)
    for joint in request.joint:
        yield Entry(_joint_cells(model, joint, pairs[0].shorter), JOINT, name=joint.name)


def _feature_grid(
    model: LanguageModel,
    sae: SparseAutoencoder | None,
    request: RunSweep,
    pairs: Sequence[PairTokens],
    repeats: int,
    limits: PatchingLimits,
) -> Iterator[Entry]:
    """Yields, at each position, a cell for each feature, one for all of them, and one for the error. Errors:
    BadRequest before the first entry.
    """
    if sae is None:
        return
    places = _places(request, pairs)
    named = tuple(dict.fromkeys(request.features))
    features = [named] * len(places) if named else _active(model, sae, pairs, places)
    _check_cell_count(sum(len(found) + 2 for found in features) * repeats, limits)
    for place, found in zip(places, features, strict=True):
        blank = Entry(
            place.cells([sae.site]), FEATURES, sae.site.layer, place.position, sae.site.head, None, place.span
        )
        yield from (replace(blank, name=place.name, feature=feature, features=(feature,)) for feature in found)
        prefix = "" if place.name is None else f"{place.name}: "
        yield replace(blank, name=f"{prefix}{TOGETHER}", features=named or None)
        yield replace(blank, name=f"{prefix}{ERROR}", is_error=True)


def _active(
    model: LanguageModel, sae: SparseAutoencoder, pairs: Sequence[PairTokens], places: Sequence[_Place]
) -> list[tuple[int, ...]]:
    """Returns, for each position, the features that are active there in any prompt, in ascending order."""
    found: list[set[int]] = [set() for _ in places]
    for pair in pairs:
        for side, tokens in enumerate((pair.clean, pair.corrupt)):
            active = active_features(model, sae, tokens)
            for features, place in zip(found, places, strict=True):
                features.update(*(active[position] for position in place.of(pair)[side]))
    return [tuple(sorted(features)) for features in found]


def _windows(layers: Sequence[int], size: int, layer_count: int) -> list[range]:
    if not 1 <= size <= min(WINDOW_LAYERS_MAX, layer_count):
        raise BadRequest(
            f"a window of {size} layers does not fit into the model's {layer_count}",
            field="window_layers",
            value=size,
            allowed=f"1..{min(WINDOW_LAYERS_MAX, layer_count)}",
        )
    return [range(layer, layer + size) for layer in layers if layer + size <= layer_count]


def _sends(receivers: Receivers | None, sender: Site) -> bool:
    """Whether a site is patched. Without receivers every site is."""
    return receivers is None or receivers.hear(sender)


def _places(request: RunSweep, pairs: Sequence[PairTokens]) -> list[_Place]:
    if request.spans:
        return [_Place(span.clean, None, span.name, number) for number, span in enumerate(pairs[0].spans)]
    length = len(pairs[0].clean)
    for position in request.only_positions:
        check_position(position, length, "only_positions")
    if request.positions == "all":
        return [_Place(range(length))]
    chosen = [length - 1] if request.positions == "last" else sorted(set(request.only_positions)) or range(length)
    return [_Place(range(position, position + 1), position) for position in chosen]


def _joint_cells(model: LanguageModel, joint: JointCells, length: int) -> tuple[Cell, ...]:
    check_count(len(joint.cells), JOINT_CELLS_MAX, f"cells of {joint.name!r}")
    cells = []
    for cell in joint.cells:
        site = parse_site(cell.site, _patchable(model), model.layer_count, model.head_counts)
        check_position(cell.position, length, "joint")
        cells.append(Cell(site, cell.position))
    return tuple(dict.fromkeys(cells))


def _patchable(model: LanguageModel) -> tuple[str, ...]:
    return (*model.kinds, *HEAD_KINDS)


def _kinds(model: LanguageModel, request: RunSweep) -> tuple[str, ...]:
    """Returns the requested kinds of layers."""
    there = (*_patchable(model), EMBEDDING, FEATURES)
    for kind in request.sites:
        if kind not in there:
            raise BadRequest(
                f"{model.name!r} has no site kind {kind!r} to patch; it has {', '.join(there)}"
                f"{why_missing(kind, model.kinds)}",
                reason="SITE_UNKNOWN",
                field="sites",
                value=kind,
                allowed=there,
            )
    if not request.sites and (request.joint or request.sae):
        return ()
    asked = dict.fromkeys(request.sites or (kind for kind in DEFAULT_KINDS if kind in there))
    return tuple(kind for kind in asked if kind not in (EMBEDDING, FEATURES))


def _sae(model: LanguageModel, request: RunSweep, supplies: Supplies | None) -> SparseAutoencoder | None:
    """Returns the SAE; None if none was requested. Errors: as `check_features`."""
    if not request.sae:
        return None
    sae = needed(supplies).find_sae(request.sae)
    check_features(sae, model, request.features, _patchable(model))
    return sae


def _check_cell_count(count: int, limits: PatchingLimits) -> None:
    """Checks the number of cells over all pairs and directions."""
    if count > limits.cells:
        raise BadRequest(
            f"the sweep has {count} cells; a sweep can have at most {limits.cells}: name fewer sites or layers",
            reason="LIMIT_EXCEEDED",
            field="cells",
            value=count,
            allowed=f"at most {limits.cells}",
        )
