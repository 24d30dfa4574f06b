"""One SAE feature of a run: what makes it fire, what it writes, and whether it is more than the token itself."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from actstore import _checks as _arguments
from actstore._errors import refused
from actstore._features.asking import Excluded, ask_examples, ask_lens, seed_of, window_of
from actstore._features.live import DirectionAblation, LogitLens, TextAblation
from actstore._features.stored import Examples, FeatureRows, FeatureStatistics, FeatureTable, TokenR2
from actstore._questions import (
    ABLATIONS,
    DEFAULT_BINS,
    DEFAULT_EXAMPLES,
    DEFAULT_TOKENS_AFTER,
    DEFAULT_TOKENS_BEFORE,
    OVER,
    SIDES,
    AblateDirectionQuestion,
    AblateTextQuestion,
    CofiringQuestion,
    FindQuestion,
    NeighboursQuestion,
    RowsQuestion,
    SaeOfRun,
    SampleQuestion,
    Where,
    chosen_tokens,
)
from actstore._view import glossary as _definitions

if TYPE_CHECKING:
    from actstore._features.page import FeaturePage
    from actstore._transport.base import Backend


@dataclass(frozen=True)
class Feature:
    """Asks only when a method is called.

    Questions to the store read what is committed then; `exclude` names token classes (bos, special, sink) whose
    activations do not count: None is the default, BOS, and () leaves nothing out; `where` keeps to some tokens.
    Questions to the model and the SAE's weights need a service: logit_lens, neighbours, ablate_text, ablate_direction.
    """

    source: SaeOfRun
    index: int
    backend: "Backend" = field(repr=False)

    @property
    def run(self) -> str:
        return self.source.run

    @property
    def sae(self) -> str:
        return self.source.sae

    def __repr__(self) -> str:
        return f"Feature {self.index} of {self.sae}, run {self.run}: .page(), .top(), .logit_lens(), .ablate_text(text)"

    def top(
        self,
        k: int = DEFAULT_EXAMPLES,
        tokens_before: int = DEFAULT_TOKENS_BEFORE,
        tokens_after: int = DEFAULT_TOKENS_AFTER,
        exclude: Excluded = None,
        where: Where | None = None,
    ) -> Examples:
        """The k strongest examples, at most one from a sequence, each with so many tokens before and after."""
        window = window_of(tokens_before, tokens_after)
        return self._sampled("top", exclude, where, k=_arguments.count(k, "k"), **window)

    def uniform(
        self,
        k: int = DEFAULT_EXAMPLES,
        over: str = "range",
        *,
        threshold: float = 0.0,
        seed: int = 0,
        tokens_before: int = DEFAULT_TOKENS_BEFORE,
        tokens_after: int = DEFAULT_TOKENS_AFTER,
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
        method = _arguments.chosen(over, "over", OVER)
        threshold = _arguments.number(threshold, "threshold", least=0.0)
        if threshold and method != "activating":
            message = f"a threshold says where it is active enough; examples over {method} take none"
            raise refused(message, "threshold", threshold, 'over="activating"')
        window = window_of(tokens_before, tokens_after)
        chosen = {"k": _arguments.count(k, "k"), "threshold": threshold, "seed": seed_of(seed)}
        return self._sampled(method, exclude, where, **chosen, **window)

    def quantiles(
        self,
        bins: int = 10,
        k: int = 2,
        *,
        seed: int = 0,
        tokens_before: int = DEFAULT_TOKENS_BEFORE,
        tokens_after: int = DEFAULT_TOKENS_AFTER,
        exclude: Excluded = None,
        where: Where | None = None,
    ) -> Examples:
        """Examples at random, k from each of `bins` equally many activations above 0, strongest bin first."""
        window = window_of(tokens_before, tokens_after)
        chosen = {"k": _arguments.count(k, "k"), "bins": _arguments.count(bins, "bins"), "seed": seed_of(seed)}
        return self._sampled("quantile", exclude, where, **chosen, **window)

    def above(self, threshold: float = 0.0, *, exclude: Excluded = None, where: Where | None = None) -> FeatureRows:
        """Every activation greater than `threshold`, strongest first. They travel as a stream and land in memory."""
        classes, threshold = _arguments.exclusion(exclude), _arguments.number(threshold, "threshold", least=0.0)
        question = RowsQuestion(self.run, self.sae, classes, chosen_tokens(where), self.index, threshold)
        table, provenance = self.backend.read_feature(question)
        return FeatureRows(
            table=table,
            sae=self.sae,
            feature=self.index,
            threshold=threshold,
            provenance=provenance,
            excluded=tuple(sorted(classes)),
        )

    def statistics(self, bins: int = DEFAULT_BINS, exclude: Excluded = None) -> FeatureStatistics:
        """Density and strength, and a histogram in so many bins of equal width between 0 and the maximum."""
        bins = _arguments.count(bins, "bins")
        return self.backend.feature_statistics(self.run, self.sae, self.index, _arguments.exclusion(exclude), bins)

    def token_r2(self, exclude: Excluded = None) -> TokenR2:
        """The share of the feature's variance over tokens that the token alone explains: "is it just the embedding?"

        Var(E[f | token]) / Var(f), corrected for how much chance explains over N tokens of K distinct ids:
        1 - (1 - r2) (N - 1) / (N - K), Kelley's epsilon squared (1935). 1 for a lookup of the token; 0 in the mean, and
        so now and then a little below, where the token does not matter; NaN for a feature that never varies.
        """
        question = FindQuestion(
            self.run,
            self.sae,
            _arguments.exclusion(exclude),
            features=(self.index,),
            k=1,
            with_token_r2=True,
        )
        found = self.backend.ask(question)
        return TokenR2(
            table=found.table,
            sae=self.sae,
            feature=self.index,
            provenance=found.provenance,
            excluded=found.excluded,
        )

    def cofiring(self, k: int = 20, *, least_tokens: int = 5, exclude: Excluded = None) -> FeatureTable:
        """Features that fire on the same tokens, by lift: P(other | this) / P(other), 1 for independence.

        Columns feature, both_tokens, share (P(other | this)), density (P(other)), lift. Of pairs that share fewer than
        `least_tokens` tokens nothing is said, for their lift is mostly chance.
        """
        found = self.backend.ask(
            CofiringQuestion(
                self.run,
                self.sae,
                _arguments.exclusion(exclude),
                feature=self.index,
                k=_arguments.count(k, "k"),
                least_tokens=_arguments.count(least_tokens, "least_tokens"),
            )
        )
        return FeatureTable(
            table=found.table,
            sae=self.sae,
            title=f"Fires with feature {self.index}",
            definitions=_definitions.COFIRING,
            provenance=found.provenance,
            excluded=found.excluded,
        )

    def neighbours(self, k: int = 20, *, side: str = "decoder") -> FeatureTable:
        """Features whose decoder (or encoder) directions have the largest cosine with this one's: feature, cosine.

        Decoder directions say what is written, encoder directions what is read; the two neighbourhoods differ.
        """
        side = _arguments.chosen(side, "side", SIDES)
        found = self.backend.ask(
            NeighboursQuestion(**self.source.live(), feature=self.index, side=side, k=_arguments.count(k, "k"))
        )
        return FeatureTable(
            table=found.table,
            sae=self.sae,
            title=f"Nearest to feature {self.index} by {side} direction",
            definitions=_definitions.NEIGHBOURS,
            provenance=found.provenance,
        )

    def logit_lens(
        self,
        k: int = 20,
        *,
        side: str = "decoder",
        fold_norm: bool = False,
        longest_unembedding: float | None = None,
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
        position: int | None = None,
        ablation: str = "delete",
        pairs: bool = False,
        first: int = 0,
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
        question = AblateTextQuestion(
            **self.source.read(text),
            feature=self.index,
            position=_arguments.optional_count(position, "position"),
            ablation=_arguments.chosen(ablation, "ablation", ABLATIONS),
            pairs=_arguments.switch(pairs, "pairs"),
            first=_arguments.count(first, "first"),
        )
        found = self.backend.ask(question)
        return TextAblation(
            table=found.table,
            sae=self.sae,
            feature=self.index,
            ablation=question.ablation,
            tokens=found.tokens,
            position=int(found.facts["position"]),
            activation=found.facts["activation"],
            first=question.first,
            provenance=found.provenance,
        )

    def ablate_direction(self, text: str | Sequence[int]) -> DirectionAblation:
        """What the feature does: how the log-probability of each true next token changes without what it writes.

        activation x decoder direction is taken from the residual at every position, and the layers above run again.
        """
        found = self.backend.ask(AblateDirectionQuestion(**self.source.read(text), feature=self.index))
        return DirectionAblation(table=found.table, sae=self.sae, feature=self.index, provenance=found.provenance)

    def page(
        self,
        k: int = DEFAULT_EXAMPLES,
        *,
        exclude: Excluded = None,
        where: Where | None = None,
        live: bool = True,
        ablated: int = 1,
        seed: int = 0,
    ) -> "FeaturePage":
        """All of it in one call: statistics, k examples of each kind, token_r2, co-firing features; and, live, the
        logit lens, neighbours, and both ablations of the `ablated` strongest examples.

        `where` is about examples alone. Without a service, or where the workers do not answer, the live parts are left
        out and `page.missing` says why; `live=False` leaves them out, too.
        """
        from actstore._features.page import Asked, feature_page

        asked = Asked(
            k=_arguments.count(k, "k"),
            exclude=tuple(_arguments.exclusion(exclude)),
            where=where,
            live=_arguments.switch(live, "live"),
            ablated=_arguments.count(ablated, "ablated"),
            seed=seed_of(seed),
        )
        return feature_page(self, asked)

    def _sampled(self, method: str, exclude: Excluded, where: Where | None, **how: Any) -> Examples:
        classes, kept = _arguments.exclusion(exclude), chosen_tokens(where)
        question = SampleQuestion(self.run, self.sae, classes, kept, (self.index,), method, **how)
        return ask_examples(self.backend, question).of(self.index)
