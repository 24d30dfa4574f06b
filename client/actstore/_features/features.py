"""All features of an SAE over a run: to search, to compare, to find by text, token or direction, and to check."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import pyarrow as pa

from actstore import _checks
from actstore._checks import Text
from actstore._errors import SaeWarning, refused
from actstore._features.asking import OfSae, SaeOfRun, ask_examples, ask_lens, feature_table, window_of
from actstore._features.by_text import fires_on, with_lift
from actstore._features.feature import Feature
from actstore._features.live import EncodedText, LogitLens, SaeCheck
from actstore._features.stored import FeatureTable, ManyExamples
from actstore._models.calls import id_of
from actstore._transport.base import Backend
from actstore._view import glossary
from actstore._where import Excluded, Where, chosen_tokens, exclusion
from actstore_api.records.feature import (
    ActiveFeatureOrder,
    FeatureStatistic,
    FindFeatures,
    FindFeaturesAnswer,
    GetActiveFeatures,
    SampleExamples,
    SampleMethod,
    StatisticBound,
)
from actstore_api.records.sae import (
    CheckSae,
    CheckSaeAnswer,
    EncodeText,
    EncodeTextAnswer,
    FeatureSide,
    FindNeighbors,
    GetLogitLens,
)

Bound = Sequence[float | None] | None


@dataclass(frozen=True)
class SaeFeatures(OfSae):
    """All features of an SAE over a run: to search, to compare, to find by text, token or direction, and to check.

    `features[12]` is one of them, iterating yields each, `12 in features` tells whether there is one, and `len` is
    d_sae. Like a `Feature` it cannot be pickled: open it again with `lab.run(run).features(sae)`.
    """

    _source: SaeOfRun
    _backend: Backend = field(repr=False)

    def __len__(self) -> int:
        return self._source.d_sae

    def __iter__(self) -> Iterator[Feature]:
        return (Feature(self._source, index, self._backend) for index in range(len(self)))

    def __contains__(self, feature: object) -> bool:
        """Whether it is an index of a feature, or one of these features."""
        if isinstance(feature, Feature):
            return feature == Feature(self._source, feature.index, self._backend) and feature.index < len(self)
        return not isinstance(feature, bool) and feature in range(len(self))

    def __getitem__(self, index: int) -> Feature:
        maximum = self._source.d_sae - 1
        index = _checks.count(index, "feature", maximum=maximum, reason="FEATURE_OUT_OF_RANGE")
        return Feature(self._source, index, self._backend)

    def __repr__(self) -> str:
        return (
            f"{len(self):,} features of {self.sae}, run {self.run}: .search(...), .by_text(text), .by_token(id), "
            ".by_direction(vector), .check()"
        )

    def search(
        self,
        *,
        density: Bound = None,
        active_tokens: Bound = None,
        maximum: Bound = None,
        mean_when_active: Bound = None,
        token_r2: Bound = None,
        order: FeatureStatistic = FindFeatures.order,
        ascending: bool = FindFeatures.ascending,
        k: int = FindFeatures.k,
        with_token_r2: bool = FindFeatures.with_token_r2,
        exclude: Excluded = None,
    ) -> FeatureTable:
        """Find features whose statistics lie within bounds.

        A bound is a pair (low, high), both included, of which either may be None. None: no bound.

        Args:
            density: Bounds of the share of tokens on which the feature is above 0.
            active_tokens: Bounds of the number of tokens on which the feature is above 0.
            maximum: Bounds of the largest activation.
            mean_when_active: Bounds of the mean activation over active tokens.
            token_r2: Bounds of the share of variance that the token alone explains, as in `Feature.token_r2`.
            order: The statistic to sort by.
            ascending: Smallest first; else largest first.
            k: Number of features at most.
            with_token_r2: Add the column token_r2 even if no bound or order needs it. This reads every activation.
            exclude: Token classes that do not count. None: `bos`. Empty: all count.

        Returns:
            Columns feature, active_tokens, density, maximum, mean_when_active, and token_r2 if it was asked for.
        """
        given = (density, active_tokens, maximum, mean_when_active, token_r2)
        question = FindFeatures(
            **self._stored(exclude),
            bounds=tuple(_bounds(given)),
            order=_checks.one_of(order, "order", get_args(FeatureStatistic)),
            ascending=_checks.switch(ascending, "ascending"),
            k=_checks.count(k, "k"),
            with_token_r2=_checks.switch(with_token_r2, "with_token_r2"),
        )
        return feature_table(self._backend.ask(question), self.sae, "Found", glossary.STATISTICS)

    def statistics(
        self,
        features: Iterable[int] | int | None = None,
        *,
        with_token_r2: bool = FindFeatures.with_token_r2,
        exclude: Excluded = None,
    ) -> FeatureTable:
        """Return statistics of many features.

        Args:
            features: Indices, or one index. None: every feature of the SAE. An empty collection is refused.
            with_token_r2: Have a column token_r2, which takes a look at every activation.
            exclude: Token classes that do not count. None: `bos`. Empty: all count.

        Returns:
            Columns as in `search`, densest first.
        """
        chosen = () if features is None else self._indices(features)
        question = FindFeatures(
            **self._stored(exclude),
            features=chosen,
            k=len(chosen) or len(self),
            with_token_r2=_checks.switch(with_token_r2, "with_token_r2"),
        )
        return feature_table(self._backend.ask(question), self.sae, "Statistics", glossary.STATISTICS)

    def active(
        self,
        where: Where | None = None,
        *,
        order: ActiveFeatureOrder = GetActiveFeatures.order,
        k: int = GetActiveFeatures.k,
        exclude: Excluded = None,
    ) -> FeatureTable:
        """Return the features that are most active on chosen tokens of the run.

        Args:
            where: The tokens, as of a sequence, a document or a token id. None: every token of the run.
            order: What to sort by, largest first.
            k: Number of features at most.
            exclude: Token classes that do not count. None: `bos`. Empty: all count.

        Returns:
            Columns feature, active_tokens (of the chosen ones), mean (over all chosen tokens, zeros included), maximum,
            density (over the run) and lift (share of chosen tokens on which it fires, over its density). Features that
            fire on none of the tokens are left out.
        """
        question = GetActiveFeatures(
            **self._stored(exclude),
            where=chosen_tokens(where),
            order=_checks.one_of(order, "order", get_args(ActiveFeatureOrder)),
            k=_checks.count(k, "k"),
        )
        return feature_table(self._backend.ask(question), self.sae, "Most active", glossary.ACTIVE)

    def by_token(
        self,
        token: int | str,
        k: int = GetActiveFeatures.k,
        *,
        order: ActiveFeatureOrder = "lift",
        exclude: Excluded = None,
    ) -> FeatureTable:
        """Return the features that are most active on a token, over all its occurrences in the run.

        Args:
            token: A token id, or the text of one token as answers show it, most with a leading space. A text needs a
                service.
            k: Number of features at most.
            order: What to sort by, largest first.
            exclude: Token classes that do not count. None: `bos`. Empty: all count.

        Returns:
            Columns as in `active`.
        """
        if isinstance(token, str):
            token = id_of(self._backend, self._source.model, token)
        [chosen] = _checks.whole_numbers([token], "token", _checks.MAXIMUM_TOKEN)
        return self.active(Where(tokens=(chosen,)), order=order, k=k, exclude=exclude)

    def by_text(
        self,
        text: Text,
        k: int = GetActiveFeatures.k,
        *,
        order: ActiveFeatureOrder = "lift",
        density: Bound = None,
        exclude: Excluded = None,
    ) -> FeatureTable:
        """Return the features that fire on a text that is given now. Needs a service.

        Args:
            text: A text, which gets a BOS if the run's sequences have one, or token ids, which are read as they are.
            k: Number of features at most.
            order: What to sort by, largest first. A feature that never fires in the run has no lift, and comes last.
            density: Bounds (low, high) of a feature's density in the run: (None, 0.01) leaves out features that fire
                on more than a hundredth of it. None: no bound.
            exclude: Token classes of the run that do not count for density. None: `bos`. Empty: all count.

        Returns:
            Columns as in `active`, over the text's tokens without BOS and special ones; and position and text of the
            token on which the feature is strongest.
        """
        order = _checks.one_of(order, "order", get_args(ActiveFeatureOrder))
        low, high = _checks.bound(density, "density")
        k = _checks.count(k, "k")
        encoded = self.encode_text(text)
        fires = fires_on(encoded)
        if not len(fires):
            return self._none_fires(fires, encoded, exclude)
        found = self._densities(fires, exclude)
        table = with_lift(fires, found.features)
        kept = pa.array(
            [(low is None or low <= each) and (high is None or each <= high) for each in table["density"].to_pylist()]
        )
        table = table.filter(kept).sort_by([(order, "descending"), ("maximum", "descending"), ("feature", "ascending")])
        found = replace(found, features=table.slice(0, k))
        return feature_table(found, self.sae, "Fires on the text", glossary.ACTIVE)

    def by_direction(
        self, vector: Iterable[float], k: int = FindNeighbors.k, *, side: FeatureSide = FindNeighbors.side
    ) -> FeatureTable:
        """Return features whose directions have the largest cosine with a vector. Needs a service.

        Args:
            vector: d_model numbers. Only their direction counts.
            k: Number of features at most.
            side: `decoder`: what features write. `encoder`: what they read.

        Returns:
            Columns feature and cosine.
        """
        question = FindNeighbors(
            sae=self.sae,
            direction=_checks.vector(vector, "vector"),
            side=_checks.one_of(side, "side", get_args(FeatureSide)),
            k=_checks.count(k, "k"),
        )
        title = f"Nearest to the vector by {question.side} direction"
        return feature_table(self._backend.ask(question), self.sae, title, glossary.NEIGHBORS)

    def sample(
        self,
        features: Iterable[int] | int,
        method: SampleMethod = SampleExamples.method,
        k: int = SampleExamples.k,
        *,
        bins: int = SampleExamples.bins,
        threshold: float = SampleExamples.threshold,
        seed: int = SampleExamples.seed,
        tokens_before: int = SampleExamples.tokens_before,
        tokens_after: int = SampleExamples.tokens_after,
        exclude: Excluded = None,
        where: Where | None = None,
    ) -> ManyExamples:
        """Return examples of many features in one call.

        Args:
            features: Indices, or one index; at most 256.
            method: `top`: the strongest, as in `Feature.top`. `quantile`: from bins of equally many activations, as of
                `Feature.quantiles`. `range`, `rank`, `activating` or `positions`: as in `Feature.uniform`.
            k: Number of examples of a feature at most; with `quantile`, from each bin.
            bins: With `quantile`, the number of bins.
            threshold: With `activating`, the activation above which examples are drawn.
            seed: Draws the examples.
            tokens_before: Tokens shown before each.
            tokens_after: Tokens shown after each.
            exclude: Token classes whose activations do not count. None: `bos`. Empty: all count.
            where: Tokens to look at. None: every token of the run.

        Returns:
            The examples; `.of(feature)` gives those of one feature.
        """
        question = SampleExamples(
            **self._stored(exclude),
            where=chosen_tokens(where),
            features=self._indices(features),
            method=_checks.one_of(method, "method", get_args(SampleMethod)),
            k=_checks.count(k, "k"),
            bins=_checks.count(bins, "bins"),
            threshold=_checks.number(threshold, "threshold", least=0.0),
            seed=_checks.seed(seed),
            **window_of(tokens_before, tokens_after),
        )
        return ask_examples(self._backend, question)

    def logit_lens(
        self,
        features: Iterable[int] | int,
        k: int = GetLogitLens.k,
        *,
        side: FeatureSide = GetLogitLens.side,
        fold_norm: bool = GetLogitLens.fold_norm,
        longest_unembedding: float | None = GetLogitLens.longest_unembedding,
    ) -> LogitLens:
        """Return the logit lens of many features in one call. Needs a service.

        Args:
            features: Indices, or one index; at most 256.
            k: How many tokens to return with the highest logits, and how many with the lowest.
            side: `decoder`: what features write. `encoder`: what they read.
            fold_norm: Multiply directions with the final norm's gain, as in `Feature.logit_lens`.
            longest_unembedding: Leave out tokens whose unembedding vector is longer. None: no token is left out.

        Returns:
            For each feature, the k tokens with the highest and the k with the lowest logits.
        """
        chosen = self._indices(features)
        return ask_lens(self._backend, self._source, chosen, k, side, fold_norm, longest_unembedding)

    def encode_text(self, text: Text) -> EncodedText:
        """Return every feature on every token of a text that is given now. Needs a service.

        Args:
            text: A text, which gets a BOS if the run's sequences have one, or token ids, such as those of a stored
                sequence, which are read as they are.

        Returns:
            The activations above 0.
        """
        found: EncodeTextAnswer = self._backend.ask(EncodeText(**self._source.read(text)))
        return EncodedText(table=found.activations, sae=self.sae, tokens=found.tokens, provenance=found.provenance)

    def check(self, n_tokens: int = CheckSae.tokens, *, warn: bool = True) -> SaeCheck:
        """Check whether the SAE is right for the run's model. Needs a service.

        `.warnings` lists what looks wrong, such as another site, scale or model.

        Args:
            n_tokens: About how many of the run's stored tokens to look at: whole sequences, spread over the run.
            warn: Also warn of what looks wrong, with a SaeWarning.

        Returns:
            Quantities, beside what the SAE's files claim.
        """
        told = _checks.switch(warn, "warn")
        question = CheckSae(**self._source.stored(), tokens=_checks.count(n_tokens, "n_tokens"))
        found: CheckSaeAnswer = self._backend.ask(question)
        if found.warnings and told:
            warnings.warn("\n  ".join([f"{self.sae}:", *found.warnings]), SaeWarning, stacklevel=2)
        return SaeCheck(table=found.quantities, sae=self.sae, warnings=found.warnings, provenance=found.provenance)

    def _stored(self, exclude: Excluded) -> dict[str, Any]:
        """The fields of a question about stored features."""
        return {**self._source.stored(), "exclude": exclusion(exclude)}

    def _indices(self, features: Iterable[int] | int) -> tuple[int, ...]:
        return _indices(features, self._source.d_sae)

    def _none_fires(self, fires: pa.Table, encoded: EncodedText, exclude: Excluded) -> FeatureTable:
        """The table if no feature fires: it is empty, and nothing is looked up in the run."""
        return FeatureTable(
            table=with_lift(fires, pa.table({"density": pa.array([], pa.float64())})),
            sae=self.sae,
            title="Fires on the text",
            definitions=glossary.ACTIVE,
            provenance=encoded.provenance,
            excluded=tuple(sorted(exclusion(exclude))),
        )

    def _densities(self, fires: pa.Table, exclude: Excluded) -> FindFeaturesAnswer:
        """Over the run, of the features of a table, in the order of their index."""
        features = tuple(fires["feature"].to_pylist())
        question = FindFeatures(**self._stored(exclude), features=features, k=len(features))
        found: FindFeaturesAnswer = self._backend.ask(question)
        return replace(found, features=found.features.sort_by("feature"))


def _bounds(given: Sequence[Bound]) -> Iterator[StatisticBound]:
    """The bounds of each statistic for which a pair is given, in the order of the contract."""
    for statistic, pair in zip(get_args(FeatureStatistic), given, strict=True):
        if pair is not None:
            low, high = _checks.bound(pair, statistic)
            yield StatisticBound(statistic, low, high)


def _indices(values: Any, d_sae: int) -> tuple[int, ...]:
    """Indices of features, at least one; a single number counts as one."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        values = (values,)
    maximum = d_sae - 1
    found = tuple(_checks.count(value, "features", maximum=maximum, reason="FEATURE_OUT_OF_RANGE") for value in values)
    if not found:
        raise refused("features names none", "features", "()", f"indices from 0 to {maximum}")
    return found
