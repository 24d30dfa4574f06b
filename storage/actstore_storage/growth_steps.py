"""The factor of each step of growth, how sure it is, and which steps depart from the others.

A step departs from the median step and not from the fitted line, which a few steps pull away from all others.
"""

import math
from dataclasses import dataclass, field, fields

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Steps = NDArray[np.float64]  # [step]
Curves = NDArray[np.float64]  # [resample, step]

CONFIDENCE = 0.95
# A step departs only where its log factor differs from the median one by this share of it, and where that moves the
# norm at its end by this factor. Of much text every layer of a real model is surely a little unlike the others.
DEPARTURE_SHARE_LEAST, DEPARTURE_FACTOR_LEAST = 0.25, 1.005
_BISECTIONS = 60


@dataclass(frozen=True)
class Resampled:
    """Norms of each bootstrap resample of so many sequences; NaN where a resample has no token that counts."""

    curves: Curves
    sequences: int

    def logs(self) -> Curves:
        """Of the resamples in which every step has a norm above 0."""
        there = self.curves[(np.isfinite(self.curves) & (self.curves > 0)).all(axis=1)]
        found: Curves = np.log(there)
        return found


@dataclass(frozen=True)
class StepRatios:
    """Each is [step - 1], of a step and the one before it.

    `ratio` is the factor of one step, and `median` (a number) that of the median step. `low` and `high` bound the
    middle CONFIDENCE of the resamples, of each step by itself; `departure_low` and `departure_high` bound `ratio` over
    `median` at all steps at once: where there is one rate, they leave out 1 at no step in CONFIDENCE of samples. None
    without resamples. `departs`: they leave out 1, and the difference is not small. `above`: it is upwards. `climbs`
    and `falls`: it departs, and the norm surely grows, or shrinks.
    """

    ratio: Steps
    low: Steps | None
    high: Steps | None
    departure_low: Steps | None
    departure_high: Steps | None
    departs: NDArray[np.bool_]
    median: float = field(metadata={"column": False})
    above: NDArray[np.bool_] = field(metadata={"column": False})
    climbs: NDArray[np.bool_] = field(metadata={"column": False})
    falls: NDArray[np.bool_] = field(metadata={"column": False})

    def columns(self) -> dict[str, pa.Array]:
        """[step], null for the first: ratio, ratio_low, ratio_high, departure_low, departure_high, departs."""
        named = {"low": "ratio_low", "high": "ratio_high"}
        shown = [one.name for one in fields(self) if one.metadata.get("column", True)]
        return {named.get(name, name): self._column(getattr(self, name)) for name in shown}

    def _column(self, values: NDArray[np.generic] | None) -> pa.Array:
        if values is None:
            return pa.nulls(len(self.ratio) + 1, pa.float64())
        return pa.array([None, *values.tolist()])

    @property
    def falling(self) -> bool:
        """No step that departs upwards comes after one that departs downwards, and no norm shrinks."""
        return self._ordered(~self.above)

    @property
    def rising(self) -> bool:
        return self._ordered(self.above)

    def _ordered(self, late: NDArray[np.bool_]) -> bool:
        return not self.falls.any() and bool((np.diff(late[self.departs].astype(int)) >= 0).all())


def step_ratios(at: Steps, logs: Steps, resampled: Resampled | None) -> StepRatios:
    gaps = np.diff(at)
    factors = np.diff(logs) / gaps
    median = float(np.median(factors))
    departures = factors - median
    drawn = None if resampled is None else resampled.logs()
    intervals: list[Steps | None] = [None] * 4
    margin = np.zeros(len(gaps))
    if resampled is not None and drawn is not None and len(drawn) > 1:
        drawn = np.diff(drawn, axis=1) / gaps
        margin = joint_margin(drawn - np.median(drawn, axis=1, keepdims=True), resampled.sequences)
        alone = np.quantile(np.exp(drawn), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
        intervals = [*alone, np.exp(departures - margin), np.exp(departures + margin)]
    least = math.log(DEPARTURE_FACTOR_LEAST)
    size = np.abs(departures)
    departs = (size > margin) & (size >= DEPARTURE_SHARE_LEAST * abs(median)) & (size * gaps >= least)
    climbs, falls = (departs & (sign * factors > margin) & (sign * factors * gaps >= least) for sign in (1, -1))
    return StepRatios(np.exp(factors), *intervals, departs, math.exp(median), departures > 0, climbs, falls)


def joint_margin(drawn: Curves, sequences: int) -> Steps:
    """[step]: what a departure of 0 is estimated to be at most, at all steps at once, in CONFIDENCE of samples.

    `drawn` [resample, step]. Sidak's bound, which holds however steps hang together, over Student's distribution, since
    few sequences, or resamples, say little of how far estimates spread.
    """
    # The bootstrap's variance is that of the population that the sequences would be: n / (n - 1) too small.
    spread = drawn.std(axis=0, ddof=1) * math.sqrt(sequences / (sequences - 1))
    degrees = 1 / (1 / (sequences - 1) + 1 / (len(drawn) - 1))
    return student_bound(CONFIDENCE ** (1 / drawn.shape[1]), max(1, int(degrees))) * spread


def student_bound(share: float, degrees: int) -> float:
    """Between minus this and this lies that share of Student's t distribution with so many degrees of freedom."""
    low, high = 0.0, math.pi / 2
    for _ in range(_BISECTIONS):
        angle = (low + high) / 2
        if _student_share(angle, degrees) < share:
            low = angle
        else:
            high = angle
    return math.sqrt(degrees) * math.tan(low)


def _student_share(angle: float, degrees: int) -> float:
    """Within sqrt(degrees) tan(angle) of 0: Abramowitz and Stegun 1964, 26.7.3 and, of even degrees, 26.7.4."""
    odd, cosine = degrees % 2, math.cos(angle)
    term = np.arange(1, degrees // 2)
    growing = (2 * term - 1 + odd) / (2 * term + odd) * cosine**2
    terms = np.cumprod(np.concatenate([[cosine**odd], growing]))[: degrees // 2]
    series = math.sin(angle) * float(terms.sum())
    return 2 / math.pi * (angle + series) if odd else series
