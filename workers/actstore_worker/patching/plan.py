"""What a sweep will do: two prompts of equal length, two answers, and the cells of its grid."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from actstore_storage.errors import BadRequest
from actstore_storage.sites import Site
from actstore_worker.model import LanguageModel
from actstore_worker.prompts import check_causal, check_length, prepends_bos, text_ids, token_texts, with_bos

PATCH_KINDS = ("resid_pre", "attn_out", "mlp_out", "z")
DIRECTIONS = ("denoise", "noise")


@dataclass(frozen=True)
class SweepRequest:
    """The fields of proto RunSweepRequest. Empty `sites`, `layers` and `directions` stand for all that there are."""

    model: str
    revision: str
    clean: str
    corrupt: str
    clean_answer: str
    corrupt_answer: str
    sites: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    directions: tuple[str, ...] = ()
    # None: where the tokenizer has a BOS token.
    prepend_bos: bool | None = None


@dataclass(frozen=True)
class PatchingLimits:
    # Cells of one sweep, both directions together.
    cells: int = 200_000
    # Tokens, summed over the rows, in one forward pass; at least one row always runs.
    tokens_per_slice: int = 4096

    def __post_init__(self) -> None:
        if self.cells < 1 or self.tokens_per_slice < 1:
            raise ValueError(f"limits of patching must be positive: {self}")


@dataclass(frozen=True)
class Cell:
    """One activation to replace; `head` where the site is z."""

    site: Site
    position: int
    head: int | None


@dataclass(frozen=True)
class SweepPlan:
    """Token ids of prompts and answers, and the cells; every direction has the same cells."""

    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    clean_answer: int
    corrupt_answer: int
    directions: tuple[str, ...]
    cells: tuple[Cell, ...]


def plan_sweep(model: LanguageModel, request: SweepRequest, limits: PatchingLimits) -> SweepPlan:
    """Errors: BadRequest for everything that the caller can get wrong, before any forward pass."""
    check_causal(model, "it predicts no next token whose logits a patch could change")
    prepend_bos = prepends_bos(model, request.prepend_bos)
    clean = _prompt_tokens(model, "clean", request.clean, prepend_bos)
    corrupt = _prompt_tokens(model, "corrupt", request.corrupt, prepend_bos)
    _check_lengths(model, clean, corrupt)
    clean_answer = _answer_token(model, "clean_answer", request.clean_answer)
    corrupt_answer = _answer_token(model, "corrupt_answer", request.corrupt_answer)
    if clean_answer == corrupt_answer:
        raise BadRequest(
            "the two answers are the same token, so their logits never differ",
            field="corrupt_answer",
            value=request.corrupt_answer,
            allowed="another token than clean_answer",
        )
    kinds, layers = _kinds(model, request.sites), _layers(model, request.layers)
    directions = _directions(request.directions)
    _check_cell_count(model, kinds, len(layers) * len(clean) * len(directions), limits)
    cells = tuple(_cells(kinds, layers, len(clean), model.head_count))
    return SweepPlan(clean, corrupt, clean_answer, corrupt_answer, directions, cells)


def _cells(kinds: Sequence[str], layers: Sequence[int], positions: int, head_count: int) -> Iterable[Cell]:
    for kind in kinds:
        heads = range(head_count) if kind == "z" else (None,)
        for layer in layers:
            for position in range(positions):
                yield from (Cell(Site(layer, kind), position, head) for head in heads)


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


def _kinds(model: LanguageModel, asked: Sequence[str]) -> tuple[str, ...]:
    there = tuple(kind for kind in PATCH_KINDS if kind == "z" or kind in model.kinds)
    for kind in asked:
        if kind not in there:
            raise BadRequest(
                f"{model.name!r} has no site kind {kind!r} to patch; it has {', '.join(there)}",
                reason="SITE_UNKNOWN",
                field="sites",
                value=kind,
                allowed=there,
            )
    return tuple(dict.fromkeys(asked)) or there


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


def _directions(asked: Sequence[str]) -> tuple[str, ...]:
    for direction in asked:
        if direction not in DIRECTIONS:
            raise BadRequest(f"{direction!r} is no direction", field="directions", value=direction, allowed=DIRECTIONS)
    return tuple(dict.fromkeys(asked)) or DIRECTIONS


def _check_cell_count(model: LanguageModel, kinds: Sequence[str], columns: int, limits: PatchingLimits) -> None:
    """`columns`: layers x positions x directions, each of which has a cell a kind, or a head where the kind is z."""
    count = columns * sum(model.head_count if kind == "z" else 1 for kind in kinds)
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
