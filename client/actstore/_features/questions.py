"""What can be asked of one feature, a question at a time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from actstore import _checks
from actstore._errors import refused
from actstore._features.asking import SaeOfRun, ask_examples, ask_lens, feature_table, window_of
from actstore._features.live import DirectionAblation, LogitLens, TextAblation
from actstore._features.stored import Examples, FeatureRows, FeatureStatistics, FeatureTable, TokenR2
from actstore._transport.base import Backend
from actstore._view import glossary
from actstore._where import Excluded, Where, chosen_tokens, exclusion
from actstore_api.records.feature import (
    FindFeatures,
    FindFeaturesAnswer,
    GetCofiringFeatures,
    GetFeatureStatistics,
    GetFeatureStatisticsAnswer,
    ReadFeature,
    SampleExamples,
    SampleMethod,
)
from actstore_api.records.sae import (
    AblateDirection,
    AblateDirectionAnswer,
    AblateText,
    AblateTextAnswer,
    FeatureSide,
    FindNeighbors,
    GetLogitLens,
)
from actstore_api.records.sae import (
    TextAblation as Ablation,
)

# What examples can be spread over, by `uniform`.
OVER: tuple[SampleMethod, ...] = ("range", "rank", "activating", "positions")


@dataclass(frozen=True)
class FeatureQuestions:
    """The questions that can be asked of the feature `index` of an SAE of a run."""

    source: SaeOfRun
    index: int
    backend: Backend = field(repr=False)

    @property
    def run(self) -> str:
        return self.source.run

    @property
    def sae(self) -> str:
        return self.source.sae

    def top(
        self,
        k: int = SampleExamples.k,
        tokens_before: int = SampleExamples.tokens_before,
        tokens_after: int = SampleExamples.tokens_after,
        exclude: Excluded = None,
        where: Where | None = None,
    ) -> Examples:
        """The k strongest examples, at most one from a sequence, each with so many tokens before and after."""
        window = window_of(tokens_before, tokens_after)
        return self._sampled("top", exclude, where, k=_checks.count(k, "k"), **window)

    def uniform(
        self,
        k: int = SampleExamples.k,
        over: str = "range",
        *,
        threshold: float = SampleExamples.threshold,
        seed: int = SampleExamples.seed,
        tokens_before: int = SampleExamples.tokens_before,
        tokens_after: int = SampleExamples.tokens_after,
        exclude: Excluded = None,
        where: Where | None = None,
    ) -> Examples:
        """Examples, k of them, that stand for more than the extremes, chosen evenly `over`

        range       k bins of equal width between 0 and the maximum: one at random from each that holds any, strongest
                    first. (Cunningham et al. 2023)
        rank        evenly spaced ranks among the activations above 0, from the strongest to the weakest.
        activating  activations above `threshold`, at random without repeats; strongest first.
        positions   tokens that count, at random; the feature is 0 on most of them. In order of the text.

        The same seed and snapshot give the same examples.
        """
        method = _checks.one_of(over, "over", OVER)
        threshold = _checks.number(threshold, "threshold", least=0.0)
        if threshold and method != "activating":
            message = f"a threshold says where it is active enough; examples over {method} take none"
            raise refused(message, "threshold", threshold, 'over="activating"')
        window = window_of(tokens_before, tokens_after)
        chosen = {"k": _checks.count(k, "k"), "threshold": threshold, "seed": _checks.seed(seed)}
        return self._sampled(method, exclude, where, **chosen, **window)

    def quantiles(
        self,
        bins: int = SampleExamples.bins,
        k: int = 2,
        *,
        seed: int = SampleExamples.seed,
        tokens_before: int = SampleExamples.tokens_before,
        tokens_after: int = SampleExamples.tokens_after,
        exclude: Excluded = None,
        where: Where | None = None,
    ) -> Examples:
        """Examples at random, k from each of `bins` equally many activations above 0, strongest bin first."""
        window = window_of(tokens_before, tokens_after)
        chosen = {"k": _checks.count(k, "k"), "bins": _checks.count(bins, "bins"), "seed": _checks.seed(seed)}
        return self._sampled("quantile", exclude, where, **chosen, **window)

    def above(
        self, threshold: float = ReadFeature.threshold, *, exclude: Excluded = None, where: Where | None = None
    ) -> FeatureRows:
        """Every activation greater than `threshold`, strongest first. They travel as a stream and land in memory."""
        question = ReadFeature(
            **self._stored(exclude),
            threshold=_checks.number(threshold, "threshold", least=0.0),
            where=chosen_tokens(where),
        )
        table, provenance = self.backend.rows(question)
        return FeatureRows(
            table=table,
            sae=self.sae,
            feature=self.index,
            threshold=question.threshold,
            provenance=provenance,
            excluded=tuple(sorted(question.exclude)),
        )

    def statistics(self, bins: int = GetFeatureStatistics.bins, exclude: Excluded = None) -> FeatureStatistics:
        """Density and strength, and a histogram in so many bins of equal width between 0 and the maximum."""
        question = GetFeatureStatistics(**self._stored(exclude), bins=_checks.count(bins, "bins"))
        found: GetFeatureStatisticsAnswer = self.backend.ask(question)
        return FeatureStatistics(
            table=found.histogram,
            sae=self.sae,
            feature=self.index,
            tokens=found.tokens,
            active_tokens=found.active_tokens,
            density=found.density,
            maximum=found.maximum,
            mean_when_active=found.mean_when_active,
            provenance=found.provenance,
            excluded=tuple(sorted(found.excluded)),
        )

    def token_r2(self, exclude: Excluded = None) -> TokenR2:
        """The share of the feature's variance over tokens that the token alone explains: "is it just the embedding?"

        Var(E[f | token]) / Var(f), corrected for how much chance explains over N tokens of K distinct ids:
        1 - (1 - r2) (N - 1) / (N - K), Kelley's epsilon squared (1935). 1 for a lookup of the token; 0 in the mean, and
        so now and then a little below, where the token does not matter; NaN for a feature that never varies.
        """
        question = FindFeatures(
            **self.source.stored(), features=(self.index,), k=1, with_token_r2=True, exclude=exclusion(exclude)
        )
        found: FindFeaturesAnswer = self.backend.ask(question)
        return TokenR2(
            table=found.features,
            sae=self.sae,
            feature=self.index,
            provenance=found.provenance,
            excluded=tuple(sorted(found.excluded)),
        )

    def cofiring(
        self,
        k: int = GetCofiringFeatures.k,
        *,
        least_tokens: int = GetCofiringFeatures.least_tokens,
        exclude: Excluded = None,
    ) -> FeatureTable:
        """Features that fire on the same tokens, by lift: P(other | this) / P(other), 1 for independence.

        Columns feature, both_tokens, share (P(other | this)), density (P(other)), lift. Of pairs that share fewer than
        `least_tokens` tokens nothing is said, for their lift is mostly chance.
        """
        question = GetCofiringFeatures(
            **self._stored(exclude),
            k=_checks.count(k, "k"),
            least_tokens=_checks.count(least_tokens, "least_tokens"),
        )
        title = f"Fires with feature {self.index}"
        return feature_table(self.backend.ask(question), self.sae, title, glossary.COFIRING)

    def neighbours(self, k: int = FindNeighbors.k, *, side: str = FindNeighbors.side) -> FeatureTable:
        """Features whose decoder (or encoder) directions have the largest cosine with this one's: feature, cosine.

        Decoder directions say what is written, encoder directions what is read; the two neighbourhoods differ.
        """
        question = FindNeighbors(
            sae=self.sae,
            direction=self.index,
            side=_checks.one_of(side, "side", get_args(FeatureSide)),
            k=_checks.count(k, "k"),
        )
        title = f"Nearest to feature {self.index} by {question.side} direction"
        return feature_table(self.backend.ask(question), self.sae, title, glossary.NEIGHBOURS)

    def logit_lens(
        self,
        k: int = GetLogitLens.k,
        *,
        side: str = GetLogitLens.side,
        fold_norm: bool = GetLogitLens.fold_norm,
        longest_unembedding: float | None = GetLogitLens.longest_unembedding,
    ) -> LogitLens:
        """The k tokens whose logits the feature's direction raises, and lowers, most: direction @ W_U.

        `side` decoder is what it writes, encoder what it reads. `fold_norm` multiplies the direction with the final
        norm's gain, and centres it where that norm does; the norm's own division is left out either way, for it depends
        on the text. Tokens whose unembedding vector is longer than `longest_unembedding` are left out: rare tokens' are
        (the feature pages of Cunningham et al. 2023 left out those above 20).
        """
        return ask_lens(self.backend, self.source, (self.index,), k, side, fold_norm, longest_unembedding)

    def ablate_text(
        self,
        text: str | Sequence[int],
        *,
        position: int | None = AblateText.position,
        ablation: str = AblateText.ablation,
        pairs: bool = AblateText.pairs,
        first: int = AblateText.first_ablated,
    ) -> TextAblation:
        """What the feature reads: how it changes at a position when tokens of the text are taken away, one at a time.

        The text is cut after `position` (None: where the feature is strongest, BOS and special tokens apart), and the
        feature looked at on its last token. `ablation`:

        delete          the token is gone, and the text shorter by one; for the last token, the one before is looked at.
        zero_embedding  what goes into the first layer at the token is zero.
        zero_residual   what goes into every layer up to the SAE's own is zero there.
        mean_residual   ... is the mean over the text's tokens, without BOS.

        `pairs` takes every two tokens away, too: what reads "either of two" shows in pairs alone. Tokens before `first`
        stay. Positions count BOS, which a text gets where the run's sequences have one; token ids, such as those of a
        stored sequence, are read as they are.
        """
        question = AblateText(
            **self.source.read(text),
            feature=self.index,
            position=_checks.optional_count(position, "position"),
            ablation=_checks.one_of(ablation, "ablation", get_args(Ablation)),
            pairs=_checks.switch(pairs, "pairs"),
            first_ablated=_checks.count(first, "first"),
        )
        found: AblateTextAnswer = self.backend.ask(question)
        return TextAblation(
            table=found.effects,
            sae=self.sae,
            feature=self.index,
            ablation=question.ablation,
            tokens=found.tokens,
            position=found.position,
            activation=found.activation,
            first=question.first_ablated,
            provenance=found.provenance,
        )

    def ablate_direction(self, text: str | Sequence[int]) -> DirectionAblation:
        """What the feature does: how the log-probability of each true next token changes without what it writes.

        activation x decoder direction is taken from the residual at every position, and the layers above run again.
        """
        question = AblateDirection(**self.source.read(text), feature=self.index)
        found: AblateDirectionAnswer = self.backend.ask(question)
        return DirectionAblation(table=found.tokens, sae=self.sae, feature=self.index, provenance=found.provenance)

    def _sampled(self, method: SampleMethod, exclude: Excluded, where: Where | None, **how: Any) -> Examples:
        question = SampleExamples(
            **self.source.stored(),
            features=(self.index,),
            method=method,
            exclude=exclusion(exclude),
            where=chosen_tokens(where),
            **how,
        )
        return ask_examples(self.backend, question).of(self.index)

    def _stored(self, exclude: Excluded) -> dict[str, Any]:
        """The fields of a question about this feature as it is stored."""
        return {**self.source.stored(), "feature": self.index, "exclude": exclusion(exclude)}
