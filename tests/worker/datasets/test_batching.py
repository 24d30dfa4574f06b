"""Which sequences share a batch, and a row of it. That every token comes back is tested where products are."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from actstore_worker.datasets.batching import packed, windows
from actstore_worker.datasets.sequences import TokenSequences

ROW_TOKENS = 12
LENGTHS = st.lists(st.integers(1, ROW_TOKENS), min_size=1, max_size=40)


def sequences(lengths: list[int]) -> TokenSequences:
    count = sum(lengths)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    numbers = 100 + np.arange(len(lengths))
    return TokenSequences(np.arange(1, count + 1, dtype=np.int32), offsets, numbers // 3, numbers)


def test_sequences_in_order_are_written_batch_by_batch() -> None:
    found = list(windows(sequences([5] * 7), 6, 2, None))
    assert [(len(one.batches), len(one.sequences)) for one in found] == [(1, 2), (1, 2), (1, 2), (1, 1)]


def test_sorting_wastes_less_on_padding() -> None:
    (one,) = windows(sequences([1, 12] * 8), 16, 8, None)
    assert [batch.ids.size for batch in one.batches] == [8 * 12, 8]


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS)
def test_rows_are_packed_by_first_fit_decreasing(lengths: list[int]) -> None:
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):  # slow and obvious
        fitting = [row for row in rows if sum(lengths[other] for other in row) + lengths[index] <= ROW_TOKENS]
        fitting[0].append(index) if fitting else rows.append([index])
    assert packed(np.array(lengths), ROW_TOKENS) == rows


def test_a_packed_row_holds_several_sequences_each_counted_from_its_own_beginning() -> None:
    """Padding counts by column: every model has an embedding of that."""
    (one,) = windows(sequences([4, 2, 3]), 3, 2, 6)
    (batch,) = one.batches
    assert batch.ids.tolist() == [[1, 2, 3, 4, 5, 6], [7, 8, 9, 0, 0, 0]]
    assert batch.inside.tolist() == [[True] * 6, [True] * 3 + [False] * 3]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 4, 5]]
    assert batch.rows.tolist() == list(range(9))


def test_a_row_of_one_sequence_needs_no_positions() -> None:
    (one,) = windows(sequences([2, 4]), 2, 2, None)
    (batch,) = one.batches
    assert batch.ids.tolist() == [[3, 4, 5, 6], [1, 2, 0, 0]]
    assert batch.position_ids is None
    assert batch.rows.tolist() == [2, 3, 4, 5, 0, 1]


def test_packed_rows_that_lie_in_order_are_written_batch_by_batch() -> None:
    found = list(windows(sequences([6, 5, 4, 3]), 4, 1, 7))
    assert [one.sequences.numbers.tolist() for one in found] == [[100], [101], [102, 103]]
    assert [one.batches[0].ids.shape for one in found] == [(1, 6), (1, 5), (1, 7)]
