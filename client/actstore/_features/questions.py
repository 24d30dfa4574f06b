"""The questions about one feature."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from actstore import _checks
from actstore._checks import Text
from actstore._errors import refused
from actstore._features.asking import OfSae, SaeOfRun, ask_examples, ask_lens, feature_table, window_of
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
    TextAblation as TokenAblation,
)

# What examples can be spread over, by `uniform`.
ExampleSpread = Literal["range", "rank", "activating", "positions"]


@dataclass(frozen=True)
class FeatureQuestions(OfSae):
    """The questions that can be asked of the feature `index` of an SAE of a run."""

    _source: SaeOfRun
    index: int
    _backend: Backend = field(repr=False)

    def top(
        self,
        k: int = SampleExamples.k,
        *,
        tokens_before: int = SampleExamples.tokens_before,
        tokens_after: int = SampleExamples.tokens_after,
        exclude: Excluded = None,
        where: Where | None = None,
    ) -> Examples:
        """Return the strongest examples, at most one from a sequence.

        Args:
            k: Number of examples at most.
            tokens_before: Tokens shown before each.
            tokens_after: Tokens shown after each.
            exclude: Token classes whose activations do not count. None: `bos`. Empty: all count.
            where: Tokens to look at. None: every token of the run.

        Returns:
            The examples, strongest first.
        """
        window = window_of(tokens_before, tokens_after)
        return self._sampled("top", exclude, where, k=_checks.count(k, "k"), **window)

    def uniform(
        self,
        k: int = SampleExamples.k,
        over: ExampleSpread = "range",
        *,
        threshold: float = SampleExamples.threshold,
        seed: int = SampleExamples.seed,
        tokens_before: int = SampleExamples.tokens_before,
        tokens_after: int = SampleExamples.tokens_after,
        exclude: Excluded = None,
        where: Where | None = None,
    ) -> Examples:
        """Return examples that are spread evenly, and so stand for more than the extremes.

        The same seed and snapshot give the same examples.

        Args:
            k: Number of examples at most.
            over: What they are spread over:

                - `range`: k bins of equal width between 0 and the maximum, and one example at random from each that
                  holds any, strongest first (Cunningham et al. 2023).
                - `rank`: evenly spaced ranks among the activations above 0, from the strongest to the weakest.
                - `activating`: activations above `threshold`, at random without repeats, strongest first.
                - `positions`: tokens that count, at random, in order of the text. The feature is 0 on most of them.
            threshold: With `activating`, the activation above which examples are drawn.
            seed: Draws the examples.
            tokens_before: Tokens shown before each.
            tokens_after: Tokens shown after each.
            exclude: Token classes whose activations do not count. None: `bos`. Empty: all count.
            where: Tokens to look at. None: every token of the run.

        Returns:
            The examples.

        Raises:
            BadRequest: A threshold is given, and `over` is not `activating`.
        """
        method = _checks.one_of(over, "over", get_args(ExampleSpread))
        threshold = _checks.number(threshold, "threshold", least=0.0)
        if threshold and method != "activating":
            message = f"a threshold is for examples over activating, and these are over {method}"
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
        """Return random examples from each of several bins that hold equally many activations above 0.

        Args:
            bins: Number of bins.
            k: Number of examples from each bin at most.
            seed: Draws the examples.
            tokens_before: Tokens shown before each.
            tokens_after: Tokens shown after each.
            exclude: Token classes whose activations do not count. None: `bos`. Empty: all count.
            where: Tokens to look at. None: every token of the run.

        Returns:
            The examples, the strongest bin first.
        """
        window = window_of(tokens_before, tokens_after)
        chosen = {"k": _checks.count(k, "k"), "bins": _checks.count(bins, "bins"), "seed": _checks.seed(seed)}
        return self._sampled("quantile", exclude, where, **chosen, **window)

    def above(
        self, threshold: float = ReadFeature.threshold, *, exclude: Excluded = None, where: Where | None = None
    ) -> FeatureRows:
        """Return every activation above a threshold. They travel as a stream, and all of them are held in memory.

        Args:
            threshold: Activations greater than this are returned; 0 or more.
            exclude: Token classes whose activations do not count. None: `bos`. Empty: all count.
            where: Tokens to look at. None: every token of the run.

        Returns:
            A row for each activation, strongest first.
        """
        question = ReadFeature(
            **self._stored(exclude),
            threshold=_checks.number(threshold, "threshold", least=0.0),
            where=chosen_tokens(where),
        )
        table, provenance = self._backend.rows(question)
        return FeatureRows(
            table=table,
            sae=self.sae,
            feature=self.index,
            threshold=question.threshold,
            provenance=provenance,
            excluded=tuple(sorted(question.exclude)),
        )

    def statistics(self, bins: int = GetFeatureStatistics.bins, exclude: Excluded = None) -> FeatureStatistics:
        """Return how often the feature fires and how strongly, with a histogram of its activations.

        Args:
            bins: Bins of equal width between 0 and the maximum.
            exclude: Token classes that do not count. None: `bos`. Empty: all count.

        Returns:
            Density, maximum, mean and histogram.
        """
        question = GetFeatureStatistics(**self._stored(exclude), bins=_checks.count(bins, "bins"))
        found: GetFeatureStatisticsAnswer = self._backend.ask(question)
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

    def token_r2(self, *, exclude: Excluded = None) -> TokenR2:
        """Return how much of the feature's activation the token alone explains.

        It is Var(E[f | token]) / Var(f), corrected for how much chance explains over N tokens of K distinct ids:
        1 - (1 - r2) (N - 1) / (N - K), Kelley's epsilon squared (1935). 1: the feature is a lookup of the token. 0 in
        the mean, and now and then a little below, if the token does not matter. NaN for a feature that never varies.

        Args:
            exclude: Token classes that do not count. None: `bos`. Empty: all count.

        Returns:
            The number, as `float(answer)` or `answer.value`.
        """
        question = FindFeatures(
            **self._source.stored(), features=(self.index,), k=1, with_token_r2=True, exclude=exclusion(exclude)
        )
        found: FindFeaturesAnswer = self._backend.ask(question)
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
        """Return features that fire on the same tokens, by lift: P(other | this) / P(other), 1 for independence.

        Args:
            k: Number of features at most.
            least_tokens: Tokens that a pair must share to be listed, since the lift of fewer is mostly chance.
            exclude: Token classes that do not count. None: `bos`. Empty: all count.

        Returns:
            Columns feature, both_tokens, share (P(other | this)), density (P(other)) and lift.
        """
        question = GetCofiringFeatures(
            **self._stored(exclude),
            k=_checks.count(k, "k"),
            least_tokens=_checks.count(least_tokens, "least_tokens"),
        )
        title = f"Fires with feature {self.index}"
        return feature_table(self._backend.ask(question), self.sae, title, glossary.COFIRING)

    def neighbors(self, k: int = FindNeighbors.k, *, side: FeatureSide = FindNeighbors.side) -> FeatureTable:
        """Return features whose directions have the largest cosine with this one's. Needs a service.

        Args:
            k: Number of features at most.
            side: `decoder`: what features write. `encoder`: what they read. The two neighborhoods differ.

        Returns:
            Columns feature and cosine.
        """
        question = FindNeighbors(
            sae=self.sae,
            direction=self.index,
            side=_checks.one_of(side, "side", get_args(FeatureSide)),
            k=_checks.count(k, "k"),
        )
        title = f"Nearest to feature {self.index} by {question.side} direction"
        return feature_table(self._backend.ask(question), self.sae, title, glossary.NEIGHBORS)

    def logit_lens(
        self,
        k: int = GetLogitLens.k,
        *,
        side: FeatureSide = GetLogitLens.side,
        fold_norm: bool = GetLogitLens.fold_norm,
        longest_unembedding: float | None = GetLogitLens.longest_unembedding,
    ) -> LogitLens:
        """Return the tokens whose logits the feature's direction raises and lowers most: direction @ W_U.

        Needs a service.

        Args:
            k: How many tokens to return with the highest logits, and how many with the lowest.
            side: `decoder`: what the feature writes. `encoder`: what it reads.
            fold_norm: Multiply the direction with the final norm's gain, and center it if that norm does. The norm's
                division is left out either way, since it depends on the text.
            longest_unembedding: Leave out tokens whose unembedding vector is longer, as rare tokens' are; the feature
                pages of Cunningham et al. (2023) left out those above 20. None: no token is left out.

        Returns:
            The k tokens with the highest and the k with the lowest logits.
        """
        return ask_lens(self._backend, self._source, (self.index,), k, side, fold_norm, longest_unembedding)

    def ablate_text(
        self,
        text: Text,
        *,
        position: int | None = AblateText.position,
        ablation: TokenAblation = AblateText.ablation,
        pairs: bool = AblateText.pairs,
        first: int = AblateText.first_ablated,
    ) -> TextAblation:
        """Return how the feature changes if tokens of a text are taken away, one at a time: what it reads.

        The text is cut after `position`, and the feature is looked at on its last token. Needs a service.

        Args:
            text: A text, which gets a BOS if the run's sequences have one, or token ids, such as those of a stored
                sequence, which are read as they are.
            position: Where the feature is looked at, counted with BOS. None: where it is strongest, BOS and special
                tokens apart.
            ablation: What happens to a token:

                - `delete`: it is gone, and the text is shorter by one. For the last token, the one before is looked at.
                - `zero_embedding`: what goes into the first layer there is zero.
                - `zero_residual`: what goes into every layer up to the SAE's own is zero there.
                - `mean_residual`: the same with the mean over the text's tokens, without BOS.
            pairs: Take away every pair of tokens, too. Only pairs show a feature that reads "either of two".
            first: Tokens before this position are not ablated.

        Returns:
            A row for each token or pair, with the change of the activation.
        """
        question = AblateText(
            **self._source.read(text),
            feature=self.index,
            position=_checks.optional_count(position, "position"),
            ablation=_checks.one_of(ablation, "ablation", get_args(TokenAblation)),
            pairs=_checks.switch(pairs, "pairs"),
            first_ablated=_checks.count(first, "first"),
        )
        found: AblateTextAnswer = self._backend.ask(question)
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

    def ablate_direction(self, text: Text) -> DirectionAblation:
        """Return how predictions of a text change without what the feature writes.

        activation x decoder direction is taken from the residual stream at every position, and the layers above run
        again. Needs a service.

        Args:
            text: A text or token ids, as in `ablate_text`.

        Returns:
            A row for each token but the last, with the change of the true next token's log-probability.
        """
        question = AblateDirection(**self._source.read(text), feature=self.index)
        found: AblateDirectionAnswer = self._backend.ask(question)
        return DirectionAblation(table=found.tokens, sae=self.sae, feature=self.index, provenance=found.provenance)

    def _sampled(self, method: SampleMethod, exclude: Excluded, where: Where | None, **how: Any) -> Examples:
        question = SampleExamples(
            **self._source.stored(),
            features=(self.index,),
            method=method,
            exclude=exclusion(exclude),
            where=chosen_tokens(where),
            **how,
        )
        return ask_examples(self._backend, question).of(self.index)

    def _stored(self, exclude: Excluded) -> dict[str, Any]:
        """The fields of a question about this feature as it is stored."""
        return {**self._source.stored(), "feature": self.index, "exclude": exclusion(exclude)}
