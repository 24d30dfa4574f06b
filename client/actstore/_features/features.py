"""All features of an SAE over a run: to search, to compare, to find by text, token or direction, and to check."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import pyarrow as pa

from actstore import _checks
from actstore._errors import SaeWarning, refused
from actstore._features.asking import SaeOfRun, ask_examples, ask_lens, feature_table, window_of
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
class SaeFeatures:
    """`features[12]` is one of them. `exclude` and `where` as of Feature; tables have a row a feature."""

    source: SaeOfRun
    backend: Backend = field(repr=False)

    def __len__(self) -> int:
        """d_sae."""
        return self.source.d_sae

    def __getitem__(self, index: int) -> Feature:
        maximum = self.source.d_sae - 1
        index = _checks.count(index, "feature", maximum=maximum, reason="FEATURE_OUT_OF_RANGE")
        return Feature(self.source, index, self.backend)

    def __repr__(self) -> str:
        return (
            f"{len(self):,} features of {self.source.sae}, run {self.source.run}: .search(...), .by_text(text), "
            ".by_token(id), .by_direction(vector), .check()"
        )

    def search(
        self,
        *,
        density: Bound = None,
        active_tokens: Bound = None,
        maximum: Bound = None,
        mean_when_active: Bound = None,
        token_r2: Bound = None,
        order: str = FindFeatures.order,
        ascending: bool = FindFeatures.ascending,
        k: int = FindFeatures.k,
        with_token_r2: bool = FindFeatures.with_token_r2,
        exclude: Excluded = None,
    ) -> FeatureTable:
        """Features whose statistics lie within bounds, pairs (low, high) of which either may be None; both included.

        The k first in `order` (a statistic), largest first unless `ascending`. Columns feature, active_tokens, density,
        maximum, mean_when_active, and token_r2 (as of Feature.token_r2) where a bound, the order or `with_token_r2`
        asks for it, since it costs a look at every activation.
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
        return feature_table(self.backend.ask(question), self.source.sae, "Found", glossary.STATISTICS)

    def table(
        self,
        features: Iterable[int] | int | None = None,
        *,
        with_token_r2: bool = FindFeatures.with_token_r2,
        exclude: Excluded = None,
    ) -> FeatureTable:
        """Statistics of these features, or of all; columns as of `search`, densest first."""
        chosen = () if features is None else self._indices(features)
        question = FindFeatures(
            **self._stored(exclude),
            features=chosen,
            k=len(chosen) or len(self),
            with_token_r2=_checks.switch(with_token_r2, "with_token_r2"),
        )
        return feature_table(self.backend.ask(question), self.source.sae, "Statistics", glossary.STATISTICS)

    def active(
        self,
        where: Where | None = None,
        *,
        order: str = GetActiveFeatures.order,
        k: int = GetActiveFeatures.k,
        exclude: Excluded = None,
    ) -> FeatureTable:
        """The features most active on chosen tokens of the run: of a sequence, a document, an id, or any mixture.

        Columns feature, active_tokens (of the chosen ones), mean (over all chosen ones, zeros included), maximum,
        density (over the run), lift (the share of chosen tokens on which it fires, over its density). `order` is one of
        mean, maximum, active_tokens, lift; the largest come first. Features that fire on none are left out.
        """
        question = GetActiveFeatures(
            **self._stored(exclude),
            where=chosen_tokens(where),
            order=_checks.one_of(order, "order", get_args(ActiveFeatureOrder)),
            k=_checks.count(k, "k"),
        )
        return feature_table(self.backend.ask(question), self.source.sae, "Most active", glossary.ACTIVE)

    def by_token(
        self, token: int | str, *, order: str = "lift", k: int = GetActiveFeatures.k, exclude: Excluded = None
    ) -> FeatureTable:
        """The features most active on a token, over all its occurrences in the run; columns as of `active`.

        `token` is an id, or the text of one token as answers show it: most words have a leading space. A text needs a
        service.
        """
        if isinstance(token, str):
            token = id_of(self.backend, self.source.model, token)
        [chosen] = _checks.whole_numbers([token], "token", _checks.MAXIMUM_TOKEN)
        return self.active(Where(tokens=(chosen,)), order=order, k=k, exclude=exclude)

    def by_text(
        self,
        text: str | Sequence[int],
        k: int = GetActiveFeatures.k,
        *,
        order: str = "lift",
        density: Bound = None,
        exclude: Excluded = None,
    ) -> FeatureTable:
        """The features that fire on a text given now, most first relative to how often they fire in the run; live.

        Columns as of `active`, over the text's tokens without BOS and special ones, and `position` and `text` of the
        token on which the feature is strongest. `density` is a pair of bounds: (None, 0.01) leaves out what fires on
        more than a hundredth of the run. A feature that never fires in the run has no lift and comes last.
        """
        order = _checks.one_of(order, "order", get_args(ActiveFeatureOrder))
        low, high = _checks.bound(density, "density")
        k = _checks.count(k, "k")
        encoded = self.encode(text)
        fires = fires_on(encoded)
        found = self._densities(fires, exclude)
        table = with_lift(fires, found.features)
        kept = pa.array(
            [(low is None or low <= each) and (high is None or each <= high) for each in table["density"].to_pylist()]
        )
        table = table.filter(kept).sort_by([(order, "descending"), ("maximum", "descending"), ("feature", "ascending")])
        found = replace(found, features=table.slice(0, k))
        return feature_table(found, self.source.sae, "Fires on the text", glossary.ACTIVE)

    def by_direction(
        self, vector: Iterable[float], k: int = FindNeighbors.k, *, side: str = FindNeighbors.side
    ) -> FeatureTable:
        """Features whose decoder (or encoder) directions have the largest cosine with a vector of d_model numbers.

        Columns feature, cosine; live.
        """
        question = FindNeighbors(
            sae=self.source.sae,
            direction=_checks.vector(vector, "vector"),
            side=_checks.one_of(side, "side", get_args(FeatureSide)),
            k=_checks.count(k, "k"),
        )
        title = f"Nearest to the vector by {question.side} direction"
        return feature_table(self.backend.ask(question), self.source.sae, title, glossary.NEIGHBOURS)

    def sample(
        self,
        features: Iterable[int] | int,
        method: str = SampleExamples.method,
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
        """Examples of many features in one call. `method` is top, quantile, or what Feature.uniform is uniform over."""
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
        return ask_examples(self.backend, question)

    def lens(
        self,
        features: Iterable[int] | int,
        k: int = GetLogitLens.k,
        *,
        side: str = GetLogitLens.side,
        fold_norm: bool = GetLogitLens.fold_norm,
        longest_unembedding: float | None = GetLogitLens.longest_unembedding,
    ) -> LogitLens:
        """The logit lens of many features in one call; as Feature.logit_lens."""
        chosen = self._indices(features)
        return ask_lens(self.backend, self.source, chosen, k, side, fold_norm, longest_unembedding)

    def encode(self, text: str | Sequence[int]) -> EncodedText:
        """Every feature on every token of a text given now; live.

        A text gets a BOS where the run's sequences have one; token ids, such as those of a stored sequence, are read as
        they are.
        """
        found: EncodeTextAnswer = self.backend.ask(EncodeText(**self.source.read(text)))
        return EncodedText(
            table=found.activations, sae=self.source.sae, tokens=found.tokens, provenance=found.provenance
        )

    def check(self, tokens: int = CheckSae.tokens, *, warn: bool = True) -> SaeCheck:
        """Is this SAE right for this model? On so many stored tokens, whole sequences spread over the run; live.

        Quantities, beside what the SAE's files claim: tokens; l0, features above 0 on a token in the mean; fvu, the
        fraction of variance about the mean that the reconstruction leaves unexplained; dead_share, of features that
        fire on none of the tokens; loss, the model's mean cross-entropy in nats, loss_reconstructed with the SAE's
        reconstruction in place of the site and loss_zeroed with zeros; loss_recovered, (zeroed - reconstructed) /
        (zeroed - loss). What looks wrong (another site, scale or model) is in `.warnings`, and warned about once as a
        SaeWarning unless `warn` is False.
        """
        question = CheckSae(**self.source.stored(), tokens=_checks.count(tokens, "tokens"))
        found: CheckSaeAnswer = self.backend.ask(question)
        if found.warnings and _checks.switch(warn, "warn"):
            warnings.warn("\n  ".join([f"{self.source.sae}:", *found.warnings]), SaeWarning, stacklevel=2)
        return SaeCheck(
            table=found.quantities, sae=self.source.sae, warnings=found.warnings, provenance=found.provenance
        )

    def _stored(self, exclude: Excluded) -> dict[str, Any]:
        """The fields of a question about stored features."""
        return {**self.source.stored(), "exclude": exclusion(exclude)}

    def _indices(self, features: Iterable[int] | int) -> tuple[int, ...]:
        return _indices(features, self.source.d_sae)

    def _densities(self, fires: pa.Table, exclude: Excluded) -> FindFeaturesAnswer:
        """Over the run, of the features of a table, in the order of their index."""
        features = tuple(fires["feature"].to_pylist())
        # Of no feature at all the question would be about every one.
        question = FindFeatures(**self._stored(exclude), features=features or (0,), k=max(1, len(features)))
        found: FindFeaturesAnswer = self.backend.ask(question)
        return replace(found, features=found.features.slice(0, len(features)).sort_by("feature"))


def _bounds(given: Sequence[Bound]) -> Iterator[StatisticBound]:
    """Of each statistic, in the order of the contract, for which a pair is given."""
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
