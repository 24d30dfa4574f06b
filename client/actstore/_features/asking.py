"""Questions that one feature and many have in common."""

from dataclasses import dataclass
from typing import Any, get_args

from actstore import _checks
from actstore._checks import Text
from actstore._features.live import LogitLens
from actstore._features.stored import FeatureTable, ManyExamples
from actstore._transport.base import Backend
from actstore_api.records.feature import SampleExamples, SampleExamplesAnswer
from actstore_api.records.sae import FeatureSide, GetLogitLens, GetLogitLensAnswer
from actstore_api.records.terms import ModelReference

HOW = {
    "top": "strongest",
    "range": "uniform over the range of activation",
    "rank": "uniform over rank",
    "activating": "at random where it fires",
    "positions": "at random positions",
    "quantile": "by quantile",
}


@dataclass(frozen=True)
class SaeOfRun:
    """An SAE whose features a run stores, and what it takes to ask it and its model the same question live."""

    run: str
    sae: str
    d_sae: int
    model: ModelReference
    prepend_bos: bool | None

    def stored(self) -> dict[str, Any]:
        """The fields of a question about stored features."""
        return {"run": self.run, "sae": self.sae}

    def live(self) -> dict[str, Any]:
        """The fields of a question to the SAE and its model."""
        return {"sae": self.sae, "model": self.model}

    def read(self, text: Text) -> dict[str, Any]:
        """The fields of a question about a text or token ids. A text gets a BOS if the run's sequences have one; token
        ids must already have it.
        """
        prompt = _checks.prompt(text, "text")
        return {**self.live(), "text": prompt, "prepend_bos": self.prepend_bos if isinstance(prompt, str) else None}


class OfSae:
    """What is asked of an SAE of a run: it says which."""

    _source: SaeOfRun

    @property
    def run(self) -> str:
        """Name of the run."""
        return self._source.run

    @property
    def sae(self) -> str:
        """Name of the SAE."""
        return self._source.sae


def window_of(tokens_before: int, tokens_after: int) -> dict[str, Any]:
    """Makes the fields of a question for examples that say how much of the text is shown."""
    return {
        "tokens_before": _checks.count(tokens_before, "tokens_before"),
        "tokens_after": _checks.count(tokens_after, "tokens_after"),
    }


def ask_examples(backend: Backend, question: SampleExamples) -> ManyExamples:
    """Asks for examples of several features."""
    found: SampleExamplesAnswer = backend.ask(question)
    return ManyExamples(
        table=found.examples,
        sae=question.sae,
        features=question.features,
        how=HOW[question.method],
        provenance=found.provenance,
        excluded=tuple(sorted(found.excluded)),
    )


def ask_lens(
    backend: Backend,
    source: SaeOfRun,
    features: tuple[int, ...],
    k: int,
    side: FeatureSide,
    fold_norm: bool,
    longest_unembedding: float | None,
) -> LogitLens:
    """Asks for the logit lens of several features. Errors: BadRequest with the argument's name."""
    longest = (
        None if longest_unembedding is None else _checks.number(longest_unembedding, "longest_unembedding", least=0.0)
    )
    question = GetLogitLens(
        **source.live(),
        features=features,
        side=_checks.one_of(side, "side", get_args(FeatureSide)),
        fold_norm=_checks.switch(fold_norm, "fold_norm"),
        longest_unembedding=longest,
        k=_checks.count(k, "k"),
    )
    found: GetLogitLensAnswer = backend.ask(question)
    return LogitLens(
        table=found.tokens,
        sae=source.sae,
        side=question.side,
        fold_norm=question.fold_norm,
        masked_tokens=found.masked_tokens,
        provenance=found.provenance,
    )


def feature_table(found: Any, sae: str, title: str, definitions: Any) -> FeatureTable:
    """Makes the table of any answer whose rows are features."""
    return FeatureTable(
        table=found.features,
        sae=sae,
        title=title,
        definitions=definitions,
        provenance=found.provenance,
        excluded=tuple(sorted(getattr(found, "excluded", ()))),
    )
