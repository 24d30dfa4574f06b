"""Fits how a norm grows over steps: its rate, whether the rate is constant, and which shape fits best.

A step is a layer or a checkpoint. This module does not depend on runs, so that simulated norms get the same fit as
measured ones.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from actstore_storage.errors import BadRequest
from actstore_storage.norms.growth_steps import CONFIDENCE, Resampled, StepRatios, Steps, step_ratios

STEPS_MIN = 3
EXPONENTIAL, FASTER, SLOWER, IRREGULAR, NONE = "exponential", "faster", "slower", "irregular", "none"
# A smaller factor over all steps does not count as growth.
GROWTH_LEAST = 1.05
# A curve that explains less of the variance of log(norm) does not describe it.
R_SQUARED_LEAST = 0.9
# The rate is not constant if its logarithm changes by this fraction of itself from the first step to the last.
BEND_LEAST = 0.25
# By how much Akaike's criterion must prefer a parabola, and a two-parameter shape, to the exponential (Burnham and
# Anderson 2002, section 2.6: 2 is the smallest meaningful difference; above 10 the worse model has no support).
AIC_COUNTS, AIC_DECIDES = 2.0, 10.0
# A float32 norm is rounded by up to this fraction: smaller residuals cannot distinguish shapes.
_ROUNDING = 1e-7
# Shapes are fitted over u = log(1 + r T), the bend of log(1 + r s) over the range T of steps.
_BENDS = np.linspace(-8.0, 16.0, 241)
# A power law with a smaller bend equals the exponential, and its exponent is meaningless.
_STRAIGHT = 1e-4
_GOLDEN_STEPS = 60
_GOLDEN = (math.sqrt(5) - 1) / 2

SHAPES_SCHEMA = pa.schema(
    [
        pa.field("shape", pa.string(), nullable=False),
        pa.field("parameters", pa.int32(), nullable=False),
        pa.field("exponent", pa.float64()),
        pa.field("r_squared", pa.float64(), nullable=False),
        pa.field("aic", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class GrowthFit:
    """A fit. `rate` is exp(slope) of the least-squares line through log(norm): the factor of one step.

    `curvature` is c of the least-squares parabola a + b s + c s^2 through log(norm). `bend` is the change of the
    parabola's slope from the first step to the last, divided by the line's slope; 0 if that is 0. Intervals contain the
    middle CONFIDENCE of resamples; None without any. `fitted` is the line, as norms. `ratios` are those of each step.
    `shapes` has one row per shape, smallest `aic` first.
    """

    rate: float
    rate_interval: tuple[float, float] | None
    r_squared: float
    curvature: float
    curvature_interval: tuple[float, float] | None
    bend: float
    verdict: str
    fitted: Steps = field(compare=False)
    ratios: StepRatios = field(compare=False)
    shapes: pa.Table


def fit_steps(steps: Steps, norms: Steps, resampled: Resampled | None = None) -> GrowthFit:
    """Fits the growth. `steps` ascend, at least three; `norms` are positive; `resampled` has the norms of each
    bootstrap resample.

    The verdict is the first that applies. A step departs if its factor differs from that of the median step; see
    StepRatios.

    - none: the norms do not grow. They grow if the line does, by GROWTH_LEAST over all steps and with an interval of
      its rate above 1, or if the norms between any two points do, by GROWTH_LEAST and with a step that significantly
      grows;
    - irregular: the norms grow, but the line does not;
    - faster, slower: the rate changes. This needs all of: `bend` is at least BEND_LEAST in either direction; the
      interval of the curvature excludes 0; Akaike's criterion prefers the parabola to the line by AIC_COUNTS, or a
      power law by AIC_DECIDES; a curve explains R_SQUARED_LEAST of the variance of log(norm); and steps agree: no norm
      shrinks, and among those that depart, all with more than the median factor come after (or before) all with less;
    - slower: a norm that is linear in the step, or whose square is, is preferred to the exponential by AIC_DECIDES, the
      curvature is below 0, and curve and steps agree as above;
    - irregular: a step departs;
    - none: no curve explains R_SQUARED_LEAST;
    - exponential: it is preferred by AIC_COUNTS to the linear shapes;
    - none: otherwise, these steps cannot distinguish the shapes. With few layers, or little growth, all shapes look
      alike.

    R^2 of the line is not used, because it is high for other shapes, too. Independent writes of equal size, as an
    untrained pre-LN model adds them, make the square of the norm linear in the layer, and a line through the logarithm
    of that still has an R^2 of 0.953.

    Errors: BadRequest LAYER_OUT_OF_RANGE for fewer than three steps; ARGUMENT_INVALID for steps that do not ascend and
    for norms that have no logarithm.
    """
    _check(steps, norms)
    at, logs = steps - steps[0], np.log(norms)
    line, parabola = _least_squares(at, logs, 1), _least_squares(at, logs, 2)
    slopes, curvatures = _resampled_coefficients(at, resampled)
    ratios = step_ratios(at, logs, resampled)
    r_squared, bend = _explained(logs, line(at)), _bend(at, line.slope, parabola.curvature)
    shapes = [_shape(name, at, logs) for name in _SHAPES]
    fit = GrowthFit(
        rate=math.exp(line.slope),
        rate_interval=None if slopes is None else _interval(np.exp(slopes)),
        r_squared=r_squared,
        curvature=parabola.curvature,
        curvature_interval=None if curvatures is None else _interval(curvatures),
        bend=bend,
        verdict=NONE,
        fitted=np.exp(line(at)),
        ratios=ratios,
        shapes=_shape_table(shapes),
    )
    return _judged(fit, at, logs, parabola(at), {shape.name: shape.aic for shape in shapes})


def _check(steps: Steps, norms: Steps) -> None:
    if len(steps) < STEPS_MIN:
        raise BadRequest(
            f"growth over {len(steps)} steps cannot be fitted: it needs at least {STEPS_MIN}",
            reason="LAYER_OUT_OF_RANGE",
            field="steps",
            value=len(steps),
            allowed=f"at least {STEPS_MIN}",
        )
    if not bool((np.diff(steps) > 0).all()) or not bool(np.isfinite(steps).all()):
        raise BadRequest(
            "steps are not in ascending order", field="steps", value=steps.tolist(), allowed="ascending numbers"
        )
    if not bool(((norms > 0) & np.isfinite(norms)).all()):
        raise BadRequest(
            "a norm is 0, negative or not a number, and has no logarithm",
            field="norms",
            value=norms.tolist(),
            allowed="positive numbers",
        )


@dataclass(frozen=True)
class _Polynomial:
    """Least-squares coefficients, by increasing power of the step."""

    coefficients: Steps

    @property
    def slope(self) -> float:
        return float(self.coefficients[1])

    @property
    def curvature(self) -> float:
        return float(self.coefficients[2])

    def __call__(self, at: Steps) -> Steps:
        values: Steps = np.polynomial.polynomial.polyval(at, self.coefficients).astype(np.float64)
        return values


def _solver(at: Steps, degree: int) -> NDArray[np.float64]:
    """[coefficient, step]: the least-squares coefficients are the product of this and the values."""
    powers = np.vander(at / at[-1], degree + 1, increasing=True)
    solver: NDArray[np.float64] = np.linalg.pinv(powers) / at[-1] ** np.arange(degree + 1)[:, None]
    return solver


def _least_squares(at: Steps, logs: Steps, degree: int) -> _Polynomial:
    middle = _middle(logs)
    found = _solver(at, degree) @ (logs - middle)
    found[0] += middle[0]
    return _Polynomial(found)


def _middle(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over steps, the last axis, which stays. Of equal norms it is their log, so that they have a slope of
    exactly 0: a mean is rounded.
    """
    first = logs[..., :1]
    found: NDArray[np.float64] = np.where((logs == first).all(-1, keepdims=True), first, logs.mean(-1, keepdims=True))
    return found


def _resampled_coefficients(at: Steps, resampled: Resampled | None) -> tuple[Steps, Steps] | tuple[None, None]:
    """Slopes of lines and curvatures of parabolas, without resamples in which a step has no token."""
    logs = None if resampled is None else resampled.logs()
    if logs is None or not len(logs):
        return None, None
    logs -= _middle(logs)
    return logs @ _solver(at, 1)[1], logs @ _solver(at, 2)[2]


def _interval(values: Steps) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _explained(logs: Steps, fitted: Steps) -> float:
    """R^2; 1 if the norms do not vary."""
    if np.ptp(logs) == 0:
        return 1.0
    away = logs - logs.mean()
    return float(1 - ((logs - fitted) ** 2).sum() / (away @ away))


def _bend(at: Steps, slope: float, curvature: float) -> float:
    return 2 * curvature * float(at[-1]) / slope if slope else 0.0


def _judged(fit: GrowthFit, at: Steps, logs: Steps, parabola: Steps, aic: dict[str, float]) -> GrowthFit:
    low = fit.rate if fit.rate_interval is None else fit.rate_interval[0]
    straight, flat = aic["exponential"], min(aic["linear"], aic["square_root"])
    shaped = max(_explained(logs, parabola), *fit.shapes["r_squared"].to_pylist()) >= R_SQUARED_LEAST
    if not (low > 1 and fit.rate ** float(at[-1]) >= GROWTH_LEAST):
        rise = float((logs - np.minimum.accumulate(logs)).max())
        verdict = IRREGULAR if fit.ratios.climbs.any() and rise >= math.log(GROWTH_LEAST) else NONE
    elif shaped and _bent(fit, _aic(logs - parabola, 3), aic):
        verdict = FASTER if fit.curvature > 0 else SLOWER
    elif fit.ratios.departs.any():
        verdict = IRREGULAR
    else:
        verdict = EXPONENTIAL if shaped and straight <= flat - AIC_COUNTS else NONE
    return GrowthFit(**{**vars(fit), "verdict": verdict})


def _bent(fit: GrowthFit, parabola: float, aic: dict[str, float]) -> bool:
    """Whether the rate rises, or falls, throughout; `parabola` is its Akaike criterion."""
    straight, flat = aic["exponential"], min(aic["linear"], aic["square_root"])
    sure = fit.curvature_interval is None or fit.curvature_interval[0] * fit.curvature_interval[1] > 0
    curved = parabola <= straight - AIC_COUNTS or aic["power_law"] <= straight - AIC_DECIDES
    bends = abs(fit.bend) >= BEND_LEAST and curved
    flattens = flat <= straight - AIC_DECIDES and fit.curvature < 0
    steady = fit.ratios.rising if fit.curvature > 0 else fit.ratios.falling
    return sure and (bends or flattens) and steady


@dataclass(frozen=True)
class _Shape:
    """`exponent` is p of norm = a (1 + r s)^p; None for the exponential, its limit."""

    name: str
    parameters: int
    exponent: float | None
    r_squared: float
    aic: float


# Fixed exponents; the power law's is fitted.
_SHAPES: dict[str, float | None] = {"exponential": None, "square_root": 0.5, "linear": 1.0, "power_law": None}


def _shape(name: str, at: Steps, logs: Steps) -> _Shape:
    """Errors are those of the logarithm of the norm, all of one size."""
    if name == "exponential":
        residual, exponent, parameters = logs - _least_squares(at, logs, 1)(at), None, 2
    elif name == "power_law":
        bend = _least(lambda u: float((_power_law(at, logs, u)[0] ** 2).sum()), _BENDS)
        (residual, exponent), parameters = _power_law(at, logs, bend), 3
    else:
        given = _SHAPES[name]
        assert given is not None  # noqa: S101
        bend = _least(lambda u: float((_given_power(at, logs, u, given) ** 2).sum()), _BENDS)
        residual, exponent, parameters = _given_power(at, logs, bend, given), given, 2
    return _Shape(name, parameters, exponent, _explained(logs, logs - residual), _aic(residual, parameters))


def _stretched(at: Steps, u: float) -> Steps:
    """log(1 + r s) for the r of this u = log(1 + r T); from 0 to u."""
    along: Steps = np.log1p(np.expm1(u) * at / at[-1])
    return along


def _given_power(at: Steps, logs: Steps, u: float, exponent: float) -> Steps:
    """Residual of log(norm) = log a + p log(1 + r s), with the best a."""
    left = logs - exponent * _stretched(at, u)
    residual: Steps = left - left.mean()
    return residual


def _power_law(at: Steps, logs: Steps, u: float) -> tuple[Steps, float | None]:
    """Residual with the best a and p, and that p."""
    straight = abs(u) < _STRAIGHT
    along = at / at[-1] if straight else _stretched(at, u) / u
    line = _least_squares(along, logs, 1)
    return logs - line(along), None if straight else line.slope / u


def _least(loss: Callable[[float], float], grid: Steps) -> float:
    """The minimum: the best of a grid, or of golden-section search between its neighbors. Search ends at the edge of a
    flat part, which may be a jump.
    """
    best = int(np.argmin([loss(float(u)) for u in grid]))
    low, high = float(grid[max(0, best - 1)]), float(grid[min(len(grid) - 1, best + 1)])
    for _ in range(_GOLDEN_STEPS):
        width = _GOLDEN * (high - low)
        left, right = high - width, low + width
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return min(float(grid[best]), (low + high) / 2, key=loss)


def _aic(residual: Steps, parameters: int) -> float:
    """Akaike's criterion with Gaussian errors, n log(RSS / n) + 2 k, where k includes their variance."""
    mean_square = max(float((residual**2).mean()), _ROUNDING**2)
    return len(residual) * math.log(mean_square) + 2 * (parameters + 1)


def _shape_table(shapes: list[_Shape]) -> pa.Table:
    rows = sorted(shapes, key=lambda shape: shape.aic)
    named = [{"shape" if key == "name" else key: value for key, value in vars(row).items()} for row in rows]
    return pa.Table.from_pylist(named, SHAPES_SCHEMA)
