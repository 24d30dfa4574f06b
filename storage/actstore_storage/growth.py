"""How fast norms grow."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actstore_storage.errors import BadRequest
from actstore_storage.exclusion import DEFAULT_EXCLUSION
from actstore_storage.norms import merged_moments, nothing_left, stored_sites, unknown_site
from actstore_storage.sites import Site
from actstore_storage.snapshot import Snapshot

GROWTH_LAYERS_MIN = 3


@dataclass(frozen=True)
class Growth:
    """A least-squares line through log(mean norm) over the layer. `rate` is exp(slope): the factor of one layer.

    `points` has columns layer, mean, fitted, ratio (to the layer before; null where that is not in the fit).
    """

    site: str
    first_layer: int
    last_layer: int
    rate: float
    r_squared: float
    points: pa.Table


def fit_growth(
    snapshot: Snapshot,
    *,
    site: str = "resid_post",
    layers: tuple[int, int] | None = None,
    exclude: frozenset[str] = DEFAULT_EXCLUSION,
) -> Growth:
    """`layers`: the first and the last one of the fit, both included; at least three."""
    chosen = _growth_layers(snapshot, site, layers)
    numbers = [place.layer for place in chosen]
    means = np.array([merged_moments(snapshot, place, exclude).mean for place in chosen])
    if (means <= 0).any():
        layer = numbers[int(np.argmin(means))]
        raise nothing_left(f"the mean norm of {site}.{layer} is 0, which has no logarithm", exclude)
    slope, intercept, r_squared = _fit_line(np.array(numbers, np.float64), np.log(means))
    before = dict(zip(numbers, means, strict=True))
    points = {
        "layer": pa.array(numbers, pa.int32()),
        "mean": pa.array(means),
        "fitted": pa.array(np.exp(intercept + slope * np.array(numbers))),
        "ratio": pa.array(
            [mean / before[n - 1] if n - 1 in before else None for n, mean in before.items()], pa.float64()
        ),
    }
    return Growth(site, numbers[0], numbers[-1], math.exp(slope), r_squared, pa.table(points))


def _fit_line(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Slope, intercept and R^2 of the ordinary least-squares line; R^2 is 1 where y does not vary."""
    away, rise = x - x.mean(), y - y.mean()
    slope = float(away @ rise / (away @ away))
    intercept = float(y.mean() - slope * x.mean())
    if np.ptp(y) == 0:
        return slope, intercept, 1.0
    residual = rise - slope * away
    return slope, intercept, float(1 - residual @ residual / (rise @ rise))


def _growth_layers(snapshot: Snapshot, kind: str, layers: tuple[int, int] | None) -> list[Site]:
    stored = stored_sites(snapshot)
    of_kind = [site for site in stored if site.kind == kind]
    if not of_kind:
        raise unknown_site(snapshot, kind, sorted({site.kind for site in stored}))
    have = [site.layer for site in of_kind]
    first, last = layers or (have[0], have[-1])
    chosen = [site for site in of_kind if first <= site.layer <= last]
    if first not in have or last not in have or len(chosen) < GROWTH_LAYERS_MIN:
        raise BadRequest(
            f"layers {first} to {last} of {kind} cannot be fitted: a line needs at least {GROWTH_LAYERS_MIN} layers "
            f"that run {snapshot.record.run} has norms of",
            reason="LAYER_OUT_OF_RANGE",
            field="layers",
            value=f"{first} to {last}",
            allowed=f"at least {GROWTH_LAYERS_MIN} of {', '.join(map(str, have))}",
        )
    return chosen
