"""Statistics of numbers that can be merged: count, mean, variance, extremes, geometric mean."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# Values in float64 that fit into a core's cache for all sums.
_CHUNK_BYTES = 1 << 19
# Values of a dot product for which OpenBLAS starts no threads. Those only wait for each other where other work uses the
# cores, up to ten times as long, and the last bits of a sum depend on their number.
_DOT_VALUES = 8192


@dataclass(frozen=True)
class Moments:
    """Statistics that can be merged. `m2` is the sum of squared distances from the mean; `log_sum` is minus infinity if
    a number is not above 0.
    """

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    minimum: float = math.inf
    maximum: float = -math.inf
    log_sum: float = 0.0

    @classmethod
    def of(cls, values: npt.NDArray[np.floating[Any]]) -> "Moments":
        return cls.of_rows(values[None])[0] if values.size else cls()

    @classmethod
    def of_rows(cls, values: npt.NDArray[np.floating[Any]]) -> list["Moments"]:
        """The moments of each row of [row, value], with at least one value."""
        found: list[Moments] = []
        rows = max(1, _CHUNK_BYTES // (8 * values.shape[1]))
        for first in range(0, len(values), rows):
            wide = values[first : first + rows].astype(np.float64)
            mean, minimum, maximum = wide.mean(axis=1), wide.min(axis=1), wide.max(axis=1)
            above = minimum > 0
            log_sum = np.full(len(wide), -np.inf)  # the geometric mean with a 0 is 0
            log_sum[above] = _sum_of_logs(wide if above.all() else wide[above], values.dtype)
            wide -= mean[:, None]
            columns = (mean, _sum_of_squares(wide), minimum, maximum, log_sum)
            found += [cls(wide.shape[1], *row) for row in zip(*(one.tolist() for one in columns), strict=True)]
        return found

    def merge(self, other: "Moments") -> "Moments":
        """Chan, Golub & LeVeque (1983), "Algorithms for computing the sample variance", equations 2.1."""
        count = self.count + other.count
        if not count:
            return self
        delta = other.mean - self.mean
        return Moments(
            count,
            self.mean + delta * other.count / count,
            self.m2 + other.m2 + delta * delta * self.count * other.count / count,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
            self.log_sum + other.log_sum,
        )

    def over(self, divisor: float) -> "Moments":
        """The moments of the numbers divided by a positive one."""
        return Moments(
            self.count,
            self.mean / divisor,
            self.m2 / divisor**2,
            self.minimum / divisor,
            self.maximum / divisor,
            self.log_sum - self.count * math.log(divisor),
        )

    @property
    def variance(self) -> float:
        """The population variance; 0 without numbers."""
        return self.m2 / self.count if self.count else 0.0

    @property
    def standard_deviation(self) -> float:
        return math.sqrt(self.variance)

    @property
    def geometric_mean(self) -> float:
        return math.exp(self.log_sum / self.count) if self.count else 0.0


def _sum_of_logs(rows: npt.NDArray[np.float64], source: np.dtype[Any]) -> npt.NDArray[np.float64]:
    """Of values above 0. Four float32 are multiplied first: their product is within float64's range, and each logarithm
    takes as long as six other steps of the moments together.
    """
    if source == np.float64:
        logs: npt.NDArray[np.float64] = np.log(rows).sum(axis=1)
        return logs
    fours = rows.shape[1] // 4
    head = rows[:, : 4 * fours]
    products = head[:, :fours] * head[:, fours : 2 * fours]
    products *= head[:, 2 * fours : 3 * fours]
    products *= head[:, 3 * fours :]
    found: npt.NDArray[np.float64] = np.log(products).sum(axis=1) + np.log(rows[:, 4 * fours :]).sum(axis=1)
    return found


def _sum_of_squares(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    starts = range(0, rows.shape[1], _DOT_VALUES)
    found = [np.vecdot(part, part) for part in (rows[:, first : first + _DOT_VALUES] for first in starts)]
    total: npt.NDArray[np.float64] = np.sum(found, axis=0)
    return total


# By name of statistics, then by token class; classes without a number are left out.
NormMoments = Mapping[str, Mapping[str, Moments]]


def fields_of_moments(moments: NormMoments) -> dict[str, dict[str, dict[str, Any]]]:
    """Turns moments into the fields of a record. JSON has no infinity: a `log_sum` of minus infinity is null."""
    return {name: {kept: _fields(one) for kept, one in classes.items()} for name, classes in moments.items()}


def restore_infinities(fields: Mapping[str, Mapping[str, dict[str, Any]]]) -> None:
    """Replaces null by minus infinity, the reverse of `fields_of_moments`."""
    for classes in fields.values():
        for moments in classes.values():
            if moments["log_sum"] is None:
                moments["log_sum"] = -math.inf


def _fields(moments: Moments) -> dict[str, Any]:
    fields = vars(moments)
    return fields | {"log_sum": None} if math.isinf(fields["log_sum"]) else fields
