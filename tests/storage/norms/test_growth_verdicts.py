"""Where one verdict on growth gives way to another: planted curves beside each limit in docs/explanation/norms.md."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from actstore_storage.norms.growth_shapes import EXPONENTIAL, FASTER, IRREGULAR, NONE, SLOWER, GrowthFit, fit_steps
from actstore_storage.norms.growth_steps import Resampled

STEPS = np.arange(20.0)


def along(log_factors: Sequence[float]) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(log_factors)])


def steady(total: float) -> np.ndarray:
    return np.log(total) * STEPS / STEPS[-1]


def up_and_back(factor: float, steps: int) -> np.ndarray:
    """So many steps up and one all the way down, after which nothing grows: no line does."""
    return np.concatenate([np.log(factor) * np.arange(steps + 1), np.zeros(len(STEPS) - steps - 1)])


def bent(bend: float) -> np.ndarray:
    """A parabola whose slope changes by that share of itself from the first step to the last."""
    curvature = bend * 0.05 / (2 * STEPS[-1])
    return 0.05 * STEPS + curvature * (STEPS**2 - STEPS[-1] * STEPS)


def one_step(log_factor: float, other: float) -> np.ndarray:
    return along([other if step == 7 else log_factor for step in range(len(STEPS) - 1)])


@pytest.mark.parametrize(
    ("below", "above"),
    [
        ((steady(1.049), NONE), (steady(1.051), EXPONENTIAL)),
        ((up_and_back(1.049 ** (1 / 5), 5), NONE), (up_and_back(1.051 ** (1 / 5), 5), IRREGULAR)),
        ((up_and_back(1.0049, 12), NONE), (up_and_back(1.0051, 12), IRREGULAR)),
        ((bent(0.24), EXPONENTIAL), (bent(0.26), FASTER)),
        ((bent(-0.24), EXPONENTIAL), (bent(-0.26), SLOWER)),
        ((one_step(0.05, 0.05 * 1.24), EXPONENTIAL), (one_step(0.05, 0.05 * 1.26), IRREGULAR)),
        ((one_step(0.05, 0.05 * 0.76), EXPONENTIAL), (one_step(0.05, 0.05 * 0.74), IRREGULAR)),
        ((one_step(0.01, 0.01 + np.log(1.0049)), EXPONENTIAL), (one_step(0.01, 0.01 + np.log(1.0051)), IRREGULAR)),
    ],
    ids=["growth", "a rise", "a step of a rise", "faster", "slower", "a step up", "a step down", "a small step"],
)
def test_verdicts_change_where_the_documentation_says(
    below: tuple[np.ndarray, str], above: tuple[np.ndarray, str]
) -> None:
    for logs, verdict in (below, above):
        for scale in (0.1, 1.0, 50.0):
            assert fit_steps(STEPS, scale * np.exp(logs)).verdict == verdict


@pytest.mark.parametrize(("bend", "verdict"), [(1.6, FASTER), (-1.6, SLOWER)])
def test_a_rate_that_turns_back_is_none_that_changes(bend: float, verdict: str) -> None:
    """Late in a curve that quickens one step as small as the first ones, or as large in one that slackens."""
    steady = np.diff(bent(bend))
    for step in (15, 16):
        turned = steady.copy()
        turned[step] = steady[2]
        assert (turned > 0).all()
        assert fit_steps(STEPS, np.exp(along(steady))).verdict == verdict
        assert fit_steps(STEPS, np.exp(along(turned))).verdict == IRREGULAR


# Signs that are at right angles to every line, parabola and cubic (Thue and Morse's), so that they change no fit.
WAVE = np.array([1, -1, -1, 1, -1, 1, 1, -1, -1, 1, 1, -1, 1, -1, -1, 1.0])
AT = np.arange(16.0)


def scattered(logs: np.ndarray) -> GrowthFit:
    """Of a sample that tells no step from another, so that none departs, and its line and bend surely."""
    spread = np.array([-4.0, 4.0] * 50)[:, None] * WAVE
    found = fit_steps(AT, np.exp(logs), Resampled(np.exp(logs + spread), 100))
    assert not found.ratios.departs.any()
    return found


@pytest.mark.parametrize(("spread", "verdict"), [(0.9, EXPONENTIAL), (1.1, NONE)])
def test_growth_that_a_sample_might_lack_is_none(spread: float, verdict: str) -> None:
    """Half of the resamples grow more by so much of the rate, and half less: all grow where that is below 1."""
    logs = 0.05 * AT
    sizes = np.array([1 - spread, 1 + spread] * 50)[:, None]
    assert fit_steps(AT, np.exp(logs), Resampled(np.exp(sizes * logs), 100)).verdict == verdict


@pytest.mark.parametrize(
    ("bend", "spread", "verdict"),
    [(0.6, 0.9, FASTER), (0.6, 1.1, EXPONENTIAL), (-0.6, 0.9, SLOWER), (-0.6, 1.1, NONE)],
)
def test_a_bend_that_a_sample_might_lack_does_not_count(bend: float, spread: float, verdict: str) -> None:
    """Half of the resamples bend more by so much of the bend, and half less: all bend alike where that is below 1."""
    straight = 0.05 * STEPS
    sizes = np.array([1 - spread, 1 + spread] * 50)[:, None]
    resampled = Resampled(np.exp(straight + sizes * (bent(bend) - straight)), 100)
    assert fit_steps(STEPS, np.exp(bent(bend)), resampled).verdict == verdict


def criteria(found: GrowthFit) -> tuple[float, float]:
    """Of the exponential, and of the better of the two shapes that flatten."""
    aic = {row["shape"]: row["aic"] for row in found.shapes.to_pylist()}
    return aic["exponential"], min(aic["linear"], aic["square_root"])


def flattens(found: GrowthFit, parabola: float) -> float:
    straight, flat = criteria(found)
    return straight - flat - 10


def stays_exponential(found: GrowthFit, parabola: float) -> float:
    straight, flat = criteria(found)
    return flat - straight - 2


def quickens(found: GrowthFit, parabola: float) -> float:
    return criteria(found)[0] - parabola - 2


def explains(found: GrowthFit, parabola: float) -> float:
    return max(found.shapes["r_squared"].to_pylist()) - 0.9


@pytest.mark.parametrize(
    ("logs", "rule", "verdict"),
    [
        (np.log(1 + 0.2 * AT / 15), flattens, SLOWER),
        (np.log(1.07) * AT / 15, stays_exponential, EXPONENTIAL),
        (0.02 * AT + 0.0004 * AT**2, quickens, FASTER),
        (AT, explains, EXPONENTIAL),
    ],
    ids=["slower", "exponential", "faster", "R^2"],
)
def test_criteria_decide_by_as_much_as_the_documentation_says(
    logs: np.ndarray, rule: Callable[[GrowthFit, float], float], verdict: str
) -> None:
    """More scatter hides the shape. Between enough and too much of it, closer and closer to where it just does; the
    parabola's criterion is by numpy's fit.
    """
    low, high = 0.0, float(np.ptp(logs))
    for _ in range(16):
        size = (low + high) / 2
        told = logs + size * WAVE
        residual = told - np.polyval(np.polyfit(AT, told, 2), AT)
        found = scattered(told)
        margin = rule(found, len(AT) * np.log((residual**2).mean()) + 2 * 4)
        assert (found.verdict == verdict) == (margin >= 0), (size, margin, found.verdict)
        low, high = (size, high) if margin >= 0 else (low, size)
    assert abs(margin) < 0.1
    assert 0 < low < high < np.ptp(logs)
