"""Single steps of growth: which of them depart at the bounds, in which order, and how sure that is."""

import math
from itertools import product

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import t as student

from actstore_storage.norms.growth_steps import Resampled, StepRatios, joint_margin, step_ratios

# The least log factor of a step that is not little.
LEAST = math.log(1.005)


def steps(logs: list[float], at: list[float] | None = None, resampled: Resampled | None = None) -> StepRatios:
    return step_ratios(np.arange(float(len(logs))) if at is None else np.array(at), np.array(logs), resampled)


@pytest.mark.parametrize("share", [1.0, 0.99])
def test_a_step_that_is_just_large_enough_departs_climbs_or_falls(share: float) -> None:
    """By half a percent where the others stand still; by a quarter of the median step where they grow."""
    for sign in (1, -1):
        found = steps([0, 0, 0, 0, sign * share * LEAST])
        just = [False, False, False, share == 1]
        assert found.departs.tolist() == just
        assert found.above.tolist() == [False, False, False, sign > 0]
        assert (found.climbs.tolist(), found.falls.tolist()) == (
            (just, [False] * 4) if sign > 0 else ([False] * 4, just)
        )
        found = steps([0, 1, 2, 3, 4 + sign * share / 4])
        assert found.departs.tolist() == just
        assert (found.climbs.all(), found.falls.any()) == (True, False)
        found = steps([0, -1, -2, -3, -4 + sign * share / 4])
        assert found.departs.tolist() == just
        assert (found.climbs.any(), found.falls.all()) == (False, True)


def test_how_far_a_step_moves_the_norm_is_over_its_whole_length() -> None:
    long, short = [0.0, 1, 2, 3, 103], [0.0, 1, 2, 3, 3.01]
    found = steps([0, 0, 0, 0, 0.1], long)
    assert found.departs.tolist() == found.climbs.tolist() == [False, False, False, True]
    assert found.ratio == pytest.approx([1, 1, 1, math.exp(0.001)], rel=1e-12)
    found = steps([0, 0, 0, 0, 0.001], short)
    assert not found.departs.any()
    assert not found.climbs.any()
    assert found.ratio == pytest.approx([1, 1, 1, math.exp(0.1)], rel=1e-12)
    assert steps([0, 1, 2, 3, 5]).median == pytest.approx(math.e)


def test_falling_and_rising_are_what_they_say() -> None:
    """Of every order of four steps: none upwards after one downwards, or none downwards after one upwards."""
    choices = list(product((False, True), repeat=4))
    for departs, above, falls in product(choices, choices, (choices[0], choices[4])):
        no_steps = np.zeros(4)
        columns = (np.array(one) for one in (departs, above, [False] * 4, falls))
        found = StepRatios(no_steps, 1.0, None, *columns)
        upwards = [up for up, counts in zip(above, departs, strict=True) if counts]
        assert found.falling == (upwards == sorted(upwards, reverse=True) and not any(falls))
        assert found.rising == (upwards == sorted(upwards) and not any(falls))


def test_columns_begin_with_a_point_that_no_step_leads_to() -> None:
    curves = np.exp(np.random.default_rng(0).normal(size=(50, 4)))
    with_intervals = steps([0, 0.1, 0.2, 0.5], resampled=Resampled(curves, 9))
    columns = with_intervals.columns()
    intervals = with_intervals.intervals
    assert intervals is not None
    for name, values in (
        ("ratio", with_intervals.ratio),
        ("ratio_low", intervals.low),
        ("ratio_high", intervals.high),
        ("departure_low", intervals.departure_low),
        ("departure_high", intervals.departure_high),
        ("departs", with_intervals.departs),
    ):
        assert columns[name].to_pylist() == [None, *values.tolist()]
    without = steps([0, 0.1, 0.2, 0.5]).columns()
    assert list(without) == list(columns)
    for name in ("ratio_low", "ratio_high", "departure_low", "departure_high"):
        assert without[name].equals(pa.nulls(4, pa.float64()))


def test_intervals_are_of_resamples_in_which_every_step_has_a_norm() -> None:
    good = np.exp(np.random.default_rng(1).normal(size=(30, 4)))
    for wrong in (np.nan, np.inf, 0.0, -1.0):
        bad = good[:4].copy()
        bad[np.arange(4), np.arange(4)] = wrong
        found = Resampled(np.concatenate([bad, good]), 7)
        assert np.array_equal(found.logs(), np.log(good))
        assert steps([0, 1, 2, 3], resampled=Resampled(np.concatenate([bad, good[:1]]), 7)).intervals is None
    intervals = steps([0, 1, 2, 3], resampled=Resampled(good, 7)).intervals
    assert intervals is not None
    ratios = good[:, 1:] / good[:, :-1]
    assert intervals.low == pytest.approx(np.quantile(ratios, 0.025, axis=0), rel=1e-12)
    assert intervals.high == pytest.approx(np.quantile(ratios, 0.975, axis=0), rel=1e-12)
    assert steps([0, 1, 2, 3], resampled=Resampled(good[:2], 7)).intervals is not None


@pytest.mark.parametrize(("resamples", "sequences", "degrees"), [(2, 2, 1), (2, 50, 1), (40, 2, 1), (40, 30, 16)])
def test_margins_of_few_sequences_or_resamples_are_wide(resamples: int, sequences: int, degrees: int) -> None:
    drawn = np.random.default_rng(resamples).normal(size=(resamples, 5))
    bound = student.ppf((1 + 0.95 ** (1 / 5)) / 2, degrees)
    expected = bound * drawn.std(axis=0, ddof=1) * math.sqrt(sequences / (sequences - 1))
    assert joint_margin(drawn, sequences) == pytest.approx(expected, rel=1e-6)


def test_what_may_be_chance_neither_departs_nor_climbs_nor_falls() -> None:
    """The same step, of curves that spread much and of some that hardly do."""
    rng, logs = np.random.default_rng(2), np.array([0, 0.1, 0.2, 0.3, 0.2, 0.5])
    for spread, sure in ((0.3, False), (1e-4, True)):
        found = steps(logs.tolist(), resampled=Resampled(np.exp(logs + rng.normal(0, spread, (200, 6))), 100))
        assert found.departs.tolist() == [False, False, False, sure, sure]
        assert found.climbs.tolist() == [sure, sure, sure, False, sure]
        assert found.falls.tolist() == [False, False, False, sure, False]
