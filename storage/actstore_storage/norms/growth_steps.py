"""Computes the factor of each step of growth with its confidence interval, and finds steps that depart from the others.

A step is compared with the median step and not with the fitted line, which a few steps can pull away from all others.
"""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Steps = NDArray[np.float64]  # [step]
Curves = NDArray[np.float64]  # [resample, step]
Chosen = NDArray[np.bool_]  # [step - 1]

CONFIDENCE = 0.95
# A step departs only if its log factor differs from the median one by this fraction of it, and if that changes the norm
# at its end by this factor. With much text, every layer of a real model differs significantly, if only a little.
DEPARTURE_SHARE_LEAST, DEPARTURE_FACTOR_LEAST = 0.25, 1.005
_BISECTIONS = 60


@dataclass(frozen=True)
class Resampled:
    """Norms of bootstrap resamples over this many sequences; NaN if a resample has no token at a step."""

    curves: Curves
    sequences: int

    def logs(self) -> Curves:
        """The logarithms of resamples in which every step has a norm above 0."""
        there = self.curves[(np.isfinite(self.curves) & (self.curves > 0)).all(axis=1)]
        found: Curves = np.log(there)
        return found


@dataclass(frozen=True)
class Intervals:
    """Each is [step - 1]. `low` and `high` bound the middle CONFIDENCE of the resamples of a single ratio.
    `departure_low` and `departure_high` bound ratios divided by the median one at all steps simultaneously: if the rate
    is constant, then in CONFIDENCE of samples they contain 1 at every step.
    """

    low: Steps
    high: Steps
    departure_low: Steps
    departure_high: Steps


@dataclass(frozen=True)
class StepRatios:
    """`ratio` [step - 1] is the factor of one step since the point before, and `median` that of the median step.

    `departs`: the interval of the step's departure excludes 1, and the difference is not small; without intervals, only
    the size of the difference decides. `above`: it departs upwards. `climbs` and `falls`: at this step the norm
    significantly grows, or shrinks, and not by little, whether or not the step departs.
    """

    ratio: Steps
    median: float
    intervals: Intervals | None
    departs: Chosen
    above: Chosen
    climbs: Chosen
    falls: Chosen

    def columns(self) -> dict[str, pa.Array]:
        """[step], null for the first: ratio, ratio_low, ratio_high, departure_low, departure_high, departs."""
        bounds: dict[str, Steps] = {} if self.intervals is None else vars(self.intervals)
        return {
            "ratio": self._column(self.ratio),
            "ratio_low": self._column(bounds.get("low")),
            "ratio_high": self._column(bounds.get("high")),
            "departure_low": self._column(bounds.get("departure_low")),
            "departure_high": self._column(bounds.get("departure_high")),
            "departs": self._column(self.departs),
        }

    def _column(self, values: Steps | Chosen | None) -> pa.Array:
        if values is None:
            return pa.nulls(len(self.ratio) + 1, pa.float64())
        return pa.array([None, *values.tolist()])

    @property
    def falling(self) -> bool:
        """No upward departure comes after a downward one, and no norm shrinks."""
        return self._ordered(~self.above)

    @property
    def rising(self) -> bool:
        return self._ordered(self.above)

    def _ordered(self, late: Chosen) -> bool:
        return not self.falls.any() and bool((np.diff(late[self.departs].astype(int)) >= 0).all())


def step_ratios(at: Steps, logs: Steps, resampled: Resampled | None) -> StepRatios:
    gaps = np.diff(at)
    factors = np.diff(logs) / gaps
    median = float(np.median(factors))
    departures, margin, own_margin, intervals = factors - median, np.zeros(len(gaps)), np.zeros(len(gaps)), None
    if resampled is not None and len(norms := resampled.logs()) > 1:
        drawn = np.diff(norms, axis=1) / gaps
        margin = joint_margin(drawn - np.median(drawn, axis=1, keepdims=True), resampled.sequences)
        own_margin = joint_margin(drawn, resampled.sequences)
        low, high = np.quantile(np.exp(drawn), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
        intervals = Intervals(low, high, np.exp(departures - margin), np.exp(departures + margin))
    least, size = math.log(DEPARTURE_FACTOR_LEAST), np.abs(departures)
    departs = (size > margin) & (size >= DEPARTURE_SHARE_LEAST * abs(median)) & (size * gaps >= least)
    climbs, falls = ((sign * factors > own_margin) & (sign * factors * gaps >= least) for sign in (1, -1))
    return StepRatios(np.exp(factors), math.exp(median), intervals, departs, departures > 0, climbs, falls)


def joint_margin(drawn: Curves, sequences: int) -> Steps:
    """[step]: the largest error of estimates at all steps simultaneously, in CONFIDENCE of samples.

    `drawn` [resample, step]. Sidak's bound, which holds for any dependence between steps, with Student's distribution,
    because the spread is estimated from few sequences or resamples.
    """
    # The bootstrap's variance treats the sequences as the population, so it is too small by n / (n - 1).
    spread = drawn.std(axis=0, ddof=1) * math.sqrt(sequences / (sequences - 1))
    degrees = 1 / (1 / (sequences - 1) + 1 / (len(drawn) - 1))
    margin: Steps = student_bound(CONFIDENCE ** (1 / drawn.shape[1]), max(1, int(degrees))) * spread
    return margin


def student_bound(share: float, degrees: int) -> float:
    """The bound that contains this fraction of Student's t distribution, with these degrees of freedom."""
    low, high = 0.0, math.pi / 2
    for _ in range(_BISECTIONS):
        angle = (low + high) / 2
        if _student_share(angle, degrees) < share:
            low = angle
        else:
            high = angle
    return math.sqrt(degrees) * math.tan(low)


def _student_share(angle: float, degrees: int) -> float:
    """The fraction within sqrt(degrees) tan(angle) of 0: Abramowitz and Stegun 1964, 26.7.3 and, for even degrees,
    26.7.4.
    """
    odd, cosine = degrees % 2, math.cos(angle)
    term = np.arange(1, degrees // 2)
    growing = (2 * term - 1 + odd) / (2 * term + odd) * cosine**2
    terms = np.cumprod(np.concatenate([[cosine**odd], growing]))[: degrees // 2]
    series = math.sin(angle) * float(terms.sum())
    return 2 / math.pi * (angle + series) if odd else series
