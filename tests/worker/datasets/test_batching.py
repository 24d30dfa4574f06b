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
