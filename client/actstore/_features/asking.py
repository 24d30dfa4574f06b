"""Questions that one feature and many have in common."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from actstore import _checks as _arguments
from actstore._features.live import LogitLens
from actstore._features.stored import ManyExamples
from actstore._questions import HOW, SIDES, LensQuestion, SaeOfRun, SampleQuestion

if TYPE_CHECKING:
    from actstore._transport.base import Backend

Excluded = Iterable[str] | str | None
SEED_MAX = 2**32 - 1


def window_of(tokens_before: int, tokens_after: int) -> dict[str, int]:
    return {
        "tokens_before": _arguments.count(tokens_before, "tokens_before"),
        "tokens_after": _arguments.count(tokens_after, "tokens_after"),
    }


def seed_of(seed: int) -> int:
    return _arguments.count(seed, "seed", maximum=SEED_MAX)


def ask_examples(backend: "Backend", question: SampleQuestion) -> ManyExamples:
    found = backend.ask(question)
    return ManyExamples(
        table=found.table,
        sae=question.sae,
        features=question.features,
        how=HOW[question.method],
        provenance=found.provenance,
        excluded=found.excluded,
    )


def ask_lens(
    backend: "Backend",
    source: SaeOfRun,
    features: tuple[int, ...],
    k: int,
    side: str,
    fold_norm: bool,
    longest_unembedding: float | None,
) -> LogitLens:
    longest = (
        None
        if longest_unembedding is None
        else _arguments.number(longest_unembedding, "longest_unembedding", least=0.0)
    )
    question = LensQuestion(
        **source.live(),
        features=features,
        side=_arguments.chosen(side, "side", SIDES),
        fold_norm=_arguments.switch(fold_norm, "fold_norm"),
        longest_unembedding=longest,
        k=_arguments.count(k, "k"),
    )
    found = backend.ask(question)
    return LogitLens(
        table=found.table,
        sae=source.sae,
        side=question.side,
        fold_norm=question.fold_norm,
        masked_tokens=int(found.facts["masked_tokens"]),
        provenance=found.provenance,
    )
