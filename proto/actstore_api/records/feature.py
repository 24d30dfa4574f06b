"""Questions about SAE features that a run stores.

`feature` is an index from 0 to d_sae - 1. `exclude` names classes of tokens that are left out. `where` selects tokens;
None: every token.
"""

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from actstore_api.records.activation import TokenSelection
from actstore_api.records.terms import DEFAULT_EXCLUSION, Provenance, TokenClass

# How examples are chosen among a feature's activations above 0, on tokens that are not excluded:
# - top: the k strongest, at most one from a sequence;
# - range: one activation from each of k bins of equal width between 0 and the maximum, if the bin has any; strongest
#   bin first;
# - rank: the activations at k evenly spaced ranks, from the strongest to the weakest;
# - quantile: k activations, drawn without replacement, from each of `bins` quantile bins, strongest first;
# - activating: k activations, drawn without replacement among those above `threshold`, strongest first;
# - positions: k tokens drawn among all that are not excluded, in order of (sequence, position). The feature is 0 on
#   most of them.
SampleMethod = Literal["top", "range", "rank", "quantile", "activating", "positions"]
# Statistics over the tokens that are not excluded. density: the fraction on which the feature is above 0. token_r2: the
# fraction of the feature's variance that the current token id explains; feature.proto (FeatureStatistic) has the
# formula.
FeatureStatistic = Literal["density", "active_tokens", "maximum", "mean_when_active", "token_r2"]
# mean and maximum are over all chosen tokens, including those where the feature is 0. lift: the fraction of chosen
# tokens on which the feature fires, divided by its density in the run.
ActiveFeatureOrder = Literal["mean", "maximum", "active_tokens", "lift"]


@dataclass(frozen=True)
class GetFeatureStatistics:
    """Asks how often a feature fires, and how strongly. The histogram has `bins` of equal width between 0 and the
    maximum.
    """

    run: str
    sae: str
    feature: int
    bins: int = 40
    exclude: frozenset[TokenClass] = DEFAULT_EXCLUSION


@dataclass(frozen=True)
class GetFeatureStatisticsAnswer:
    """How often a feature fires, and how strongly.

    - `tokens`: tokens that are not excluded. `active_tokens`: those on which the feature is above 0.
    - `density`: active_tokens / tokens; 0 for an empty snapshot.
    - `maximum` and `mean_when_active`: over active tokens; 0 if there are none.
    - `histogram`: low, high, count. A bin holds low < activation <= high. No rows for a feature that never fires.
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
    """Asks for examples of 1 to 256 features in their context, in the order of `features`.

    - `k`: the largest number of examples for each feature; with the method quantile, from each of `bins`.
    - `threshold`: with the method activating only.
    - `seed`: the same seed and snapshot give the same examples.
    - `tokens_before`, `tokens_after`: how many context tokens are shown around an example. Excluded tokens still appear
      as context.
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
    """Examples of features, one row each. With the method top, the strongest come first, ties by sequence, then
    position.

    Columns:

    - feature, rank (from 1 for each feature), activation, sequence, position, document.
    - source, row: the document's file in the dataset and its row there, or the value of the source column, and then no
      row. Null if the run does not know them.
    - first_position: where the context window begins.
    - tokens (list of ids), texts (list of strings), activations (list of float32): the tokens of the window, and the
      feature's activation on each.
    """

    examples: pa.Table
    excluded: frozenset[TokenClass]
    provenance: Provenance


@dataclass(frozen=True)
class ReadFeature:
    """Asks for every activation of a feature above a threshold, which must be at least 0."""

    run: str
    sae: str
    feature: int
    threshold: float = 0.0
    exclude: frozenset[TokenClass] = DEFAULT_EXCLUSION
    where: TokenSelection | None = None


@dataclass(frozen=True)
class ReadFeatureAnswer:
    """Some of a feature's activations, strongest first: activation, sequence, position, document, token, flags.

    Only the first message of the stream has a `provenance`.
    """

    rows: pa.Table
    provenance: Provenance | None = None


@dataclass(frozen=True)
class StatisticBound:
    """Keeps features whose statistic is from `low` to `high`, both included. None: no bound."""

    statistic: FeatureStatistic
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class FindFeatures:
    """Asks for at most `k` features that are within all bounds, in descending (or ascending) order of a statistic.

    `features` empty: all features of the SAE. The answer has token_r2 if a bound, the order or `with_token_r2` asks for
    it; computing it reads every activation.
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
    """Features by their statistics: feature, active_tokens, density, maximum, mean_when_active and, if requested,
    token_r2.
    """

    features: pa.Table
    excluded: frozenset[TokenClass]
    provenance: Provenance


@dataclass(frozen=True)
class GetActiveFeatures:
    """Asks for at most `k` features that fire on chosen tokens, in descending order."""

    run: str
    sae: str
    order: ActiveFeatureOrder = "mean"
    k: int = 20
    exclude: frozenset[TokenClass] = DEFAULT_EXCLUSION
    where: TokenSelection | None = None


@dataclass(frozen=True)
class GetActiveFeaturesAnswer:
    """Features that fire on chosen tokens.

    Columns: feature, active_tokens, mean and maximum (over all chosen tokens, including those where it is 0), density
    (over the whole run), lift.
    """

    features: pa.Table
    excluded: frozenset[TokenClass]
    provenance: Provenance


@dataclass(frozen=True)
class GetCofiringFeatures:
    """Asks for at most `k` other features that fire together with this one, on at least `least_tokens` tokens."""

    run: str
    sae: str
    feature: int
    k: int = 20
    least_tokens: int = 5
    exclude: frozenset[TokenClass] = DEFAULT_EXCLUSION


@dataclass(frozen=True)
class GetCofiringFeaturesAnswer:
    """Features that fire on the same tokens as a given one, in descending order of lift.

    Columns: feature, both_tokens, share (P(other | this)), density (P(other)), lift (share / density).
    """

    features: pa.Table
    excluded: frozenset[TokenClass]
    provenance: Provenance
