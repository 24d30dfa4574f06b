"""One SAE feature of a run: what makes it fire, what it writes, and all of that on one page."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from actstore import _checks
from actstore._errors import ActstoreError, Unavailable
from actstore._features.live import DirectionAblation, TextAblation
from actstore._features.page import FeaturePage
from actstore._features.questions import FeatureQuestions
from actstore._features.stored import Examples
from actstore._where import Excluded, Where, exclusion
from actstore_api.records.activation import ReadTokens, TokenSelection
from actstore_api.records.feature import SampleExamples
from actstore_api.records.terms import Range, TokenClass

QUANTILE_BINS = 5
LENS_TOKENS, RELATED_FEATURES = 10, 10
# Tokens of the stored sequence that are ablated, and shown: each before the strongest one costs a forward pass.
ABLATED_BEFORE, ABLATED_AFTER = 24, 12
LIVE_PARTS = ("logit_lens", "neighbors", "ablated_text", "ablated_direction")
NEVER_FIRES = "the feature never fires, so there is no text to ablate"
NOT_ASKED = "not asked for"

Part = TypeVar("Part")


@dataclass(frozen=True)
class Feature(FeatureQuestions):
    """One SAE feature of a run. It asks only when a method is called, and reads what is committed then.

    Most methods read stored activations. `logit_lens`, `neighbors`, `ablate_text` and `ablate_direction` run the model
    or read the SAE's weights, and need a service. A feature cannot be pickled: pickle the names of run and SAE and the
    index, and open it again with `lab.run(run).feature(sae, index)`.

    Attributes:
        index: Index of the feature in its SAE, from 0.
    """

    def __repr__(self) -> str:
        return f"Feature {self.index} of {self.sae}, run {self.run}: .page(), .top(), .logit_lens(), .ablate_text(text)"

    def page(
        self,
        k: int = SampleExamples.k,
        *,
        exclude: Excluded = None,
        where: Where | None = None,
        live: bool = True,
        ablated: int = 1,
        seed: int = SampleExamples.seed,
    ) -> FeaturePage:
        """Return all that is known of the feature: statistics, examples, related features, logit lens and ablations.

        Without a service, or if the workers do not answer, the parts that run a model are left out, and `page.missing`
        says why.

        Args:
            k: Number of examples of each kind at most.
            exclude: Token classes whose activations do not count. None: `bos`. Empty: all count.
            where: Tokens that examples are from. None: every token of the run.
            live: Ask for the parts that run a model: logit lens, neighbors and ablations.
            ablated: Number of strongest examples that are ablated.
            seed: Draws the examples.

        Returns:
            The page, which a notebook shows and `save_html` writes into a file.
        """
        asked = Asked(
            k=_checks.count(k, "k"),
            exclude=tuple(sorted(exclusion(exclude))),
            where=where,
            live=_checks.switch(live, "live"),
            ablated=_checks.count(ablated, "ablated"),
            seed=_checks.seed(seed),
        )
        return feature_page(self, asked)


@dataclass(frozen=True)
class Asked:
    """The arguments of `Feature.page`."""

    k: int
    exclude: tuple[TokenClass, ...]
    where: Where | None
    live: bool
    ablated: int
    seed: int


def feature_page(feature: FeatureQuestions, asked: Asked) -> FeaturePage:
    """Asks for the parts of a page, stored ones first. If a stored part fails, the page fails; if a live part fails,
    the page has a note instead.
    """
    exclude, where = asked.exclude, asked.where
    stored: dict[str, Any] = {
        "statistics": feature.statistics(exclude=exclude),
        "token_r2": feature.token_r2(exclude=exclude),
        "top": feature.top(asked.k, exclude=exclude, where=where),
        "uniform": feature.uniform(asked.k, seed=asked.seed, exclude=exclude, where=where),
        "quantiles": feature.quantiles(
            QUANTILE_BINS, max(1, asked.k // QUANTILE_BINS), seed=asked.seed, exclude=exclude, where=where
        ),
        "cofiring": feature.cofiring(RELATED_FEATURES, exclude=exclude),
    }
    if not asked.live:
        return FeaturePage(**stored, missing=dict.fromkeys(LIVE_PARTS, NOT_ASKED))
    return FeaturePage(**stored, **_live_parts(feature, asked))


def _live_parts(feature: FeatureQuestions, asked: Asked) -> dict[str, Any]:
    live = _LiveParts()
    found: dict[str, Any] = {
        "logit_lens": live.ask("logit_lens", lambda: feature.logit_lens(LENS_TOKENS)),
        "neighbors": live.ask("neighbors", lambda: feature.neighbors(RELATED_FEATURES)),
    }
    if asked.ablated and not live.nobody:
        examples = feature.top(asked.ablated, tokens_before=0, tokens_after=0, exclude=asked.exclude, where=asked.where)
        stored = {row["sequence"]: _tokens_of(feature, row["sequence"]) for row in examples}
        found["ablated_text"] = live.each(
            "ablated_text", examples, lambda row: _ablate_text(feature, stored[row["sequence"]], row["position"])
        )
        found["ablated_direction"] = live.each(
            "ablated_direction",
            examples,
            lambda row: _ablate_direction(feature, stored[row["sequence"]], row["position"]),
        )
    else:
        live.leave_out(("ablated_text", "ablated_direction"))
    return {**found, "missing": live.missing}


class _LiveParts:
    """Asks part after part; once nobody is there to answer, the others are not asked."""

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}
        self.nobody = ""

    def ask(self, name: str, question: Callable[[], Part]) -> Part | None:
        if self.nobody:
            self.missing[name] = self.nobody
            return None
        try:
            return question()
        except ActstoreError as error:
            self.missing[name] = error.message
            if isinstance(error, Unavailable) or error.reason == "NEEDS_SERVICE":
                self.nobody = error.message
            return None

    def each(self, name: str, examples: Examples, question: Callable[[dict[str, Any]], Part]) -> tuple[Part, ...]:
        if not len(examples):
            self.missing[name] = NEVER_FIRES
        answers = [self.ask(name, lambda row=row: question(row)) for row in examples]  # type: ignore[misc]
        return tuple(answer for answer in answers if answer is not None)

    def leave_out(self, names: tuple[str, ...]) -> None:
        for name in names:
            self.missing[name] = self.nobody or NOT_ASKED


def _tokens_of(feature: FeatureQuestions, sequence: int) -> list[int]:
    """A stored sequence, with the BOS that it was run with."""
    where = TokenSelection(sequences=Range(sequence, sequence + 1))
    table, _ = feature._backend.rows(ReadTokens(feature.run, where))
    found: list[int] = table["token"].to_pylist()
    return found


def _ablate_text(feature: FeatureQuestions, tokens: list[int], position: int) -> TextAblation:
    """The ablation of a stored sequence's tokens, read from its beginning as when the activation was stored."""
    first = max(0, position - ABLATED_BEFORE)
    return feature.ablate_text(tokens[: position + 1], position=position, first=first)


def _ablate_direction(feature: FeatureQuestions, tokens: list[int], position: int) -> DirectionAblation:
    """The feature's ablation on a stored sequence. Tokens far from the strongest one are left out of the answer."""
    found = feature.ablate_direction(tokens[: position + 1 + ABLATED_AFTER])
    return replace(found, table=found.table.slice(max(0, position - ABLATED_BEFORE)))
