"""Questions about the norms of stored activations, and how norms grow.

A question names one run, or several runs that are revisions of one model over the same tokens. `steps` are the runs'
training steps; empty: the numbers at the ends of the revisions' names. `exclude` names classes of tokens that are left
out, and `exclude_position_0` leaves out each sequence's first token, whatever its class.
"""

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from actstore_api.records.terms import DEFAULT_EXCLUSION, BlockWiring, Provenance, Range, TokenClass

# A quantity of each token's activation at a site. Runs captured by early versions have l2 only.
# - rms: the L2 norm divided by sqrt(d_model);
# - standard_deviation: the population standard deviation over d_model, which is centred_l2 divided by sqrt(d_model);
# - centred_l2: the L2 norm of the vector after subtracting its mean over d_model;
# - cosine_to_stream (attn_out and mlp_out): the cosine to the residual that they are added to, which is resid_pre, or
#   resid_mid for mlp_out in sequential blocks;
# - cosine_to_next (resid_pre): the cosine to the next layer's input;
# - share_of_stream (attn_out and mlp_out): the L2 norm divided by that of the residual that they are added to;
# - relative_increase (attn_out and mlp_out): the relative increase of that residual's L2 norm when only this is added.
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
# How tokens are grouped into the rows of a profile:
# - layer: one row per site;
# - site: one row per site kind, over its chosen layers together;
# - position, document: these read the norms of single tokens, at most 20 million;
# - token: one row per token of `sequences`, for one run, with at most 250,000 values (tokens times sites) in an answer.
#   `quantiles` is ignored, and there is no histogram;
# - checkpoint: one row per site and run, and columns with the run's revision and step, also for a single run.
NormGrouping = Literal["layer", "site", "token_class", "position", "document", "token", "checkpoint"]
# The axis along which growth is fitted: a step goes from layer to layer, or from checkpoint to checkpoint.
GrowthAxis = Literal["layer", "checkpoint"]
# How a norm grows (docs/explanation/norms.md has the exact criteria):
# - exponential: at a constant rate;
# - faster, slower: faster or slower than exponential, because the rate itself grows or falls;
# - irregular: it grows, but neither at a constant rate nor at one that only rises or only falls;
# - none: it does not grow, or so little that an exponential cannot be distinguished from other shapes.
GrowthVerdict = Literal["exponential", "faster", "slower", "irregular", "none"]
# Whether a norm is the product of a factor per layer and a factor per checkpoint:
# - separable: the product is typically off by less than 5 percent;
# - partly: it is off by more, but the interaction is less than a quarter of the sum of squares of the weaker axis;
# - inseparable: it is off by more, and the interaction is a quarter or more of it, so growth along one axis depends on
#   the position on the other.
SeparabilityVerdict = Literal["separable", "partly", "inseparable"]
DEFAULT_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class GetNormProfile:
    """Asks for statistics of norms in one run, or in several (at most 256), which are not pooled.

    - `sites`: kinds (resid_post) or single sites (resid_post.3). Empty: all sites whose norms the run has.
    - `by`: how tokens are grouped into rows.
    - `sequences`: required with `by` token, whose rows are the tokens of these sequences; refused otherwise.
    - `quantiles`: between 0 and 1. Empty: none are computed; an answer that then needs only the commits' statistics
      reads nothing else.
    - `bins` and `edges`: the histogram, with `by` layer only. It has `bins` (1 to 1000) of equal ratio between the
      site's minimum and maximum, or of equal width if one of these is not above 0; or it has the given ascending
      `edges`, and values beyond them are not counted.
    - `exact`: quantiles and histograms are computed from the stored norm of every token, at most 100 million per site,
      instead of from sketches. The time grows with the number of tokens.
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
    """Statistics of norms: one row per site, by site kind then layer, or one row per group of each site.

    Columns of `profile`:

    - revision, step: for several runs, and by checkpoint. Rows of the same site and group are then in order of step.
    - site (the kind), layer (not by site).
    - token_class, position or document, if rows are by it; by document also the document's source and row (see
      SampleExamplesAnswer).
    - tokens.
    - non_finite (by layer and site): tokens of every class, excluded ones too, whose L2 norm is infinite or NaN. All
      other columns leave out such values.
    - mean, standard_deviation (population, over tokens), geometric_mean (null for cosines and relative increase),
      minimum, maximum.
    - bound (for relative increase): the mean share of the stream. By the triangle inequality no increase exceeds it.
    - q<quantile> for each quantile (linear interpolation).
    - rank_error: how far the rank of a quantile may be off, 0 to 1, in 99 of 100 sketches. 0 if quantiles are exact:
      with `exact`, by position or document, without position 0, or if a shard has no sketches.

    By token, `profile` has one row per token that is not excluded, in order of (sequence, position): sequence,
    position, document, token (the id), text, token_class (text, bos, special, sink), and one column per site, under its
    short name, with the quantity as float32. It is infinite or NaN if the activation was.

    `histogram`: site, layer, low, high, count, rank_error (of the share of a bin). A bin includes its low edge; the
    last one includes both. None if no histogram was requested. `from_statistics`: everything comes from the commits'
    statistics, so neither sketches nor norms of single tokens were read. `warnings`: sentences about differences
    between runs other than training (how they were computed and, if sinks are left out, how sinks were defined), and
    about sketches that are missing from the bucket, so that stored norms were read instead. `provenance` is the first
    run's.
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
    """Asks for the rate at which norms grow over the layers of one run, or over training in at least three runs.

    - `site`: a site kind, or by checkpoint a single site. Empty: resid_post, by checkpoint in the last layer.
    - `layers`: None for every layer. Refused by checkpoint.
    - `quantity`: l2, rms, standard_deviation or centred_l2.
    - `resamples`: of the bootstrap over sequences, at most 10,000. 0: no confidence intervals.

    Without position 0, the norms of single tokens are read, at most 100 million.
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
    """A 95 percent confidence interval: the middle 95 percent of the resampled values."""

    low: float
    high: float


@dataclass(frozen=True)
class FitGrowthAnswer:
    """The fit of growth: a least-squares line through log(mean norm) over steps, which are layers or training steps.

    - `layers`: by checkpoint, the layer of the site. `block`: how the model's layers are connected; None: unknown.
    - `rate`: the factor by which the mean norm grows per step: exp(slope of the line).
    - `r_squared`: the fraction of the variance of log(mean norm) that the line explains; 1 if the norms do not vary.
    - `curvature`: the second-order coefficient of the least-squares parabola through log(mean norm), per squared step.
    - `bend`: the change of the parabola's slope from the first step to the last, divided by the line's slope; 0 if that
      is 0.
    - `rate_interval` and `curvature_interval`: None with fewer than two sequences, or without resamples.
    - `median_ratio`: the factor of the median step. Departures are measured from it.

    `points` has one row per step: layer (by checkpoint: revision, step), mean, fitted, and for the step that ends at
    the point (null for the first one):

    - ratio: the factor from the point before to this one, per unit step; ratio_low, ratio_high: its confidence
      interval; null without intervals.
    - departure_low, departure_high: the simultaneous confidence interval of ratio divided by median_ratio. If all steps
      have the same factor, then in 95 percent of samples every interval contains 1. Null without intervals.
    - departs: whether that interval excludes 1 and the difference is not small. It is small if the log ratio differs by
      less than a quarter of the median's, or the mean at the step's end by less than 0.5 percent. Without intervals,
      only the size of the difference decides.

    `shapes` has one row per fitted shape, best first: shape (exponential, square_root, linear, power_law: a (1 + r
    s)^p), parameters, exponent (p; null for an exponential), r_squared (of log(mean norm)), aic (Akaike's information
    criterion; smaller is better).

    `sequences` is how many were resampled; 0 without intervals. `warnings` are sentences about differences between runs
    other than training. `provenance` is the first run's.
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
    """Asks whether layer and training step affect the norm independently, in at least two runs.

    `site` is a kind whose norms all runs have. `layers` are at least two; None: every layer. `quantity` is l2, rms,
    standard_deviation or centred_l2. Without position 0, the norms of single tokens are read, at most 100 million.
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
    """A two-way analysis of variance of log(mean norm) without replication: mean + layer + checkpoint + residual.

    - `layer_share`, `checkpoint_share`, `interaction_share`: fractions of the sum of squares about the mean. They add
      up to 1; all are 0 if the norms do not vary.
    - `explained`: the fraction that the product of the two factors explains.
    - `rank_one`: the first squared singular value of the matrix of mean norms, divided by the sum of all.
    - `miss`: the factor by which the product is typically off: exp of the root mean square residual. The last three are
      1 for an exact product.
    - `cells`: one row per layer and checkpoint, in this order: layer, revision, step, mean, fitted (the product),
      factor (mean divided by fitted).

    `warnings` are sentences about differences between runs other than training. `provenance` is the first run's.
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
