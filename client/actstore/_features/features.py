"""All features of an SAE over a run: to search, to compare, to find by text, token or direction, and to check."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from actstore import _checks as _arguments
from actstore._errors import SaeWarning
from actstore._features.asking import Excluded, ask_examples, ask_lens, seed_of
from actstore._features.feature import Feature
from actstore._features.live import EncodedText, LogitLens, SaeCheck
from actstore._features.stored import FeatureTable, ManyExamples
from actstore._model_questions import TokeniseQuestion
from actstore._questions import (
    ACTIVE_ORDERS,
    DEFAULT_EXAMPLES,
    DEFAULT_TOKENS_AFTER,
    DEFAULT_TOKENS_BEFORE,
    METHODS,
    SIDES,
    STATISTICS,
    ActiveQuestion,
    CheckQuestion,
    EncodeQuestion,
    FindQuestion,
    Found,
    NeighboursQuestion,
    SaeOfRun,
    SampleQuestion,
    Where,
    chosen_tokens,
)
from actstore._view import glossary as _definitions

if TYPE_CHECKING:
    from actstore._transport.base import Backend

Bound = Sequence[float | None] | None
CHECKED_TOKENS = 8192


@dataclass(frozen=True)
class SaeFeatures:
    """`features[12]` is one of them. `exclude` and `where` as of Feature; tables have a row a feature."""

    source: SaeOfRun
    backend: "Backend" = field(repr=False)

    def __len__(self) -> int:
        """d_sae."""
        return self.source.d_sae

    def __getitem__(self, index: int) -> Feature:
        maximum = self.source.d_sae - 1
        index = _arguments.count(index, "feature", maximum=maximum, reason="FEATURE_OUT_OF_RANGE")
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
        order: str = "density",
        ascending: bool = False,
        k: int = 100,
        with_token_r2: bool = False,
        exclude: Excluded = None,
    ) -> FeatureTable:
        """Features whose statistics lie within bounds, pairs (low, high) of which either may be None; both included.

        The k first in `order` (a statistic), largest first unless `ascending`. Columns feature, active_tokens, density,
        maximum, mean_when_active, and token_r2 (as of Feature.token_r2) where a bound, the order or `with_token_r2`
        asks for it, since it costs a look at every activation.
        """
        given = (density, active_tokens, maximum, mean_when_active, token_r2)
        names = ("density", "active_tokens", "maximum", "mean_when_active", "token_r2")
        bounds = {
            name: _arguments.bound(pair, name) for name, pair in zip(names, given, strict=True) if pair is not None
        }
        question = FindQuestion(
            *self._stored(exclude),
            bounds=bounds,
            order=_arguments.chosen(order, "order", STATISTICS),
            ascending=_arguments.switch(ascending, "ascending"),
            k=_arguments.count(k, "k"),
            with_token_r2=_arguments.switch(with_token_r2, "with_token_r2"),
        )
        return self._table(self.backend.ask(question), "Found", _definitions.STATISTICS)

    def table(
        self,
        features: Iterable[int] | int | None = None,
        *,
        with_token_r2: bool = False,
        exclude: Excluded = None,
    ) -> FeatureTable:
        """Statistics of these features, or of all; columns as of `search`, densest first."""
        chosen = () if features is None else self._indices(features)
        question = FindQuestion(
            *self._stored(exclude),
            features=chosen,
            k=len(chosen) or len(self),
            with_token_r2=_arguments.switch(with_token_r2, "with_token_r2"),
        )
        return self._table(self.backend.ask(question), "Statistics", _definitions.STATISTICS)

    def active(
        self,
        where: Where | None = None,
        *,
        order: str = "mean",
        k: int = 20,
        exclude: Excluded = None,
    ) -> FeatureTable:
        """The features most active on chosen tokens of the run: of a sequence, a document, an id, or any mixture.

        Columns feature, active_tokens (of the chosen ones), mean (over all chosen ones, zeros included), maximum,
        density (over the run), lift (the share of chosen tokens on which it fires, over its density). `order` is one of
        mean, maximum, active_tokens, lift; the largest come first. Features that fire on none are left out.
        """
        question = ActiveQuestion(
            *self._stored(exclude),
            chosen_tokens(where),
            order=_arguments.chosen(order, "order", ACTIVE_ORDERS),
            k=_arguments.count(k, "k"),
        )
        return self._table(self.backend.ask(question), "Most active", _definitions.ACTIVE)

    def by_token(self, token: int | str, *, order: str = "lift", k: int = 20, exclude: Excluded = None) -> FeatureTable:
        """The features most active on a token, over all its occurrences in the run; columns as of `active`.

        `token` is an id, or the text of one token as answers show it: most words have a leading space. A text needs a
        service.
        """
        if isinstance(token, str):
            token = self._id_of(token)
        [chosen] = _arguments.whole_numbers([token], "token", 2**31 - 1)
        return self.active(Where(tokens=(chosen,)), order=order, k=k, exclude=exclude)

    def by_text(
        self,
        text: str | Sequence[int],
        k: int = 20,
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
        order = _arguments.chosen(order, "order", ACTIVE_ORDERS)
        low, high = _arguments.bound(density, "density")
        k = _arguments.count(k, "k")
        encoded = self.encode(text)
        fires = _fires_on(encoded)
        found = self._densities(fires, exclude)
        table = _with_lift(fires, found.table)
        kept = pa.array(
            [(low is None or low <= each) and (high is None or each <= high) for each in table["density"].to_pylist()]
        )
        table = table.filter(kept).sort_by([(order, "descending"), ("maximum", "descending"), ("feature", "ascending")])
        return self._table(
            Found(table=table.slice(0, k), provenance=found.provenance, excluded=found.excluded),
            "Fires on the text",
            _definitions.ACTIVE,
        )

    def by_direction(self, vector: Iterable[float], k: int = 20, *, side: str = "decoder") -> FeatureTable:
        """Features whose decoder (or encoder) directions have the largest cosine with a vector of d_model numbers.

        Columns feature, cosine; live.
        """
        question = NeighboursQuestion(
            **self.source.live(),
            vector=_arguments.vector(vector, "vector"),
            side=_arguments.chosen(side, "side", SIDES),
            k=_arguments.count(k, "k"),
        )
        found = self.backend.ask(question)
        return self._table(found, f"Nearest to the vector by {question.side} direction", _definitions.NEIGHBOURS)

    def sample(
        self,
        features: Iterable[int] | int,
        method: str = "top",
        k: int = DEFAULT_EXAMPLES,
        *,
        bins: int = 10,
        threshold: float = 0.0,
        seed: int = 0,
        tokens_before: int = DEFAULT_TOKENS_BEFORE,
        tokens_after: int = DEFAULT_TOKENS_AFTER,
        exclude: Excluded = None,
        where: Where | None = None,
    ) -> ManyExamples:
        """Examples of many features in one call. `method` is top, quantile, or what Feature.uniform is uniform over."""
        question = SampleQuestion(
            *self._stored(exclude),
            chosen_tokens(where),
            features=self._indices(features),
            method=_arguments.chosen(method, "method", METHODS),
            k=_arguments.count(k, "k"),
            bins=_arguments.count(bins, "bins"),
            threshold=_arguments.number(threshold, "threshold", least=0.0),
            seed=seed_of(seed),
            tokens_before=_arguments.count(tokens_before, "tokens_before"),
            tokens_after=_arguments.count(tokens_after, "tokens_after"),
        )
        return ask_examples(self.backend, question)

    def lens(
        self,
        features: Iterable[int] | int,
        k: int = 20,
        *,
        side: str = "decoder",
        fold_norm: bool = False,
        longest_unembedding: float | None = None,
    ) -> LogitLens:
        """The logit lens of many features in one call; as Feature.logit_lens."""
        chosen = self._indices(features)
        return ask_lens(self.backend, self.source, chosen, k, side, fold_norm, longest_unembedding)

    def encode(self, text: str | Sequence[int]) -> EncodedText:
        """Every feature on every token of a text given now; live.

        A text gets a BOS where the run's sequences have one; token ids, such as those of a stored sequence, are read as
        they are.
        """
        found = self.backend.ask(EncodeQuestion(**self.source.read(text)))
        return EncodedText(table=found.table, sae=self.source.sae, tokens=found.tokens, provenance=found.provenance)

    def check(self, tokens: int = CHECKED_TOKENS, *, warn: bool = True) -> SaeCheck:
        """Is this SAE right for this model? On so many stored tokens, whole sequences spread over the run; live.

        Quantities, beside what the SAE's files claim: tokens; l0, features above 0 on a token in the mean; fvu, the
        fraction of variance about the mean that the reconstruction leaves unexplained; dead_share, of features that
        fire on none of the tokens; loss, the model's mean cross-entropy in nats, loss_reconstructed with the SAE's
        reconstruction in place of the site and loss_zeroed with zeros; loss_recovered, (zeroed - reconstructed) /
        (zeroed - loss). What looks wrong (another site, scale or model) is in `.warnings`, and warned about once as a
        SaeWarning unless `warn` is False.
        """
        question = CheckQuestion(**self.source.live(), run=self.source.run, tokens=_arguments.count(tokens, "tokens"))
        found = self.backend.ask(question)
        if found.warnings and _arguments.switch(warn, "warn"):
            warnings.warn("\n  ".join([f"{self.source.sae}:", *found.warnings]), SaeWarning, stacklevel=2)
        return SaeCheck(table=found.table, sae=self.source.sae, warnings=found.warnings, provenance=found.provenance)

    def _stored(self, exclude: Excluded) -> tuple[str, str, frozenset[str]]:
        """The first fields of a FeatureQuestion."""
        return self.source.run, self.source.sae, _arguments.exclusion(exclude)

    def _indices(self, features: Iterable[int] | int) -> tuple[int, ...]:
        return _arguments.features(features, self.source.d_sae)

    def _table(self, found: Found, title: str, definitions: Mapping[str, str]) -> FeatureTable:
        return FeatureTable(
            table=found.table,
            sae=self.source.sae,
            title=title,
            definitions=definitions,
            provenance=found.provenance,
            excluded=found.excluded,
        )

    def _id_of(self, text: str) -> int:
        words = _arguments.words(text, "token")
        question = TokeniseQuestion(self.source.model, self.source.revision, text=words, one_token=True)
        return int(self.backend.ask(question).table["token"][0].as_py())

    def _densities(self, fires: pa.Table, exclude: Excluded) -> Found:
        """Over the run, of the features of a table, in the order of their index."""
        features = tuple(fires["feature"].to_pylist())
        # Of no feature at all the question would be about every one.
        question = FindQuestion(*self._stored(exclude), features=features or (0,), k=max(1, len(features)))
        found = self.backend.ask(question)
        return Found(
            table=found.table.slice(0, len(features)).sort_by("feature"),
            provenance=found.provenance,
            excluded=found.excluded,
        )


def _fires_on(encoded: EncodedText) -> pa.Table:
    """A row a feature, in order of index, over the tokens of a text that are neither BOS nor special."""
    tokens = encoded.tokens
    plain = ~np.asarray(tokens["special"].to_pylist(), bool)
    positions, texts = tokens["position"].to_numpy()[plain], np.array(tokens["text"].to_pylist(), object)[plain]
    position, feature = (encoded.table[name].to_numpy() for name in ("position", "feature"))
    here = np.isin(position, positions)
    position, feature, activation = position[here], feature[here], encoded.table["activation"].to_numpy()[here]
    order = np.lexsort((position, -activation, feature))
    found, first, active = np.unique(feature[order], return_index=True, return_counts=True)
    strongest = order[first]
    sums = np.bincount(np.searchsorted(found, feature), activation.astype(np.float64), len(found))
    return pa.table(
        {
            "feature": pa.array(found.astype(np.int32)),
            "active_tokens": pa.array(active.astype(np.int64)),
            "mean": pa.array(sums / max(1, len(positions))),
            "maximum": pa.array(activation[strongest]),
            "share": pa.array(active / max(1, len(positions))),
            "position": pa.array(position[strongest].astype(np.int32)),
            "text": pa.array(texts[np.searchsorted(positions, position[strongest])], pa.string()),
        }
    )


def _with_lift(fires: pa.Table, statistics: pa.Table) -> pa.Table:
    """`statistics` has the same features in the same order."""
    density = statistics["density"].to_numpy()
    share = fires["share"].to_numpy()
    lift = np.divide(share, density, out=np.full(len(share), np.nan), where=density > 0)
    table = fires.drop_columns(["share"])
    table = table.add_column(4, "density", pa.array(density))
    return table.add_column(5, "lift", pa.array(lift, from_pandas=True))
