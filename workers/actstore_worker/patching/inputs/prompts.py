"""Turns the prompts, answers and named spans of a sweep into tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from actstore_api.records.patching import PatchSpan, PromptPair, PromptRange
from actstore_api.records.terms import Prompt
from actstore_storage.errors import BadRequest
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.prompts import check_characters, check_length, prompt_ids, token_of

SPANS_MAX = 256


@dataclass(frozen=True)
class SpanTokens:
    """Positions of a span in both prompts of a pair. Both have the same number of tokens."""

    name: str
    clean: range
    corrupt: range

    def sides(self, direction: str) -> tuple[range, range]:
        """Returns the positions in the base run and in the source run."""
        return (self.corrupt, self.clean) if direction == "denoise" else (self.clean, self.corrupt)


@dataclass(frozen=True)
class PairTokens:
    """Token ids of a pair."""

    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    clean_answer: int
    corrupt_answer: int
    spans: tuple[SpanTokens, ...] = ()

    @property
    def first_difference(self) -> int:
        """The first position at which the prompts differ; the length of the shorter one if they do not."""
        pairs = enumerate(zip(self.clean, self.corrupt, strict=False))
        return next((position for position, (clean, corrupt) in pairs if clean != corrupt), self.shorter)

    def base(self, direction: str) -> tuple[int, ...]:
        """The prompt that is patched."""
        return self.corrupt if direction == "denoise" else self.clean

    @property
    def shorter(self) -> int:
        """The positions that both prompts have."""
        return min(len(self.clean), len(self.corrupt))

    @property
    def longer(self) -> int:
        return max(len(self.clean), len(self.corrupt))

    @property
    def aligned(self) -> bool:
        """Whether replaced tokens are at the same positions of prompts with the same length."""
        return len(self.clean) == len(self.corrupt) and all(span.clean == span.corrupt for span in self.spans)


def pair_tokens(
    model: LanguageModel, pair: PromptPair, prepend_bos: bool | None, spans: Sequence[PatchSpan] = ()
) -> PairTokens:
    """Tokenizes a pair. Without spans the prompts must have the same length. `prepend_bos` is as in `prompt_ids`."""
    check_pair_characters(model, pair)
    clean = prompt_ids(model, pair.clean, prepend_bos, "clean")
    corrupt = prompt_ids(model, pair.corrupt, prepend_bos, "corrupt")
    if not spans:
        _check_lengths(model, clean, corrupt)
    for field, tokens in (("clean", clean), ("corrupt", corrupt)):
        check_length(model, field, len(tokens), "the prompts have" if len(clean) == len(corrupt) else "the prompt has")
    found = span_tokens(model, pair, spans, (clean, corrupt))
    clean_answer = token_of(model, pair.clean_answer, "clean_answer")
    corrupt_answer = token_of(model, pair.corrupt_answer, "corrupt_answer")
    if clean_answer == corrupt_answer:
        raise BadRequest(
            "the two answers are the same token, so their logits never differ",
            field="corrupt_answer",
            value=pair.corrupt_answer,
            allowed="another token than clean_answer",
        )
    return PairTokens(clean, corrupt, clean_answer, corrupt_answer, found)


def check_pair_characters(model: LanguageModel, pair: PromptPair) -> None:
    """Refuses prompts that must be longer than the model's context, before they are tokenized: BadRequest
    LIMIT_EXCEEDED.
    """
    for field, prompt in (("clean", pair.clean), ("corrupt", pair.corrupt)):
        check_characters(model, field, prompt)


def _check_lengths(model: LanguageModel, clean: Sequence[int], corrupt: Sequence[int]) -> None:
    if len(clean) != len(corrupt):
        raise BadRequest(
            f"the clean prompt has {len(clean)} tokens and the corrupt one {len(corrupt)}; patching by position needs "
            "equal lengths. Use spans to say which tokens correspond to each other. Clean: "
            f"{_shown(model, clean)}. Corrupt: {_shown(model, corrupt)}",
            reason="PROMPT_LENGTHS_DIFFER",
            field="corrupt",
            value=f"{len(corrupt)} tokens",
            allowed=f"{len(clean)} tokens",
        )


def check_equal_lengths(model: LanguageModel, pairs: Sequence[PairTokens]) -> None:
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


def _shown(model: LanguageModel, tokens: Iterable[int]) -> str:
    return " | ".join(model.texts.in_order(tokens))


def check_spans(spans: Sequence[PatchSpan]) -> None:
    """Refuses too many spans, and two spans with the same name: BadRequest."""
    if len(spans) > SPANS_MAX:
        raise BadRequest(
            f"{len(spans)} spans are named", reason="LIMIT_EXCEEDED", field="spans", value=len(spans),
            allowed=f"at most {SPANS_MAX}",
        )  # fmt: skip
    names = [span.name for span in spans]
    for name in names:
        if not name or names.count(name) > 1:
            message = f"{names.count(name)} spans have the name {name!r}, but rows of the answer are identified by it"
            raise BadRequest(message, field="spans", value=name, allowed="a different name for each span")


def span_tokens(
    model: LanguageModel, pair: PromptPair, spans: Sequence[PatchSpan], tokens: tuple[tuple[int, ...], tuple[int, ...]]
) -> tuple[SpanTokens, ...]:
    """Finds the positions of spans. `tokens` are those of the clean and the corrupt prompt, including BOS.

    Errors: BadRequest for a span that is not in the prompt, and PROMPT_LENGTHS_DIFFER for a span with unequal lengths.
    """
    found = []
    for span in spans:
        clean = _positions(model, span, "clean", span.clean, pair.clean, tokens[0])
        corrupt = _positions(model, span, "corrupt", span.corrupt, pair.corrupt, tokens[1])
        if len(clean) != len(corrupt):
            raise BadRequest(
                f"span {span.name!r} has {len(clean)} tokens in the clean prompt and {len(corrupt)} in the corrupt "
                "one; tokens are replaced one by one, so both need the same number",
                reason="PROMPT_LENGTHS_DIFFER",
                field="spans",
                value=f"{len(corrupt)} tokens",
                allowed=f"{len(clean)} tokens",
            )
        found.append(SpanTokens(span.name, clean, corrupt))
    return tuple(found)


def _positions(
    model: LanguageModel, span: PatchSpan, which: str, stretch: PromptRange, prompt: Prompt, tokens: tuple[int, ...]
) -> range:
    if isinstance(stretch, str):
        return _holding(model, span, which, stretch, prompt, tokens)
    first, end = stretch.first, stretch.end
    if end is None or not 0 <= first < end <= len(tokens):
        raise BadRequest(
            f"span {span.name!r} has tokens {first} to {_end(end)} (exclusive) of the {which} prompt, which has "
            f"{len(tokens)} tokens",
            field="spans",
            value=f"{first}..{_end(end)}",
            allowed=f"at least one token within 0..{len(tokens)}",
        )
    return range(first, end)


def _end(end: int | None) -> str:
    return "the end" if end is None else str(end)


def _holding(
    model: LanguageModel, span: PatchSpan, which: str, wanted: str, prompt: Prompt, tokens: tuple[int, ...]
) -> range:
    """Returns the tokens that contain a character of the wanted text. A token may contain others, too, such as a
    leading space.
    """
    text, places = _characters(model, prompt, tokens)
    times = text.count(wanted) if wanted else 0
    if times != 1:
        raise BadRequest(
            f"the text of span {span.name!r} occurs {times} times in the {which} prompt",
            field="spans",
            value=wanted,
            allowed="text that occurs exactly once in the prompt, or a range of tokens",
        )
    first = text.index(wanted)
    inside = [place for place, (begin, end) in enumerate(places) if begin < first + len(wanted) and end > first]
    if not inside:
        raise BadRequest(
            f"no token of the {which} prompt covers any character of span {span.name!r}",
            field="spans",
            value=wanted,
            allowed="text that the tokenizer keeps, or a range of tokens",
        )
    return range(inside[0], inside[-1] + 1)


def _characters(model: LanguageModel, prompt: Prompt, tokens: tuple[int, ...]) -> tuple[str, Sequence[tuple[int, int]]]:
    """Returns the prompt's text, and for each of its tokens the first character and the one after the last."""
    if isinstance(prompt, str):
        found = model.tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        before = len(tokens) - len(found["input_ids"])  # A BOS that is not part of the text.
        return prompt, [(0, 0)] * before + list(found["offset_mapping"])
    texts = model.texts.in_order(tokens)
    ends = list(accumulate(map(len, texts)))
    places = [(end - len(text), end) for text, end in zip(texts, ends, strict=True)]
    for place in range(len(places) - 2, -1, -1):
        if not texts[place]:  # Its bytes begin a character that the next token completes.
            places[place] = places[place + 1]
    return "".join(texts), places
