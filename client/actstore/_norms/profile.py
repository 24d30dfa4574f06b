"""Norms of the residual stream: their spread at each layer, and the rate at which they grow."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from actstore import _checks as _arguments
from actstore._answer import Answer, plain_rows
from actstore._errors import refused
from actstore._norms import heat_maps, line_plots
from actstore._view.plot import titled

if TYPE_CHECKING:
    from matplotlib.axes import Axes


VERDICTS = {
    "exponential": "exponential",
    "faster": "faster than exponential",
    "slower": "slower than exponential",
    "irregular": "irregular, not at one rate, nor at one that only rises or only falls",
    "none": "no verdict",
    "unspecified": "not judged by this service",
}
BLOCKS = {"pre_ln": "pre-LN", "post_ln": "post-LN", "parallel": "parallel"}
AXES = ("layer", "checkpoint")
UNITS = {"layer": "a layer", "checkpoint": "a step of training"}
DEFAULT_RESAMPLES = 1000
RATIOS = ("ratio", "ratio_low", "ratio_high", "departure_low", "departure_high")
# Of provenance; as the store has it where it compares runs.
COMPUTED_WITH = ("dtype", "attention_implementation", "device")
FITTED_LAYERS_MIN = 3  # what a fit needs
# In a sentence; `departures` has them all.
DEPARTURES_TOLD = 12


QUANTITIES = (
    "l2",
    "rms",
    "standard_deviation",
    "centred_l2",
    "cosine_to_stream",
    "cosine_to_next",
    "share_of_stream",
    "relative_increase",
)
# Of which growth is told.
SIZES = ("l2", "rms", "standard_deviation", "centred_l2")
TITLES = {"l2": "L2 norms", "rms": "RMS", "centred_l2": "centred L2 norms"}
GROUPINGS = ("layer", "site", "token_class", "position", "document", "token", "checkpoint")
TOKEN = "token"  # noqa: S105  a token of text
POSITION_0 = "position_0"


@dataclass(frozen=True)
class ProfileQuestion:
    """`quantiles` None is the answerer's default, and () is none; a histogram is asked for by `bins` or by `edges`.

    With `more_runs`, of other revisions, rows are of each run by itself; `steps` () are the numbers at the ends of the
    revisions' names. `exact`: quantiles and histograms are not of sketches. `sequences`, by token and only
    then: the first, and how many (None: all that follow).
    """

    run: str
    sites: tuple[str, ...] = ()
    exclude: frozenset[str] = _arguments.DEFAULT_EXCLUSION
    exclude_position_0: bool = False
    quantiles: tuple[float, ...] | None = None
    quantity: str = "l2"
    by: str = "layer"
    bins: int = 0
    edges: tuple[float, ...] = ()
    more_runs: tuple[str, ...] = ()
    steps: tuple[float, ...] = ()
    exact: bool = False
    sequences: tuple[int, int | None] | None = None

    def over(self, more_runs: tuple[str, ...], steps: tuple[float, ...]) -> "ProfileQuestion":
        return replace(self, more_runs=more_runs, steps=steps)


@dataclass(frozen=True)
class GrowthQuestion:
    """Of one run's layers, or of one site in several runs. Over checkpoints, `site` "" is the answerer's default."""

    runs: tuple[str, ...]
    exclude: frozenset[str]
    axis: str = "layer"
    site: str = "resid_post"
    layers: tuple[int, int] | None = None
    steps: tuple[float, ...] = ()
    resamples: int = DEFAULT_RESAMPLES
    seed: int = 0
    quantity: str = "l2"
    exclude_position_0: bool = False

    def at(self, **changed: Any) -> "GrowthQuestion":
        return replace(self, **changed)


@dataclass(frozen=True, repr=False)
class NormAnswer(Answer):
    """Of one run or several; `warnings` are sentences on what these differ by beside training, such as their dtype, and
    on sketches that are gone from the bucket, so that every token's norm had to be read.
    """

    warnings: tuple[str, ...] = field(default=(), kw_only=True)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "warnings": list(self.warnings)}

    def _titled(self, ax: "Axes", what: str) -> "Axes":
        """`ax` under its title, which says what is left out, and with the warnings."""
        return titled(ax, f"{what} ({self.left_out})", self.warnings)

    def _notes(self) -> list[str]:
        return [*(f"warning: {text}" for text in self.warnings), *super()._notes()]


@dataclass(frozen=True, repr=False)
class Growth(NormAnswer):
    """How the mean L2 norm over tokens, or another `quantity`, grows: by layer in one run, or by step of training at
    one site in several.

    `rate` is the factor of one step, exp(slope) of the least-squares line through log(mean norm); `r_squared` the share
    of that logarithm's variance that the line explains; `curvature` the second-order coefficient of the parabola
    through it; `bend` the change of the log rate from the first step to the last, over the log rate. The intervals hold
    the middle 95 % of `resamples` bootstrap resamples of `sequences` sequences; None without them.

    `verdict` is exponential, faster, slower, irregular or none, and does not go by R², which slow growth passes. A step
    departs where its factor is surely another than `median_ratio`, that of the median step, and by more than a little:
    its logarithm by a quarter, and the norm at its end by 0.5 %. Exponential has no step that departs. Faster and
    slower have a rate that changes by a quarter of its logarithm or more, significantly over sequences and by Akaike's
    criterion, or a norm (or its square, as untrained pre-LN models have it) that is decidedly linear, and steps that
    agree. Irregular has steps that depart in no such order, or a norm that rises and falls. None grows by less than 5 %
    in all, or so that no shape stands out, as of few layers. `shapes` compares shapes: shape, parameters, exponent,
    r_squared, aic (less is better). `block` is how the model's layers are wired: pre_ln, post_ln, parallel, or empty
    where it is not known.

    The table is `points`: layer (or revision, step), mean, fitted, ratio (factor of one step since the point before),
    ratio_low, ratio_high (its own interval), departure_low, departure_high (of ratio over median_ratio at all steps at
    once: with one rate, 95 % of samples leave out 1 at no step), departs. `departures` has those that depart.
    """

    site: str
    layers: tuple[int, int]
    rate: float
    r_squared: float
    axis: str
    rate_interval: tuple[float, float] | None
    curvature: float
    curvature_interval: tuple[float, float] | None
    bend: float
    verdict: str
    shapes: pa.Table
    block: str
    resamples: int
    seed: int
    sequences: int
    quantity: str = "l2"
    median_ratio: float = 0.0  # of a service that does not tell

    @property
    def points(self) -> pa.Table:
        return self.table

    @property
    def departures(self) -> pa.Table:
        """The steps that depart from `median_ratio`: layer (or revision, step), ratio, its two intervals."""
        if "departs" not in self.points.column_names:  # of a service that does not tell
            return self.points.schema.empty_table()
        rows = self.points.filter(pc.fill_null(self.points["departs"], False))
        at = ("layer",) if self.axis == "layer" else ("revision", "step")
        return rows.select([*at, *RATIOS])

    @property
    def label(self) -> str:
        where = "layers {} to {}".format(*self.layers) if self.axis == "layer" else f"{len(self)} checkpoints"
        what = self.site if self.quantity == "l2" else f"{self.quantity} of {self.site}"
        return f"{what}: x{factor(self.rate)} {UNITS[self.axis]} (R² {self.r_squared:.3f}, {where})"

    def to_dict(self) -> dict[str, Any]:
        own = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in _OF_ANSWERS}
        told = {"departures": plain_rows(self.departures), "shapes": plain_rows(self.shapes)}
        return {**own, **told, **super().to_dict()}

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Mean norms and the fitted line over steps, on a log axis; steps that depart end in a ring."""
        return line_plots.growth(ax, [self._curve()])

    def plot_ratios(self, ax: "Axes | None" = None) -> "Axes":
        """The factor of each step with its interval, a ring around one that departs, and a line at 1: above it the norm
        grows.
        """
        return line_plots.ratios(ax, [self._curve()])

    def _curve(self) -> line_plots.Curve:
        found = self.provenance
        named = self.axis == "layer" and found.model_revision
        return line_plots.Curve(
            axis=self.axis,
            site=self.site,
            quantity=self.quantity,
            points=self.points,
            model=f"{found.model}@{found.model_revision}" if named else found.model,
            label=self.label,
            left_out=self.left_out,
            warnings=self.warnings,
            computed_with={name: getattr(found, name) for name in COMPUTED_WITH},
            has_intervals=self.rate_interval is not None,
        )

    def _shown(self) -> list[dict[str, Any]]:
        return [
            {name: factor(value) if name in RATIOS and value is not None else value for name, value in row.items()}
            for row in super()._shown()
        ]

    def _title(self) -> str:
        return f"Growth of {self.label}: {VERDICTS[self.verdict]}"

    def _notes(self) -> list[str]:
        interval = "no interval"
        if self.rate_interval is not None:
            low, high = self.rate_interval
            drawn = f"{self.resamples:,} resamples of {self.sequences:,} sequences"
            interval = f"rate {factor(low, 5)} to {factor(high, 5)} (95 %, {drawn})"
        best = self.shapes["shape"].to_pylist()[:1]
        facts = [interval, f"curvature {self.curvature:.3g}, bend {self.bend:.3g}"]
        facts += [f"best shape {name}" for name in best]
        facts += [f"{BLOCKS[self.block]} blocks"] if self.block in BLOCKS else []
        return [" · ".join(facts), *self._departing(), *super()._notes()]

    def _departing(self) -> list[str]:
        """In words; the first of many."""
        rows = self.departures.to_pylist()
        if not rows:
            return []
        name = "layer" if self.axis == "layer" else "step"
        told = [f"{row[name]:g} (x{factor(row['ratio'])})" for row in rows[:DEPARTURES_TOLD]]
        more = f" and {len(rows) - len(told)} more" if len(rows) > len(told) else ""
        return [f"departing from x{factor(self.median_ratio)}: to {name} {', '.join(told)}{more}"]


def factor(value: float, digits: int = 3) -> str:
    """Of one step: so many digits after the first, and of one near 1, as over training, of what it is beside 1."""
    away = abs(value - 1)
    if not 1e-12 < away < 0.5:
        return f"{value:.{digits + 1}g}"
    return f"{value:.{max(digits, digits - 1 - math.floor(math.log10(away)))}f}".rstrip("0").rstrip(".")


_OF_ANSWERS = {"table", "provenance", "excluded", "shapes"}


@dataclass(frozen=True, repr=False)
class NormProfile(NormAnswer):
    """A row a site, or a row for each of its groups: site (kind), layer, the group where rows are `by` one, tokens,
    non_finite, mean, standard_deviation, geometric_mean, minimum, maximum, a column `q0.5` for each quantile, and
    rank_error: by how much the rank of a quantile, or the share of a bin, may be off (0: exact, else that of sketches).

    `non_finite` counts tokens, excluded ones too, whose norm is infinite or no number; the others leave them out. A
    relative_increase stands beside its `bound`, the mean share of the stream: by the triangle inequality no write adds
    more to the stream's norm than its own. `histogram` (None where none was asked for): site, layer, low, high, count,
    rank_error. `from_statistics`: this is from the commits' statistics alone; neither sketches nor tokens' own norms
    were read. Of several runs, and by checkpoint, the first columns are revision and step, and each row is of one run.
    """

    run: str
    quantity: str
    by: str
    histogram: pa.Table | None
    from_statistics: bool
    fit: Callable[[GrowthQuestion], Growth] = field(compare=False)
    more_runs: tuple[str, ...] = ()

    def fit_growth(
        self,
        site: str = "resid_post",
        layers: tuple[int, int] | None = None,
        *,
        resamples: int = DEFAULT_RESAMPLES,
        seed: int = 0,
    ) -> Growth:
        """Over the same run, tokens and quantity; `layers` is the first and last layer, both included.

        The interval of the rate is of `resamples` bootstrap resamples of sequences; 0: none.
        """
        if self.by == TOKEN:
            message = "growth is of means over a run, and not of single tokens"
            raise refused(message, "by", self.by, "run.norms().fit_growth()")
        if self.more_runs:
            allowed = "lab.checkpoints(runs).fit_growth(axis): an answer a checkpoint, or an answer a layer"
            raise refused(
                "growth of several runs is along one axis", "runs", f"{1 + len(self.more_runs)} runs", allowed
            )
        if self.quantity not in SIZES:
            raise refused("growth is of a measure of size", "quantity", self.quantity, ", ".join(SIZES))
        question = GrowthQuestion(
            (self.run,),
            frozenset(self.excluded) - {POSITION_0},
            exclude_position_0=POSITION_0 in self.excluded,
            site=_arguments.text(site, "site"),
            layers=_arguments.layer_range(layers),
            resamples=_arguments.count(resamples, "resamples"),
            seed=_arguments.count(seed, "seed", maximum=2**64 - 1),
            quantity=self.quantity,
        )
        return self.fit(question)

    @property
    def quantiles(self) -> tuple[str, ...]:
        """Names of the quantile columns, lowest first."""
        found = [name for name in self.table.column_names if name.startswith("q")]
        return tuple(sorted(found, key=lambda name: float(name[1:])))

    def plot(self, ax: "Axes | None" = None, fit: str | None = "resid_post") -> "Axes":
        """Norms over layers on a log axis: a line of means per site kind. By position, a heat map of means instead; of
        several checkpoints, a line each, of the kind that `fit` names.

        `fit` names the kind that has a band between its outer quantiles, and its fitted growth drawn over it where the
        profile has at least three layers of it; None draws neither.
        """
        if "step" in self.table.column_names:
            kind = drawn_kind(self.table["site"].to_pylist(), fit)
            ax = line_plots.by_checkpoint(ax, self._of_checkpoints(kind), self.quantity)
            return self._titled(ax, f"{self.quantity} of {kind}")
        if self.by == "position":
            ax = heat_maps.by_position(ax, self.table, self.quantity)
            return self._titled(ax, f"{self.quantity} of {self.table['site'][0]}")
        if self.by != "layer":
            raise refused(f"a profile by {self.by} has no plot", "by", self.by, "layer, position, token, checkpoint")
        fitted = self._fitted(fit) if fit is not None and self.quantity == "l2" else None
        ax = line_plots.by_layer(ax, self.table, self.quantity, self.quantiles, fit, fitted)
        return self._titled(ax, "norm of activations by layer")

    def plot_heatmap(self, ax: "Axes | None" = None, site: str = "resid_post") -> "Axes":
        """Of several checkpoints: means of a site kind, a row a layer and a column a checkpoint."""
        if "step" not in self.table.column_names:
            raise refused("this profile is of one checkpoint", "runs", self.run, "lab.checkpoints(runs).norms()")
        ax = heat_maps.by_checkpoint(ax, self._of_checkpoints(_arguments.text(site, "site")), self.quantity)
        return self._titled(ax, f"{self.quantity} of {site}")

    def plot_histogram(self, ax: "Axes | None" = None, site: str = "resid_post") -> "Axes":
        """How the tokens of a site kind spread: a line a layer, on a log axis where all values are above 0."""
        if self.histogram is None:
            raise refused("this profile has no histogram", "histogram", "None", "run.norms(..., histogram=50)")
        bins = _of_kind(self.histogram, _arguments.text(site, "site"), "the histogram has no")
        return self._titled(line_plots.histogram(ax, bins, self.quantity), f"{self.quantity} of {site}")

    def _of_checkpoints(self, kind: str) -> pa.Table:
        if "layer" not in self.table.column_names or self.by not in ("layer", "checkpoint"):
            raise refused(f"norms by {self.by} of checkpoints have no plot", "by", self.by, "layer, checkpoint")
        return _of_kind(self.table, kind, "there are no norms of")

    def _fitted(self, kind: str) -> line_plots.Curve | None:
        """The growth of a kind over all of its layers; None where these are too few for a fit."""
        layers = self.table.filter(pc.equal(self.table["site"], kind))["layer"]
        if len(layers) < FITTED_LAYERS_MIN:
            return None
        return self.fit_growth(kind, (pc.min(layers).as_py(), pc.max(layers).as_py()))._curve()

    def to_dict(self) -> dict[str, Any]:
        own = {"quantity": self.quantity, "by": self.by, "from_statistics": self.from_statistics}
        bins = {} if self.histogram is None else {"histogram": plain_rows(self.histogram)}
        return {**own, **super().to_dict(), **bins}

    def _title(self) -> str:
        what = TITLES.get(self.quantity, self.quantity)
        if self.more_runs:
            return f"{what} of {1 + len(self.more_runs)} checkpoints by {self.by}, {len(self):,} rows"
        return f"{what} of {len(self)} sites" if self.by == "layer" else f"{what} by {self.by}, {len(self):,} rows"


def _of_kind(table: pa.Table, kind: str, refusal: str) -> pa.Table:
    """The rows of a site kind, of which there have to be some."""
    rows = table.filter(pc.equal(table["site"], kind))
    if not len(rows):
        raise refused(f"{refusal} {kind!r}", "site", kind, sorted(set(table["site"].to_pylist())))
    return rows


def drawn_kind(kinds: Sequence[str], fit: str | None) -> str:
    """Where none is named, resid_post, and where that is not there, the first; one that is named has to be there."""
    if fit is None or fit == "resid_post":
        return "resid_post" if "resid_post" in kinds else kinds[0]
    return fit


def plot_growth(answers: "Growth | Iterable[Growth]", ax: "Axes | None" = None, *, ratios: bool = False) -> "Axes":
    """Several models, or checkpoints of one, on one log axis; `ratios`: the factor of each step, with a line at 1."""
    several = [answers] if isinstance(answers, Growth) else list(answers)
    if not several or len({answer.axis for answer in several}) > 1:
        axes = ", ".join(sorted({answer.axis for answer in several})) or "none"
        raise refused(
            "growth on one plot is along one axis", "answers", axes, "answers that are all of layer or checkpoint"
        )
    curves = [answer._curve() for answer in several]
    return line_plots.ratios(ax, curves) if ratios else line_plots.growth(ax, curves)
