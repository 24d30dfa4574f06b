"""Which of a feature's activations are chosen, without a store: of lists in memory, against a slow choice."""

from dataclasses import replace

import numpy as np
import pytest

from actstore_storage.features.entries import Entries
from actstore_storage.features.ranking import LoadedList, Ranking
from actstore_storage.features.sampling import METHODS, Sample, sampled, strongest
from tests.storage.feature_twins import Entry, slow_sample


def feature(seed: int, rows: int) -> Entries:
    """Activations of few values, so that many tie; a few to a sequence."""
    rng = np.random.default_rng(seed)
    sequence = np.sort(rng.integers(0, 1 + rows // 3, rows))
    return Entries(
        (rng.integers(1, 12, rows) / 7).astype(np.float32),
        sequence,
        np.arange(rows, dtype=np.int32),
        sequence // 2,
        rng.integers(0, 9, rows).astype(np.int32),
        np.zeros(rows, np.uint8),
    ).in_order()


def dealt(entries: Entries, lists: int) -> Ranking:
    home = np.arange(len(entries)) % lists
    return Ranking([LoadedList(entries.take(home == number)) for number in range(lists)])


def rows_of(entries: Entries) -> list[Entry]:
    return list(zip(entries.activation.tolist(), entries.sequence.tolist(), entries.position.tolist(), strict=True))


@pytest.mark.parametrize("rows", [0, 1, 2, 9, 70])
@pytest.mark.parametrize("method", METHODS[:-1])
def test_what_is_chosen_is_what_a_slow_choice_finds(method: str, rows: int) -> None:
    entries = feature(rows, rows)
    for k, bins, threshold in ((1, 1, 0.0), (2, 3, 1.0), (7, 5, float(np.float32(4 / 7))), (100, 4, 5.0)):
        sample = Sample(method, k=k, bins=bins, threshold=threshold, seed=k)
        assert rows_of(sampled(dealt(entries, 3), sample)) == slow_sample(rows_of(entries), sample)


def test_each_seed_has_its_own_choice() -> None:
    ranking = dealt(feature(1, 70), 2)
    for method in ("range", "quantile", "activating"):
        assert len({tuple(rows_of(sampled(ranking, Sample(method, k=5, bins=3, seed=n)))) for n in range(20)}) > 15


class CountedHeads(Ranking):
    """Says how many of the strongest were asked for."""

    def __init__(self, entries: Entries) -> None:
        super().__init__([LoadedList(entries.in_order())])
        self.asked: list[int] = []

    def head(self, count: int) -> Entries:
        self.asked.append(count)
        return super().head(count)


def test_the_strongest_are_found_without_a_look_at_all_where_they_lie_in_many_sequences() -> None:
    entries = feature(2, 70)
    apart = CountedHeads(replace(entries, sequence=np.arange(70)))
    assert rows_of(strongest(apart, 5)) == rows_of(apart.all())[:5]
    assert apart.asked == [10]
    together = CountedHeads(replace(entries, sequence=np.zeros(70, np.int64)))
    assert rows_of(strongest(together, 5)) == rows_of(together.all())[:1]
    assert together.asked == [10, 40, 160]
    few = CountedHeads(replace(feature(2, 10), sequence=np.zeros(10, np.int64)))
    assert len(strongest(few, 5)) == 1
    assert few.asked == [10]
