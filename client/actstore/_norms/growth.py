"""The rate at which norms grow."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from actstore._answer import plain_rows
from actstore._errors import refused
from actstore._norms import line_plots
from actstore._norms.answer import NormAnswer, origin
from actstore._norms.layers import first_and_last
from actstore._transport.base import Backend
from actstore_api.records.norm import FitGrowth, FitGrowthAnswer, Interval

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
    quantity: str
    median_ratio: float

    @property
    def points(self) -> pa.Table:
        return self.table

    @property
    def departures(self) -> pa.Table:
        """The steps that depart from `median_ratio`: layer (or revision, step), ratio, its two intervals."""
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
    """Writes the factor of one step: so many digits after the first, and near 1, as over training, beyond 1."""
    away = abs(value - 1)
    if not 1e-12 < away < 0.5:
        return f"{value:.{digits + 1}g}"
    return f"{value:.{max(digits, digits - 1 - math.floor(math.log10(away)))}f}".rstrip("0").rstrip(".")


def ask_growth(backend: Backend, question: FitGrowth) -> Growth:
    """Asks for a fit of growth. Its layers are the first and the last one, both included."""
    found: FitGrowthAnswer = backend.ask(question)
    return Growth(
        table=found.points,
        axis=found.axis,
        site=found.site,
        layers=first_and_last(found.layers),
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
        sequences=found.sequences,
        quantity=found.quantity,
        median_ratio=found.median_ratio,
        **origin(found),
    )


def _pair(interval: Interval | None) -> tuple[float, float] | None:
    return None if interval is None else (interval.low, interval.high)


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
