"""A feature's activations in order of strength, reading no more of them than a question needs.

Activations are in several lists, each sorted: one for each segment of the index and token class. A rank over all of
them is found by bisection, so that k of them cost about k reads instead of reading everything.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from actstore_storage.features.entries import Entries

Ranks = Sequence[int] | npt.NDArray[np.int64]
# If there are fewer activations, all are read if some are needed by rank: four row groups of a segment.
FEW = 16_384


class SortedList(Protocol):
    """Activations of a feature on tokens of one class, from one place. The strongest come first, ties by sequence, then
    position. `maximum` may be known without a read.
    """

    @property
    def count(self) -> int: ...

    @property
    def maximum(self) -> float: ...

    def at(self, place: int) -> float:
        """The activation at this index."""

    def above(self, value: float) -> int:
        """How many are greater than `value`."""

    def at_least(self, value: float) -> int: ...

    def read(self, first: int, last: int) -> Entries:
        """Returns those from `first` to `last` (exclusive)."""


class LoadedList:
    """Entries in memory, in order."""

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
    """A feature's activations from several lists as one list: rank 0 is the strongest, ties by sequence,
    then position.
    """

    def __init__(self, lists: Sequence[SortedList]) -> None:
        self._lists = sorted((each for each in lists if each.count), key=lambda each: -each.maximum)
        self.total = sum(each.count for each in self._lists)
        self.maximum = self._lists[0].maximum if self._lists else 0.0

    def above(self, value: float) -> int:
        """How many are greater than `value`."""
        return sum(each.above(value) for each in self._lists)

    def head(self, count: int) -> Entries:
        """The strongest, in order."""
        best = Entries.concatenated([])
        for each in self._lists:
            if len(best) == count and each.maximum < best.activation[-1]:
                break  # no later list has anything stronger
            best = Entries.concatenated([best, each.read(0, min(count, each.count))]).in_order().take(slice(count))
        return best

    def all(self) -> Entries:
        return Entries.concatenated([each.read(0, each.count) for each in self._lists]).in_order()

    def at_ranks(self, ranks: Ranks) -> Entries:
        """Those with these ranks, in the order of the ranks. Errors: IndexError for a rank that does not exist."""
        if len(ranks) and not 0 <= min(ranks) <= max(ranks) < self.total:
            raise IndexError(ranks)
        if self.total <= FEW:
            return self.all().take(np.asarray(ranks, np.int64))
        return Entries.concatenated([self._at_rank(int(rank)) for rank in ranks])

    def chunks(self, threshold: float, size: int) -> Iterator[Entries]:
        """Those greater than `threshold`, strongest first, in chunks of about `size`: ties stay together."""
        wanted = self.above(threshold)
        done, read = [0] * len(self._lists), 0
        while read < wanted:
            value = self._value(min(wanted, read + size) - 1)
            ends = [each.at_least(value) for each in self._lists]
            parts = [each.read(*ends) for each, *ends in zip(self._lists, done, ends, strict=True)]
            done, read = ends, sum(ends)
            yield Entries.concatenated(parts).in_order()

    def _at_rank(self, rank: int) -> Entries:
        if len(self._lists) == 1:
            return self._lists[0].read(rank, rank + 1)
        value = self._value(rank)
        ties = [each.read(each.above(value), each.at_least(value)) for each in self._lists]
        place = rank - self.above(value)
        return Entries.concatenated(ties).in_order().take(slice(place, place + 1))

    def _value(self, rank: int) -> float:
        """The activation with that rank. Bits of positive floats ascend with their values, so their integers can be
        bisected.
        """
        if len(self._lists) == 1:
            return self._lists[0].at(rank)
        low, high = 0, int(np.float32(self.maximum).view(np.uint32))
        while low < high:  # the largest value that more than `rank` activations reach
            middle = (low + high + 1) // 2
            value = _float(middle)
            if sum(each.at_least(value) for each in self._lists) > rank:
                low = middle
            else:
                high = middle - 1
        return _float(low)


def _float(bits: int) -> float:
    return float(np.uint32(bits).view(np.float32))


def places_above(activation: npt.NDArray[np.float32], value: float) -> int:
    """Counts the activations, in descending order, above a value. Compared as float64: float32 would round `value`."""
    return bisect_left(activation, -value, key=lambda one: -float(one))


def places_at_least(activation: npt.NDArray[np.float32], value: float) -> int:
    """Counts the activations, in descending order, that are at least a value."""
    return bisect_right(activation, -value, key=lambda one: -float(one))
