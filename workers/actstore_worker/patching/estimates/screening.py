"""Selects the cells of a grid with the largest estimates for computation, and measures how good the estimates were."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Screened:
    """The selection for one direction: the computed cells, by index in the grid, and estimates [pair, cell] of the
    change of the logit difference; None if every cell is computed.
    """

    exact: npt.NDArray[np.intp]
    estimates: Values | None = None


def choose_cells(estimates: Values, unchanged: npt.NDArray[np.bool_], count: int) -> Screened:
    """Returns the `count` cells with the largest mean of |estimate| over pairs, the same for each pair, in order of the
    grid, and those that are `unchanged` in every pair, which cost nothing. Both arguments are [pair, cell].
    """
    free = unchanged.all(axis=0)
    size = np.where(free, -1.0, np.abs(estimates).mean(axis=0))
    # Ties are resolved in order, so that the same request has the same answer.
    chosen = np.argsort(-size, kind="stable")[: min(count, int((~free).sum()))]
    return Screened(np.union1d(chosen, np.flatnonzero(free)), estimates)


def exact_count(unchanged: npt.NDArray[np.bool_], count: int) -> int:
    """Returns how many cells `choose_cells` will choose."""
    free = int(unchanged.all(axis=0).sum())
    return free + min(count, int(unchanged.shape[1]) - free)


def rank_agreement(pairs: Sequence[tuple[Values, Values]]) -> float | None:
    """Spearman's rank correlation of |estimate| and |effect|, averaged over `pairs` of them. None if no pair has two
    different numbers on both sides.

    Spearman 1904: Pearson's correlation of ranks; ties have the mean of their ranks.
    """
    found = []
    for estimate, effect in pairs:
        ranks = [_ranks(np.abs(values)) for values in (estimate, effect)]
        if all(len(values) and np.ptp(values) > 0 for values in ranks):
            left, right = (values - values.mean() for values in ranks)
            found.append(float(left @ right / np.sqrt((left @ left) * (right @ right))))
    return float(np.mean(found)) if found else None


def _ranks(values: Values) -> Values:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Values = (last - (counts - 1) / 2)[place]
    return ranks
