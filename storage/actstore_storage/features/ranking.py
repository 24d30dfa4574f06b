"""A feature's activations in order of strength, without reading more of them than a question needs.

Activations lie in several runs, each sorted: one a segment of the index and token class. A rank over all of them is
found by bisection, so that asking for k of them costs about k reads and not the corpus.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from actstore_storage.features.entries import Entries

Ranks = Sequence[int] | npt.NDArray[np.int64]
# Of fewer, all are read where some are wanted by rank: four row groups of a segment, side by side.
FEW = 16_384


class SortedRun(Protocol):
    """Strongest first, ties by sequence, then position. `maximum` may be known without a read."""

    @property
    def count(self) -> int: ...

    @property
    def maximum(self) -> float: ...

    def at(self, place: int) -> float:
        """The activation there."""

    def above(self, value: float) -> int:
        """How many are greater than `value`."""

    def at_least(self, value: float) -> int: ...

    def read(self, first: int, last: int) -> Entries:
        """From `first` to before `last`."""


class LoadedRun:
    """Entries in memory; they are in order."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self.count = len(entries)
        self.maximum = float(entries.activation[0]) if self.count else 0.0

    def at(self, place: int) -> float:
        return float(self._entries.activation[place])

    def above(self, value: float) -> int:
        return places_above(self._entries.activation, value)

    def at_least(self, value: float) -> int:
        return places_at_least(self._entries.activation, value)

    def read(self, first: int, last: int) -> Entries:
        return self._entries.take(slice(first, last))


class Ranking:
    """All of them: rank 0 is the strongest, ties by sequence, then position."""

    def __init__(self, runs: Sequence[SortedRun]) -> None:
        self._runs = sorted((run for run in runs if run.count), key=lambda run: -run.maximum)
        self.total = sum(run.count for run in self._runs)
        self.maximum = self._runs[0].maximum if self._runs else 0.0

    def above(self, value: float) -> int:
        """How many are greater than `value`."""
        return sum(run.above(value) for run in self._runs)

    def head(self, count: int) -> Entries:
        """The strongest, in order."""
        best = Entries.concatenated([])
        for run in self._runs:
            if len(best) == count and run.maximum < best.activation[-1]:
                break  # no run that follows has anything stronger
            best = Entries.concatenated([best, run.read(0, min(count, run.count))]).in_order().take(slice(count))
        return best

    def all(self) -> Entries:
        return Entries.concatenated([run.read(0, run.count) for run in self._runs]).in_order()

    def at_ranks(self, ranks: Ranks) -> Entries:
        """Those of these ranks, in the ranks' order. Errors: IndexError for a rank that there is not."""
        if len(ranks) and not 0 <= min(ranks) <= max(ranks) < self.total:
            raise IndexError(ranks)
        if self.total <= FEW:
            return self.all().take(np.asarray(ranks, np.int64))
        return Entries.concatenated([self._at_rank(int(rank)) for rank in ranks])

    def chunks(self, threshold: float, size: int) -> Iterator[Entries]:
        """Those greater than `threshold`, strongest first, in chunks of about `size`: ties stay together."""
        wanted = self.above(threshold)
        done, read = [0] * len(self._runs), 0
        while read < wanted:
            value = self._value(min(wanted, read + size) - 1)
            ends = [run.at_least(value) for run in self._runs]
            parts = [run.read(*ends) for run, *ends in zip(self._runs, done, ends, strict=True)]
            done, read = ends, sum(ends)
            yield Entries.concatenated(parts).in_order()

    def _at_rank(self, rank: int) -> Entries:
        if len(self._runs) == 1:
            return self._runs[0].read(rank, rank + 1)
        value = self._value(rank)
        ties = [run.read(run.above(value), run.at_least(value)) for run in self._runs]
        place = rank - self.above(value)
        return Entries.concatenated(ties).in_order().take(slice(place, place + 1))

    def _value(self, rank: int) -> float:
        """The activation of that rank. Bits of positive floats ascend with their values, so their integers bisect."""
        if len(self._runs) == 1:
            return self._runs[0].at(rank)
        low, high = 0, int(np.float32(self.maximum).view(np.uint32))
        while low < high:  # the largest value of which there are more than `rank` at least as large
            middle = (low + high + 1) // 2
            value = _float(middle)
            if sum(run.at_least(value) for run in self._runs) > rank:
                low = middle
            else:
                high = middle - 1
        return _float(low)


def _float(bits: int) -> float:
    return float(np.uint32(bits).view(np.float32))


def places_above(activation: npt.NDArray[np.float32], value: float) -> int:
    """In descending order, how many are greater. Compared as float64: float32 would round `value` first."""
    return bisect_left(activation, -value, key=lambda one: -float(one))


def places_at_least(activation: npt.NDArray[np.float32], value: float) -> int:
    return bisect_right(activation, -value, key=lambda one: -float(one))
