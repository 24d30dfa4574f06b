"""Decides which sequences run through the model together, so that little is padded.

Sequences of a window are sorted by length and cut into batches of similar length, or packed several to a row. Outputs
are put back into the order of the dataset; if that is their order already, nothing is moved.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import NDArray

from actstore_worker.datasets.sequences import TokenSequences


@dataclass(frozen=True)
class Batch:
    """Sequences, each in a part of a row, in order of row and place.

    `rows` are the indices of the batch's tokens among the window's token rows, in order: `ids[inside]` is the window's
    `tokens[rows]`. `position_ids` are given only if a row may hold several sequences; positions of each start at 0.
    """

    sequences: TokenSequences
    rows: Int[NDArray[np.int64], " token"]
    ids: Int[NDArray[np.int64], "batch position"]
    inside: Bool[NDArray[np.bool_], "batch position"]
    position_ids: Int[NDArray[np.int64], "batch position"] | None = None


@dataclass(frozen=True)
class Window:
    """Consecutive sequences that are written together, and the batches in which they run."""

    sequences: TokenSequences
    batches: tuple[Batch, ...]


def windows(sequences: TokenSequences, window_size: int, batch_size: int, row_tokens: int | None) -> Iterator[Window]:
    """Yields windows of this many sequences, in batches of this many rows; with `row_tokens`, rows are packed up to
    that.
    """
    for window in sequences.batches(window_size):
        lengths = window.lengths
        if row_tokens is None:
            order = np.argsort(-lengths, kind="stable")
            bins = [[int(index)] for index in order]
        else:
            bins = packed(lengths, row_tokens)
            order = np.array([index for row in bins for index in row])
        if (np.diff(order) > 0).all():  # in the dataset's order, so each batch can be written as soon as it is ready
            for first in range(0, len(bins), batch_size):
                part = bins[first : first + batch_size]
                alone = window.slice(part[0][0], part[-1][-1] + 1)
                shifted = [[index - part[0][0] for index in row] for row in part]
                yield Window(alone, (_batch(alone, shifted, row_tokens is not None),))
        else:
            parts = [bins[first : first + batch_size] for first in range(0, len(bins), batch_size)]
            yield Window(window, tuple(_batch(window, part, row_tokens is not None) for part in parts))


def by_length(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Indices of texts grouped by similar length: groups of at most this many tokens, padding included, or
    of one text.
    """
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and (len(group) + 1) * lengths[index] > tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def packed(lengths: Int[NDArray[np.int64], " sequence"], row_tokens: int) -> list[list[int]]:
    """Returns which sequences share a row: each, the longest first, goes into the first row with room for it.

    First fit decreasing needs at most 11/9 of the smallest number of rows, plus one (Johnson et al. 1974, "Worst-case
    performance bounds for simple one-dimensional packing algorithms").
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in np.argsort(-lengths, kind="stable"):
        length = int(lengths[index])
        place = next((row for row, left in enumerate(room) if left >= length), None)
        if place is None:
            place = len(rows)
            rows.append([])
            room.append(row_tokens)
        rows[place].append(int(index))
        room[place] -= length
    return rows


def _batch(window: TokenSequences, bins: list[list[int]], several_in_a_row: bool) -> Batch:
    order = np.array([index for row in bins for index in row])
    sequences = window.take(order)
    lengths = sequences.lengths
    row_of = np.repeat(np.arange(len(bins)), [len(row) for row in bins])
    ends = np.cumsum(lengths)
    begins_row = np.diff(row_of, prepend=-1) > 0
    row_start = np.maximum.accumulate(np.where(begins_row, ends - lengths, 0))
    start = ends - lengths - row_start  # of a sequence within its row
    row, column = np.repeat(row_of, lengths), np.repeat(start, lengths) + sequences.positions
    shape = len(bins), int(column.max()) + 1
    ids, inside = np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
    ids[row, column], inside[row, column] = sequences.tokens, True
    position_ids = None
    if several_in_a_row:
        # Padding has its column as position, for which every model has an embedding: nothing attends to later
        # positions.
        position_ids = np.tile(np.arange(shape[1]), (shape[0], 1))
        position_ids[row, column] = sequences.positions
    rows = np.repeat(window.offsets[order], lengths) + sequences.positions
    return Batch(sequences, rows, ids, inside, position_ids)
