"""What makes a feature fire, and how often. `feature` is an index from 0 to d_sae - 1 of an SAE whose features a run
stores; `exclude` names classes of tokens that do not count, and `where` None is every token.
"""

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from actstore_api.records.activation import TokenSelection
from actstore_api.records.terms import DEFAULT_EXCLUSION, Provenance, TokenClass

# How examples are chosen among the activations above 0 of the tokens that count:
# - top: the k strongest, at most one from a sequence;
# - range: k bins of equal width between 0 and the maximum; one at random from each that holds any, strongest bin first;
# - rank: those at k evenly spaced ranks, from the strongest to the weakest;
# - quantile: `bins` stretches of ranks of equal length, strongest first; from each, k at random without repeats;
# - activating: k at random without repeats among those above `threshold`, in order of strength;
# - positions: k tokens at random among all that count, in order of (sequence, position); it is 0 on most of them.
SampleMethod = Literal["top", "range", "rank", "quantile", "activating", "positions"]
# Over the tokens that count. density: the share of them on which the feature is above 0; token_r2: the share of the
# feature's variance over tokens that the token alone explains, corrected for the number of tokens: 1 - (1 - r2) (N - 1)
# / (N - K).
FeatureStatistic = Literal["density", "active_tokens", "maximum", "mean_when_active", "token_r2"]
# mean and maximum are over all of the chosen tokens; lift: the share of chosen tokens on which the feature fires, over
# its density in the run.
ActiveFeatureOrder = Literal["mean", "maximum", "active_tokens", "lift"]


@dataclass(frozen=True)
class GetFeatureStatistics:
    """Asks how often a feature fires, and how strongly; `bins` of equal width lie between 0 and the maximum."""

    run: str
    sae: str
    feature: int
    bins: int = 40
    exclude: frozenset[TokenClass] = DEFAULT_EXCLUSION


@dataclass(frozen=True)
class GetFeatureStatisticsAnswer:
    """How often a feature fires, and how strongly.

    Of `tokens` that count it is above 0 on `active_tokens`; `density` is their ratio, 0 for an empty snapshot.
    `maximum` and `mean_when_active` are over active tokens, 0 where there is none. `histogram`: low, high, count; a bin
    holds low < activation <= high; no rows for a feature that never fires.
    """

    tokens: int
    active_tokens: int
    density: float
    maximum: float
    mean_when_active: float
    histogram: pa.Table
    excluded: frozenset[TokenClass]
    provenance: Provenance


@dataclass(frozen=True)
class SampleExamples:
    """Asks for examples of one to 256 features in their context, in the order of `features`.

    `k` examples of a feature at most, of quantile from each of `bins`; `threshold` is of activating. The same `seed`
    and snapshot give the same examples. `tokens_before` and `tokens_after` the example's own are shown, whether they
    count or not.
    """

    run: str
    sae: str
    features: tuple[int, ...]
    method: SampleMethod = "top"
    k: int = 20
    bins: int = 10
    threshold: float = 0.0
    seed: int = 0
    tokens_before: int = 12
    tokens_after: int = 6
    exclude: frozenset[TokenClass] = DEFAULT_EXCLUSION
    where: TokenSelection | None = None


@dataclass(frozen=True)
class SampleExamplesAnswer:
    """Examples of features, a row each; of top strongest first, ties by sequence, then position.

    Columns: feature, rank (from 1 for each feature), activation, sequence, position, document, source and row (of the
    dataset: the document's file and its row there, or what its source column says; null where the run does not know,
    and row where the source is all there is), first_position (of the window), tokens (list of ids), texts (list of
    strings), activations (list of float32: the feature on each token of the window).
    """

    examples: pa.Table
    excluded: frozenset[TokenClass]
    provenance: Provenance


@dataclass(frozen=True)
class ReadFeature:
    """Asks for every activation of a feature above a threshold, which is 0 at least."""

    run: str
    sae: str
    feature: int
    threshold: float = 0.0
    exclude: frozenset[TokenClass] = DEFAULT_EXCLUSION
    where: TokenSelection | None = None


@dataclass(frozen=True)
class ReadFeatureAnswer:
    """Some of the activations of a feature, strongest first: activation, sequence, position, document, token, flags.

    `provenance` comes with the first only.
    """

    rows: pa.Table
    provenance: Provenance | None = None


@dataclass(frozen=True)
class StatisticBound:
    """Keeps features whose statistic is from `low` to `high`, both included; None is no bound."""

    statistic: FeatureStatistic
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class FindFeatures:
    """Asks for the `k` features at most that are within all bounds, largest (or smallest) by `order` first.

    `features` empty: all of the SAE's. token_r2 costs a look at every activation; it comes where a bound or the order
    asks for it, or `with_token_r2` does.
    """

    run: str
    sae: str
    features: tuple[int, ...] = ()
    bounds: tuple[StatisticBound, ...] = ()
    order: FeatureStatistic = "density"
    ascending: bool = False
    k: int = 100
    with_token_r2: bool = False
    exclude: frozenset[TokenClass] = DEFAULT_EXCLUSION


@dataclass(frozen=True)
class FindFeaturesAnswer:
    """Features by their statistics: feature, active_tokens, density, maximum, mean_when_active, and token_r2 where it
    was asked for.
    """

    features: pa.Table
    excluded: frozenset[TokenClass]
    provenance: Provenance


@dataclass(frozen=True)
class GetActiveFeatures:
    """Asks for the `k` features at most that fire on chosen tokens, largest by `order` first."""

    run: str
    sae: str
    order: ActiveFeatureOrder = "mean"
    k: int = 20
    exclude: frozenset[TokenClass] = DEFAULT_EXCLUSION
    where: TokenSelection | None = None


@dataclass(frozen=True)
class GetActiveFeaturesAnswer:
    """Features that fire on chosen tokens: feature, active_tokens, mean and maximum over all of them, density (over the
    run), lift: the share of chosen tokens on which the feature fires, over its density.
    """

    features: pa.Table
    excluded: frozenset[TokenClass]
    provenance: Provenance


@dataclass(frozen=True)
class GetCofiringFeatures:
    """Asks for the `k` other features at most that fire where this one does, on `least_tokens` tokens or more."""

    run: str
    sae: str
    feature: int
    k: int = 20
    least_tokens: int = 5
    exclude: frozenset[TokenClass] = DEFAULT_EXCLUSION


@dataclass(frozen=True)
class GetCofiringFeaturesAnswer:
    """Features that fire where another one does, by lift: feature, both_tokens, share (P(other | this)), density
    (P(other)), lift (share / density).
    """

    features: pa.Table
    excluded: frozenset[TokenClass]
    provenance: Provenance
