"""Seeks in a Parquet file by the column that it is sorted by, and by row numbers."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq


def groups_between(file: pq.ParquetFile, column: str, low: int, high: int) -> range:
    """Finds the row groups whose statistics allow values from `low` to `high`; the file is sorted by the column."""
    place = file.schema_arrow.names.index(column)

    def bounds(group: int) -> pq.Statistics:
        return file.metadata.row_group(group).column(place).statistics

    groups = range(file.num_row_groups)
    first = bisect_left(groups, low, key=lambda group: bounds(group).max)
    return range(first, max(first, bisect_right(groups, high, key=lambda group: bounds(group).min)))


def groups_of_rows(file: pq.ParquetFile, first: int, last: int) -> tuple[list[int], int]:
    """Finds the row groups with these rows of the file, both included, and the row at which the first of
    them begins.
    """
    ends = list(accumulate(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)))
    begin, end = bisect_right(ends, first), bisect_right(ends, last)
    return list(range(begin, end + 1)), ends[begin - 1] if begin else 0


def read_between(
    file: pq.ParquetFile, column: str, low: int, high: int, names: Sequence[str], held: dict[int, pa.Table]
) -> tuple[int, pa.Table]:
    """Reads whole row groups with the values from `low` to `high`, and returns the file's row at which they begin.

    `held` keeps row groups between calls with the same file and names.
    """
    groups = groups_between(file, column, low, high)
    for group in groups:
        if group not in held:
            held[group] = file.read_row_group(group, columns=list(names), use_threads=False)
    first = sum(file.metadata.row_group(group).num_rows for group in range(groups.start))
    if not groups:
        return first, file.schema_arrow.empty_table().select(list(names))
    return first, pa.concat_tables([held[group] for group in groups])
