"""What a sweep will do: pairs of prompts as tokens, and the cells of its grid."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from actstore_storage.errors import BadRequest
from actstore_storage.sites import HEAD_KINDS, Site, parse_site
from actstore_worker.model import LanguageModel
from actstore_worker.patching.kernel import Cell
from actstore_worker.patching.request import (
    DIRECTIONS,
    JOINT_CELLS_MAX,
    POSITIONS,
    SOURCES,
    WINDOW_LAYERS_MAX,
    JointCells,
    PatchingLimits,
    PromptPair,
    Screen,
    SweepRequest,
)
from actstore_worker.prompts import check_causal, check_length, prepends_bos, text_ids, token_texts, with_bos

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
class PairTokens:
    """Token ids of a pair."""

    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    clean_answer: int
    corrupt_answer: int

    @property
    def first_difference(self) -> int:
        """The first position at which the prompts differ; their length where they do not."""
        pairs = enumerate(zip(self.clean, self.corrupt, strict=True))
        return next((position for position, (clean, corrupt) in pairs if clean != corrupt), len(self.clean))


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
    _check_count(len(request.pairs), limits.pairs, "pairs")
    prepend_bos = prepends_bos(model, request.prepend_bos)
    pairs = tuple(_pair_tokens(model, pair, prepend_bos) for pair in request.pairs)
    _check_equal_lengths(model, pairs)
    directions = _choices(request.directions, DIRECTIONS, "directions") or DIRECTIONS
    _choices((request.source,), SOURCES, "source")
    _check_screen(request, limits)
    grid = tuple(_grid(model, request, len(pairs[0].clean), len(pairs) * len(directions), limits))
    return SweepPlan(pairs, directions, request.source, grid, request.screen)


def _grid(
    model: LanguageModel, request: SweepRequest, length: int, repeats: int, limits: PatchingLimits
) -> Iterator[Entry]:
    """Errors: BadRequest before the first entry, which is repeated for each pair and direction."""
    kinds, layers = _kinds(model, request), _layers(model, request.layers)
    positions = _positions(request, length)
    windows = _windows(layers, request.window_layers, model.layer_count)
    heads = {kind: _heads(model, kind, request.heads) if kind in HEAD_KINDS else (None,) for kind in kinds}
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
    _choices((request.positions,), POSITIONS, "positions")
    for position in request.only_positions:
        _check_position(position, length, "only_positions")
    if request.positions == "all":
        return [range(length)]
    chosen = [length - 1] if request.positions == "last" else sorted(set(request.only_positions)) or range(length)
    return [range(position, position + 1) for position in chosen]


def _heads(model: LanguageModel, kind: str, asked: Sequence[int]) -> Sequence[int]:
    """Of k and v, where queries share them, there are fewer than of the others."""
    there = model.head_counts[kind]
    for head in asked:
        if not 0 <= head < there:
            raise BadRequest(
                f"{model.name!r} has no head {head} of {kind}; it has {there}",
                reason="SITE_UNKNOWN",
                field="heads",
                value=head,
                allowed=f"0..{there - 1}",
            )
    return sorted(set(asked)) or range(there)


def _joint_cells(model: LanguageModel, joint: JointCells, length: int) -> tuple[Cell, ...]:
    _check_count(len(joint.cells), JOINT_CELLS_MAX, f"cells of {joint.name!r}")
    cells = []
    for text, position in joint.cells:
        site = parse_site(text, _patchable(model), model.layer_count, model.head_counts)
        _check_position(position, length, "joint")
        cells.append(Cell(site, position))
    return tuple(dict.fromkeys(cells))


def _pair_tokens(model: LanguageModel, pair: PromptPair, prepend_bos: bool) -> PairTokens:
    clean = _prompt_tokens(model, "clean", pair.clean, prepend_bos)
    corrupt = _prompt_tokens(model, "corrupt", pair.corrupt, prepend_bos)
    _check_lengths(model, clean, corrupt)
    clean_answer = _answer_token(model, "clean_answer", pair.clean_answer)
    corrupt_answer = _answer_token(model, "corrupt_answer", pair.corrupt_answer)
    if clean_answer == corrupt_answer:
        raise BadRequest(
            "the two answers are the same token, so their logits never differ",
            field="corrupt_answer",
            value=pair.corrupt_answer,
            allowed="another token than clean_answer",
        )
    return PairTokens(clean, corrupt, clean_answer, corrupt_answer)


def _prompt_tokens(model: LanguageModel, field: str, text: str, prepend_bos: bool) -> tuple[int, ...]:
    tokens = text_ids(model, text)
    if not tokens:
        raise BadRequest(f"the {field} prompt has no tokens", field=field, value=text, allowed="text")
    return with_bos(model, tokens, prepend_bos)


def _check_lengths(model: LanguageModel, clean: Sequence[int], corrupt: Sequence[int]) -> None:
    if len(clean) != len(corrupt):
        raise BadRequest(
            f"the clean prompt has {len(clean)} tokens and the corrupt one {len(corrupt)}; patching by position needs "
            f"equal lengths. Clean: {_shown(model, clean)}. Corrupt: {_shown(model, corrupt)}",
            reason="PROMPT_LENGTHS_DIFFER",
            field="corrupt",
            value=f"{len(corrupt)} tokens",
            allowed=f"{len(clean)} tokens",
        )
    check_length(model, "clean", len(clean), "the prompts have")


def _check_equal_lengths(model: LanguageModel, pairs: Sequence[PairTokens]) -> None:
    for number, pair in enumerate(pairs):
        if len(pair.clean) != len(pairs[0].clean):
            raise BadRequest(
                f"the prompts of pair {number} have {len(pair.clean)} tokens and those of pair 0 "
                f"{len(pairs[0].clean)}; a grid of positions needs equal lengths. Pair {number}: "
                f"{_shown(model, pair.clean)}",
                reason="PROMPT_LENGTHS_DIFFER",
                field="pairs",
                value=f"{len(pair.clean)} tokens",
                allowed=f"{len(pairs[0].clean)} tokens",
            )


def _answer_token(model: LanguageModel, field: str, text: str) -> int:
    tokens = text_ids(model, text)
    if len(tokens) != 1:
        raise BadRequest(
            f"{field} {text!r} is {len(tokens)} tokens: {_shown(model, tokens)}; an answer is one token, with its "
            "leading space if it has one",
            reason="ANSWER_NOT_ONE_TOKEN",
            field=field,
            value=text,
            allowed="text of one token",
        )
    return tokens[0]


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


def _layers(model: LanguageModel, asked: Sequence[int]) -> tuple[int, ...]:
    for layer in asked:
        if not 0 <= layer < model.layer_count:
            raise BadRequest(
                f"{model.name!r} has no layer {layer}; its layers are 0 to {model.layer_count - 1}",
                reason="LAYER_OUT_OF_RANGE",
                field="layers",
                value=layer,
                allowed=f"0..{model.layer_count - 1}",
            )
    return tuple(sorted(set(asked))) or tuple(range(model.layer_count))


def _choices(asked: Sequence[str], known: Sequence[str], field: str) -> tuple[str, ...]:
    for choice in asked:
        if choice not in known:
            raise BadRequest(f"{field}: {choice!r} is not known", field=field, value=choice, allowed=known)
    return tuple(dict.fromkeys(asked))


def _check_position(position: int, length: int, field: str) -> None:
    if not 0 <= position < length:
        raise BadRequest(
            f"the prompts have no position {position}; they have {length} tokens",
            field=field,
            value=position,
            allowed=f"0..{length - 1}",
        )


def _check_count(count: int, most: int, field: str) -> None:
    if not 1 <= count <= most:
        raise BadRequest(
            f"{field}: {count}",
            reason="LIMIT_EXCEEDED" if count else "ARGUMENT_INVALID",
            field=field,
            value=count,
            allowed=f"1..{most}",
        )


def _check_screen(request: SweepRequest, limits: PatchingLimits) -> None:
    """Of cells that lie behind each other, the estimates of each alone do not add up to that of all."""
    if request.screen is None:
        return
    _check_count(request.screen.exact_cells, limits.cells, "screen.exact_cells")
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


def _shown(model: LanguageModel, tokens: Iterable[int]) -> str:
    return " | ".join(token_texts(model, tokens))
