"""The rate at which norms grow."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from actstore import _checks
from actstore._answer import plain_rows
from actstore._errors import refused
from actstore._norms import line_plots
from actstore._norms.answer import NormAnswer, origin
from actstore._norms.layers import layers_of
from actstore._transport.base import Backend
from actstore_api.records.norm import FitGrowth, FitGrowthAnswer, GrowthAxis, GrowthVerdict, Interval, NormQuantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

VERDICTS = {
    "exponential": "exponential",
    "faster": "faster than exponential",
    "slower": "slower than exponential",
    "irregular": "irregular, not at one rate, nor at one that only rises or only falls",
    "none": "no verdict",
}
BLOCKS = {"pre_ln": "pre-LN", "post_ln": "post-LN", "parallel": "parallel"}
UNITS = {"layer": "a layer", "checkpoint": "a step of training"}
RATIOS = ("ratio", "ratio_low", "ratio_high", "departure_low", "departure_high")
# Of provenance; as the store has it where it compares runs.
COMPUTED_WITH = ("dtype", "attention_implementation", "device")
# In a sentence; `departures` has them all.
DEPARTURES_TOLD = 12
_OF_ANSWERS = {"table", "provenance", "excluded", "shapes"}


@dataclass(frozen=True, repr=False)
class Growth(NormAnswer):
    """How fast the mean norm grows: over the layers of one run, or over training at one site of several runs.

    A least-squares line is fitted to log(mean norm over tokens) over the step: the layer, or the step of training. Its
    slope gives the `rate`. Intervals hold the middle 95 % of bootstrap resamples of sequences.

    R² does not decide the verdict, because slow growth also gives a high R². The steps do. A step departs from the
    others if its factor differs from `median_ratio` beyond doubt and by more than a little: by a quarter of its
    logarithm, and by 0.5 % of the norm at its end.

    ============  ====================================================================================================
    verdict       condition
    ============  ====================================================================================================
    exponential   No step departs from the others.
    faster        The steps agree, and the rate itself grows: by a quarter of its logarithm or more, significantly over
                  sequences and by Akaike's criterion. Or the norm or its square, as in untrained pre-LN models, fits a
                  straight line far better.
    slower        The same with a rate that falls.
    irregular     Steps depart in no such order, or the norm rises and falls.
    none          The norm grows by less than 5 % in all, or there are too few steps to tell the shapes apart.
    ============  ====================================================================================================

    Columns: layer (or revision and step), mean, fitted, ratio (factor of one step since the row before), ratio_low and
    ratio_high (its 95 % interval), departure_low and departure_high (interval of ratio over median_ratio, for all steps
    at once: if all steps have one factor, then 95 % of samples have no step whose interval leaves out 1), departs.

    Attributes:
        site: The site kind, or over training the single site.
        layers: The layers that were fitted; over training the site's own.
        rate: Factor of one step, exp(slope).
        r_squared: Share of the variance of log(mean norm) that the line explains.
        axis: `layer`, or `checkpoint` for growth over training.
        rate_interval: 95 % interval of the rate; None without resamples.
        curvature: Second-order coefficient of the parabola through log(mean norm).
        curvature_interval: 95 % interval of the curvature; None without resamples.
        bend: Change of the log rate from the first step to the last, over the log rate.
        verdict: See above.
        shapes: Shapes that were compared, the best first: shape, parameters, exponent, r_squared and aic (less is
            better).
        block: How the model's layers are wired: pre_ln, post_ln, parallel, or empty if that is not known.
        resamples: Number of bootstrap resamples.
        seed: Seed that drew them.
        resampled_sequences: Number of sequences that were drawn from.
        quantity: What was measured of each token, such as `l2`.
        median_ratio: Factor of the median step.
    """

    site: str
    layers: tuple[int, ...]
    rate: float
    r_squared: float
    axis: GrowthAxis
    rate_interval: tuple[float, float] | None
    curvature: float
    curvature_interval: tuple[float, float] | None
    bend: float
    verdict: GrowthVerdict
    shapes: pa.Table
    block: str
    resamples: int
    seed: int
    resampled_sequences: int
    quantity: NormQuantity
    median_ratio: float

    @property
    def points(self) -> pa.Table:
        """The rows as a `pyarrow.Table`: `table` under the name that a fit has for them."""
        return self.table

    @property
    def departures(self) -> pa.Table:
        """The steps that depart from the others: layer (or revision and step), ratio and its two intervals."""
        rows = self.points.filter(pc.fill_null(self.points["departs"], False))
        at = ("layer",) if self.axis == "layer" else ("revision", "step")
        return rows.select([*at, *RATIOS])

    @property
    def label(self) -> str:
        """One line that says what was fitted and how fast it grows."""
        where = f"layers {self.layers[0]} to {self.layers[-1]}" if self.axis == "layer" else f"{len(self)} checkpoints"
        what = self.site if self.quantity == "l2" else f"{self.quantity} of {self.site}"
        return f"{what}: x{factor(self.rate)} {UNITS[self.axis]} (R² {self.r_squared:.3f}, {where})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        own = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in _OF_ANSWERS}
        told = {"departures": plain_rows(self.departures), "shapes": plain_rows(self.shapes)}
        return {**own, **told, **super().to_dict()}

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw mean norms and the fitted line over steps, on a log axis. A ring marks the end of a step that departs.

        Args:
            ax: Axes to draw on. None: those of a new figure.

        Returns:
            The axes.
        """
        return line_plots.growth(ax, [self._curve()])

    def plot_ratios(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the factor of each step with its interval, and a line at 1, above which the norm grows.

        A ring marks a step that departs.

        Args:
            ax: Axes to draw on. None: those of a new figure.

        Returns:
            The axes.
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
            left_out=self._left_out,
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
            drawn = f"{self.resamples:,} resamples of {self.resampled_sequences:,} sequences"
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
    """Writes the factor of one step: so many digits after the first, and near 1, as over training, beyond 1."""
    away = abs(value - 1)
    if not 1e-12 < away < 0.5:
        return f"{value:.{digits + 1}g}"
    return f"{value:.{max(digits, digits - 1 - math.floor(math.log10(away)))}f}".rstrip("0").rstrip(".")


def ask_growth(backend: Backend, question: FitGrowth) -> Growth:
    """Asks for a fit of growth."""
    found: FitGrowthAnswer = backend.ask(question)
    return Growth(
        table=found.points,
        axis=found.axis,
        site=found.site,
        layers=layers_of(found.layers),
        rate=found.rate,
        r_squared=found.r_squared,
        rate_interval=_pair(found.rate_interval),
        curvature=found.curvature,
        curvature_interval=_pair(found.curvature_interval),
        bend=found.bend,
        verdict=found.verdict,
        shapes=found.shapes,
        block=found.block or "",
        resamples=found.resamples,
        seed=found.seed,
        resampled_sequences=found.sequences,
        quantity=found.quantity,
        median_ratio=found.median_ratio,
        **origin(found),
    )


def _pair(interval: Interval | None) -> tuple[float, float] | None:
    return None if interval is None else (interval.low, interval.high)


def plot_growth(answers: "Growth | Iterable[Growth]", ax: "Axes | None" = None, *, ratios: bool = False) -> "Axes":
    """Draw several fits of growth on one log axis: of several models, or of several checkpoints of one.

    Args:
        answers: Fits along one axis.
        ax: Axes to draw on. None: those of a new figure.
        ratios: Draw the factor of each step, with a line at 1, in place of the norms.

    Returns:
        The axes.

    Raises:
        BadRequest: There are no fits, or they are along different axes.
    """
    several = [answers] if isinstance(answers, Growth) else list(answers)
    if not several or len({answer.axis for answer in several}) > 1:
        axes = ", ".join(sorted({answer.axis for answer in several})) or "none"
        raise refused(
            "one plot can show growth along one axis only",
            "answers",
            axes,
            "answers that are all of layer or checkpoint",
        )
    curves = [answer._curve() for answer in several]
    return line_plots.ratios(ax, curves) if _checks.switch(ratios, "ratios") else line_plots.growth(ax, curves)
