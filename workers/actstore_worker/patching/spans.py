"""Named stretches of a prompt, found among its tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from actstore_storage.errors import BadRequest
from actstore_worker.model import LanguageModel
from actstore_worker.patching.request import SPANS_MAX, PromptPair, Span, Stretch


@dataclass(frozen=True)
class SpanTokens:
    """Positions of a span in both prompts of a pair; as many in one as in the other."""

    name: str
    clean: range
    corrupt: range

    def sides(self, direction: str) -> tuple[range, range]:
        """In the base run, and in the source run."""
        return (self.corrupt, self.clean) if direction == "denoise" else (self.clean, self.corrupt)


def check_spans(spans: Sequence[Span]) -> None:
    """Errors: BadRequest for too many, and for two of one name."""
    if len(spans) > SPANS_MAX:
        raise BadRequest(
            f"{len(spans)} spans are named", reason="LIMIT_EXCEEDED", field="spans", value=len(spans),
            allowed=f"at most {SPANS_MAX}",
        )  # fmt: skip
    names = [span.name for span in spans]
    for name in names:
        if not name or names.count(name) > 1:
            message = f"{names.count(name)} spans are called {name!r}, and rows of the answer go by that name"
            raise BadRequest(message, field="spans", value=name, allowed="a name of its own for each")


def span_tokens(
    model: LanguageModel, pair: PromptPair, spans: Sequence[Span], lengths: tuple[int, int], bos: bool
) -> tuple[SpanTokens, ...]:
    """`lengths`: tokens of the clean and the corrupt prompt, with BOS where there is one.

    Errors: BadRequest for what is not in the prompt, and PROMPT_LENGTHS_DIFFER for a span of unequal lengths.
    """
    found = []
    for span in spans:
        clean = _positions(model, span, "clean", span.clean, pair.clean, lengths[0], bos)
        corrupt = _positions(model, span, "corrupt", span.corrupt, pair.corrupt, lengths[1], bos)
        if len(clean) != len(corrupt):
            raise BadRequest(
                f"span {span.name!r} has {len(clean)} tokens in the clean prompt and {len(corrupt)} in the corrupt "
                "one; its tokens are replaced one by one, so it needs as many in both",
                reason="PROMPT_LENGTHS_DIFFER",
                field="spans",
                value=f"{len(corrupt)} tokens",
                allowed=f"{len(clean)} tokens",
            )
        found.append(SpanTokens(span.name, clean, corrupt))
    return tuple(found)


def _positions(
    model: LanguageModel, span: Span, prompt: str, stretch: Stretch, text: str, length: int, bos: bool
) -> range:
    if isinstance(stretch, str):
        return _holding(model, span, prompt, stretch, text, bos)
    first, end = stretch
    if not 0 <= first < end <= length:
        raise BadRequest(
            f"span {span.name!r} is tokens {first} to before {end} of the {prompt} prompt, which has {length}",
            field="spans",
            value=f"{first}..{end}",
            allowed=f"one token or more within 0..{length}",
        )
    return range(first, end)


def _holding(model: LanguageModel, span: Span, prompt: str, wanted: str, text: str, bos: bool) -> range:
    """The tokens that have a character of the wanted text. A token may have others, too: its leading space."""
    times = text.count(wanted) if wanted else 0
    if times != 1:
        raise BadRequest(
            f"the text of span {span.name!r} is {times} times in the {prompt} prompt",
            field="spans",
            value=wanted,
            allowed="text that is once in the prompt, or a range of tokens",
        )
    first = text.index(wanted)
    offsets = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    inside = [place for place, (begin, end) in enumerate(offsets) if begin < first + len(wanted) and end > first]
    if not inside:
        raise BadRequest(
            f"no token of the {prompt} prompt has a character of span {span.name!r}",
            field="spans",
            value=wanted,
            allowed="text that the tokenizer keeps, or a range of tokens",
        )
    return range(inside[0] + bos, inside[-1] + 1 + bos)
