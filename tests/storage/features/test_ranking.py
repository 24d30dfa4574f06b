"""Ranks over several sorted runs, against one sorted list; whether few are ranked, and all are read, or many."""

from collections.abc import Sequence

import numpy as np
import pytest

from actstore_storage.features import ranking
from actstore_storage.features.entries import Entries
from actstore_storage.features.ranking import LoadedList, Ranking, places_above, places_at_least

Row = tuple[float, int, int]


def entries(rows: Sequence[Row]) -> Entries:
    activation, sequence, position = (np.array(column) for column in zip(*rows, strict=True))
    nothing = np.zeros(len(rows), np.int64)
    return Entries(
        activation.astype(np.float32),
        sequence.astype(np.int64),
        position.astype(np.int32),
        nothing,
        nothing.astype(np.int32),
        nothing.astype(np.uint8),
    )


def rows_of(found: Entries) -> list[Row]:
    return list(
        zip(found.activation.tolist(), found.sequence.tolist(), found.position.tolist(), strict=True),
    )


class CountedRun(LoadedList):
    """Says how much of it was read."""

    rows_read = 0

    def read(self, first: int, last: int) -> Entries:
        self.rows_read += last - first
        return super().read(first, last)


def split(seed: int, runs: int) -> tuple[list[Row], list[CountedRun]]:
    """All in order, and the runs among which they are dealt; values are few, so that many tie over runs."""
    rng = np.random.default_rng(seed)
    values = rng.choice(np.array([0.25, 0.5, 1.5, 1.75, 1e-40, 3e38], np.float32), 60)
    rows = [(float(value), number // 4, number % 4) for number, value in enumerate(values)]
    rows.sort(key=lambda row: (-row[0], row[1], row[2]))
    home = rng.integers(0, runs, len(rows))
    dealt = [[row for row, run in zip(rows, home, strict=True) if run == place] for place in range(runs)]
    return rows, [CountedRun(entries(each)) for each in dealt if each]


@pytest.fixture(params=[0, 1 << 14], ids=["many", "few"])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "FEW", request.param)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("runs", [1, 2, 5])
def test_ranks_are_places_in_one_sorted_list(runs: int) -> None:
    for seed in range(5):
        rows, parts = split(seed, runs)
        found = Ranking(parts)
        assert (found.total, found.maximum) == (60, rows[0][0])
        assert rows_of(found.all()) == rows
        for count in (1, 2, 7, 59, 60, 100):
            assert rows_of(found.head(count)) == rows[:count]
        ranks = [5, 0, 59, 5, 33]
        assert rows_of(found.at_ranks(ranks)) == [rows[rank] for rank in ranks]
        for rank in range(60):
            assert rows_of(found.at_ranks([rank])) == [rows[rank]]


@pytest.mark.parametrize("runs", [1, 2, 5])
def test_chunks_are_what_lies_above_a_threshold_with_ties_together(runs: int) -> None:
    rows, parts = split(runs, runs)
    for threshold in (0.0, 0.25, 0.4, 1.75, 3e38):
        above = [row for row in rows if row[0] > threshold]
        assert Ranking(parts).above(threshold) == len(above)
        for size in (1, 7, 1000):
            chunks = [rows_of(chunk) for chunk in Ranking(parts).chunks(threshold, size)]
            assert [row for chunk in chunks for row in chunk] == above
            values = [{row[0] for row in chunk} for chunk in chunks]
            assert sum(map(len, values)) == len(set().union(*values))  # no value in two
            assert all(len(chunk) >= size for chunk in chunks[:-1])
            assert all(sum(row[0] > chunk[-1][0] for row in chunk) < size for chunk in chunks)


def test_little_is_read_of_many() -> None:
    """Of runs that hold nothing strong enough nothing; and by rank the ties of one value."""
    strong = CountedRun(entries([(9.0 - number / 100, number, 0) for number in range(100)]))
    weak = CountedRun(entries([(1.0 - number / 1000, number, 1) for number in range(100)]))
    assert len(Ranking([weak, strong]).head(10)) == 10
    assert (strong.rows_read, weak.rows_read) == (10, 0)


def test_little_is_read_by_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "FEW", 0)
    rows, parts = split(0, 3)
    Ranking(parts).at_ranks([10])
    assert sum(part.rows_read for part in parts) == sum(row[0] == rows[10][0] for row in rows)


@pytest.mark.parametrize("few", [59, 60])
def test_of_few_all_are_read_at_once(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "FEW", few)
    _, parts = split(0, 3)
    Ranking(parts).at_ranks([10])
    assert (sum(part.rows_read for part in parts) == 60) == (few == 60)


@pytest.mark.parametrize("runs", [1, 3])
def test_chunks_of_values_that_do_not_tie_are_of_the_size_that_was_asked_for(runs: int) -> None:
    rows = [(float(10 - number), number, 0) for number in range(10)]
    found = Ranking([LoadedList(entries(rows[place::runs])) for place in range(runs)])
    for threshold, sizes in ((0.0, [3, 3, 3, 1]), (4.0, [3, 3]), (9.0, [1]), (10.0, [])):
        assert [len(chunk) for chunk in found.chunks(threshold, 3)] == sizes


def test_nothing_has_no_ranks() -> None:
    for found in (Ranking([]), Ranking([LoadedList(Entries.concatenated([]))])):
        assert (found.total, found.maximum, found.above(0.0)) == (0, 0.0, 0)
        assert len(found.all()) == len(found.head(3)) == len(found.at_ranks([])) == 0
        assert list(found.chunks(0.0, 5)) == []


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("ranks", [[-1], [60], [0, 60], [-1, 3]])
def test_a_rank_that_there_is_not(ranks: list[int]) -> None:
    with pytest.raises(IndexError):
        Ranking(split(0, 2)[1]).at_ranks(ranks)


def test_values_are_compared_as_they_are_and_not_rounded() -> None:
    """0.1 lies between two neighbours of float32, of which one is its rounding."""
    activation = np.array([0.5, 0.1, 0.05], np.float32)
    stored = float(np.float32(0.1))
    assert stored > 0.1
    assert (places_above(activation, 0.1), places_at_least(activation, 0.1)) == (2, 2)
    assert (places_above(activation, stored), places_at_least(activation, stored)) == (1, 2)
