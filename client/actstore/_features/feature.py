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
from actstore_api.records.terms import Range

QUANTILE_BINS = 5
LENS_TOKENS, RELATED_FEATURES = 10, 10
# Tokens of the stored sequence that are ablated, and shown: each before the strongest one costs a forward pass.
ABLATED_BEFORE, ABLATED_AFTER = 24, 12
LIVE_PARTS = ("lens", "neighbours", "ablated_text", "ablated_direction")
NEVER_FIRES = "the feature never fires, so there is no text to ablate"
NOT_ASKED = "not asked for"

Part = TypeVar("Part")


@dataclass(frozen=True)
class Feature(FeatureQuestions):
    """One SAE feature of a run; asks only when a method is called.

    Questions to the store read what is committed then; `exclude` names token classes (bos, special, sink) whose
    activations do not count: None is the default, BOS, and () leaves nothing out; `where` keeps to some tokens.
    Questions to the model and the SAE's weights need a service: logit_lens, neighbours, ablate_text, ablate_direction.
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
        """All of it in one call: statistics, k examples of each kind, token_r2, co-firing features; and, live, the
        logit lens, neighbours, and both ablations of the `ablated` strongest examples.

        `where` is about examples alone. Without a service, or where the workers do not answer, the live parts are left
        out and `page.missing` says why; `live=False` leaves them out, too.
        """
        asked = Asked(
            k=_checks.count(k, "k"),
            exclude=tuple(exclusion(exclude)),
            where=where,
            live=_checks.switch(live, "live"),
            ablated=_checks.count(ablated, "ablated"),
            seed=_checks.seed(seed),
        )
        return feature_page(self, asked)


@dataclass(frozen=True)
class Asked:
    """What a page shows: as of Feature.page."""

    k: int
    exclude: tuple[str, ...]
    where: Where | None
    live: bool
    ablated: int
    seed: int


def feature_page(feature: FeatureQuestions, asked: Asked) -> FeaturePage:
    """Asks for the parts of a page, stored ones first: what is wrong with those is an error of the page, and what is
    wrong with live ones a note on it.
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
        "lens": live.ask("lens", lambda: feature.logit_lens(LENS_TOKENS)),
        "neighbours": live.ask("neighbours", lambda: feature.neighbours(RELATED_FEATURES)),
    }
    if asked.ablated and not live.nobody:
        examples = feature.top(asked.ablated, 0, 0, asked.exclude, asked.where)
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
    table, _ = feature.backend.rows(ReadTokens(feature.run, where))
    found: list[int] = table["token"].to_pylist()
    return found


def _ablate_text(feature: FeatureQuestions, tokens: list[int], position: int) -> TextAblation:
    """From the sequence's beginning, which is what the stored activation was of."""
    first = max(0, position - ABLATED_BEFORE)
    return feature.ablate_text(tokens[: position + 1], position=position, first=first)


def _ablate_direction(feature: FeatureQuestions, tokens: list[int], position: int) -> DirectionAblation:
    """Likewise; what is far from the strongest token is left out of the answer."""
    found = feature.ablate_direction(tokens[: position + 1 + ABLATED_AFTER])
    return replace(found, table=found.table.slice(max(0, position - ABLATED_BEFORE)))
