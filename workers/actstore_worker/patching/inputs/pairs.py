"""The prompts and answers of a sweep as tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from actstore_api.records.patching import PatchSpan, PromptPair
from actstore_storage.errors import BadRequest
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.prompts import check_length, prompt_ids, token_of
from actstore_worker.patching.inputs.spans import SpanTokens, span_tokens


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
        """The first position at which the prompts differ; the length of the shorter where they do not."""
        pairs = enumerate(zip(self.clean, self.corrupt, strict=False))
        return next((position for position, (clean, corrupt) in pairs if clean != corrupt), self.shorter)

    def base(self, direction: str) -> tuple[int, ...]:
        """The prompt that is patched."""
        return self.corrupt if direction == "denoise" else self.clean

    @property
    def shorter(self) -> int:
        """Positions that both prompts have."""
        return min(len(self.clean), len(self.corrupt))

    @property
    def longer(self) -> int:
        return max(len(self.clean), len(self.corrupt))

    @property
    def aligned(self) -> bool:
        """Whether what is replaced lies at the same positions of prompts of the same length."""
        return len(self.clean) == len(self.corrupt) and all(span.clean == span.corrupt for span in self.spans)


def pair_tokens(
    model: LanguageModel, pair: PromptPair, prepend_bos: bool | None, spans: Sequence[PatchSpan] = ()
) -> PairTokens:
    """Without spans the prompts have the same length. `prepend_bos`: as of `prompt_ids`."""
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


def _check_lengths(model: LanguageModel, clean: Sequence[int], corrupt: Sequence[int]) -> None:
    if len(clean) != len(corrupt):
        raise BadRequest(
            f"the clean prompt has {len(clean)} tokens and the corrupt one {len(corrupt)}; patching by position needs "
            "equal lengths: say with named spans which tokens play the same part. Clean: "
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
