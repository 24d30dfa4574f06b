"""How large stored activations are, and how they grow.

A question is of runs: of one, or of several that are revisions of one model over the same tokens. `steps` say where
each run stands in training; empty: the numbers at the ends of the revisions' names. `exclude` names classes of tokens
that do not count, and `exclude_position_0` leaves out each sequence's first token, of whatever class.
"""

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from actstore_api.records.terms import DEFAULT_EXCLUSION, BlockWiring, Provenance, Range, TokenClass

# What is told of each token's activation at a site; a run need not have stored more than l2:
# - rms: L2 over sqrt(d_model);
# - standard_deviation: over d_model, of the population: centered L2 over sqrt(d_model);
# - centred_l2: L2 norm of the vector less its mean over d_model;
# - cosine_to_stream, of attn_out and mlp_out: to the residual that they are added to: resid_pre, of mlp_out in
#   sequential blocks resid_mid;
# - cosine_to_next, of resid_pre: to what the next layer reads;
# - share_of_stream, of attn_out and mlp_out: L2 norm over that of the residual that they are added to;
# - relative_increase, of the same: what adding them alone adds to that residual's L2 norm, over that norm.
NormQuantity = Literal[
    "l2",
    "rms",
    "standard_deviation",
    "centred_l2",
    "cosine_to_stream",
    "cosine_to_next",
    "share_of_stream",
    "relative_increase",
]
# What a row of a profile is of:
# - layer: a site;
# - site: a site kind, the chosen ones of its layers together;
# - position, document: read norms of single tokens, of at most 20 million;
# - token: single tokens of `sequences`, of at most 250,000 values (tokens times sites) in one answer; of one run, and
#   without histogram or quantiles, whatever is asked;
# - checkpoint: a site in one run, with the run's place in training beside it, of a single run as well.
NormGrouping = Literal["layer", "site", "token_class", "position", "document", "token", "checkpoint"]
# What a step of growth is.
GrowthAxis = Literal["layer", "checkpoint"]
# How a norm grows. faster, slower: than any exponential, the rate itself grows or falls; irregular: it grows, but
# neither at one rate nor at one that only rises or only falls; none: it does not grow, or these steps do not tell an
# exponential from less.
GrowthVerdict = Literal["exponential", "faster", "slower", "irregular", "none"]
# Whether a norm is a factor of the layer times one of the checkpoint. separable: that is typically off by less than 5
# percent; partly: by more, and leaves less than a quarter of the squares that the lesser axis explains; inseparable: by
# more, and leaves a quarter or more: growth along one axis depends on the place on the other.
SeparabilityVerdict = Literal["separable", "partly", "inseparable"]
DEFAULT_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class GetNormProfile:
    """Asks how large norms are: by layer, or what else rows are `by`. Of several runs, at most 256, each by itself.

    `sites` are kinds (resid_post) or single ones (resid_post.3); empty: all that the run has norms of. `sequences`, by
    token and only then, are those whose tokens are rows. Without any `quantiles`, between 0 and 1, what the commits'
    statistics tell reads nothing else. A histogram, by layer only, has `bins` (1 to 1000) of equal ratio between the
    site's least and largest value, of equal width where one is not above 0; or the ascending `edges` in their place,
    beyond which values are in none. `exact`: quantiles and histograms are of the stored norms of tokens, at most 100
    million a site, whatever sketches there are, in a time that grows with their number.
    """

    runs: tuple[str, ...]
    steps: tuple[float, ...] = ()
    sites: tuple[str, ...] = ()
    quantity: NormQuantity = "l2"
    by: NormGrouping = "layer"
    sequences: Range | None = None
    exclude: frozenset[TokenClass] = DEFAULT_EXCLUSION
    exclude_position_0: bool = False
    quantiles: tuple[float, ...] = DEFAULT_QUANTILES
    bins: int = 0
    edges: tuple[float, ...] = ()
    exact: bool = False


@dataclass(frozen=True)
class GetNormProfileAnswer:
    """How large norms are, a row a site, by site kind then layer, or a row for each of its groups.

    Columns of `profile`: site (kind), layer (not by site), token_class, position or document where rows are by it (with
    a document its source and row, as of SampleExamplesAnswer), tokens, non_finite (by layer and site), mean,
    standard_deviation (over tokens, population), geometric_mean (null for cosines and relative increase), minimum,
    maximum, bound (of relative increase: the mean share of the stream, which no increase exceeds, by the triangle
    inequality), q<quantile> for each quantile (linear interpolation), and with these rank_error: by how much the rank
    of a quantile may be off, 0 to 1, in 99 of 100 sketches; 0 where quantiles are exact, of the stored norms: where
    `exact` asks for it, by position and document, without position 0, and where a shard has no sketches. non_finite
    counts tokens of every class, excluded or not, whose L2 norm is infinite or no number; the other columns leave out
    values that are. Of several runs, and by checkpoint, revision and step come before these columns, and rows of a
    place are by step.

    By token, a row a token that counts, in order of (sequence, position): sequence, position, document, token (its id),
    text (its own), token_class (text, bos, special, sink), and under each site's short name the quantity: float32;
    infinite, or no number, where the activation was.

    `histogram`: site, layer, low, high, count, rank_error (as above, of the share of a bin); a bin holds its low end,
    the last one both; None where none was asked for. `from_statistics`: all of this comes from the commits' statistics;
    neither sketches nor any token's own norm was read. `warnings` are sentences on what the numbers of several runs
    differ by beside training: how they were computed and, of sinks that are left out, how these were told; and, of one
    run as well, on sketches that are gone from the bucket, so that quantiles and histograms had to be of the stored
    norms. `provenance` is of the first run.
    """

    profile: pa.Table
    histogram: pa.Table | None
    from_statistics: bool
    excluded: frozenset[TokenClass]
    excluded_position_0: bool
    warnings: tuple[str, ...]
    provenance: Provenance


@dataclass(frozen=True)
class FitGrowth:
    """Asks for the rate at which norms grow with the layer, in one run, or with training, in three at least.

    `site` is a kind, or with the checkpoint axis a single one; empty: resid_post, of the last layer. `layers` None:
    every layer; there are none with the checkpoint axis. `quantity` is l2, rms, standard_deviation or centred_l2. Of
    the bootstrap over sequences there are at most 10,000 `resamples`; 0: no intervals. Without position 0, norms of at
    most 100 million tokens are read.
    """

    runs: tuple[str, ...]
    steps: tuple[float, ...] = ()
    axis: GrowthAxis = "layer"
    site: str = ""
    layers: Range | None = None
    quantity: NormQuantity = "l2"
    exclude: frozenset[TokenClass] = DEFAULT_EXCLUSION
    exclude_position_0: bool = False
    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True)
class Interval:
    """The middle 95 percent of what the resamples give."""

    low: float
    high: float


@dataclass(frozen=True)
class FitGrowthAnswer:
    """How norms grow: a least-squares line through log(mean norm) over the step, the layer or that of training.

    `layers`: with the checkpoint axis, the site's own. `block` is how the model's layers are wired; None: not known.
    `rate` is the factor by which the mean norm grows in a step: exp(slope of the line). `r_squared` is the share of the
    variance of log(mean norm) that the line explains; 1 where the norms do not vary. `curvature` is the second-order
    coefficient of the least-squares parabola through it, per squared step; `bend` the change of the parabola's slope
    from the first step to the last, over the line's slope, 0 where that is 0. The intervals of rate and curvature are
    None with fewer than two sequences, or without resamples. `median_ratio` is the factor of the median step, from
    which steps depart.

    `points`: layer (with the checkpoint axis revision and step), mean, fitted, and of the step that ends at the point
    (null for the first one): ratio (the factor of one step since the point before); ratio_low, ratio_high (its
    interval; null without one); departure_low, departure_high (the interval of ratio over median_ratio, for all steps
    at once: where all steps have one factor, 95 percent of samples have no step whose interval leaves out 1; null
    without intervals); departs (whether that interval leaves out 1 and the difference is not small: it is where the log
    ratio is off by less than a quarter of the median's, or the mean at the step's end by less than 0.5 percent; without
    intervals, the difference alone decides).

    `shapes`, a row a shape, best first: shape (exponential, square_root, linear, power_law: a (1 + r s)^p), parameters,
    exponent (p; null for an exponential), r_squared (of log(mean norm)), aic (Akaike's criterion; less is better).

    `sequences` were resampled; 0 without intervals. `warnings` are sentences on what the numbers of several runs differ
    by beside training. `provenance` is of the first run.
    """

    axis: GrowthAxis
    site: str
    layers: Range
    quantity: NormQuantity
    block: BlockWiring | None
    verdict: GrowthVerdict
    rate: float
    rate_interval: Interval | None
    r_squared: float
    curvature: float
    curvature_interval: Interval | None
    bend: float
    median_ratio: float
    points: pa.Table
    shapes: pa.Table
    resamples: int
    seed: int
    sequences: int
    excluded: frozenset[TokenClass]
    excluded_position_0: bool
    warnings: tuple[str, ...]
    provenance: Provenance


@dataclass(frozen=True)
class GetSeparability:
    """Asks whether layer and step of training change the norm apart from each other, in two runs at least.

    `site` is a kind that all runs have norms of. `layers` are two at least; None: every layer. `quantity` is l2, rms,
    standard_deviation or centred_l2. Without position 0, norms of at most 100 million tokens are read.
    """

    runs: tuple[str, ...]
    steps: tuple[float, ...] = ()
    site: str = "resid_post"
    layers: Range | None = None
    quantity: NormQuantity = "l2"
    exclude: frozenset[TokenClass] = DEFAULT_EXCLUSION
    exclude_position_0: bool = False


@dataclass(frozen=True)
class GetSeparabilityAnswer:
    """A two-way analysis of variance of log(mean norm), without repeats: mean + layer + checkpoint + what is left.

    The shares of layer, checkpoint and interaction are of the squares about the mean and add up to 1; all are 0 where
    the norms do not vary. `explained` is the share that the product of the two factors explains, `rank_one` that of the
    first singular value in the sum of squared singular values of the mean norms, `miss` the factor by which the product
    is typically off, exp of the root mean square of what is left; these three are 1 for a product. `cells`, a row a
    layer and checkpoint, in this order: layer, revision, step, mean, fitted (the product), factor (mean over fitted).
    `warnings` are sentences on what the numbers of the runs differ by beside training. `provenance` is of the first.
    """

    site: str
    layers: Range
    quantity: NormQuantity
    layer_share: float
    checkpoint_share: float
    interaction_share: float
    explained: float
    rank_one: float
    miss: float
    verdict: SeparabilityVerdict
    cells: pa.Table
    excluded: frozenset[TokenClass]
    excluded_position_0: bool
    warnings: tuple[str, ...]
    provenance: Provenance
