"""Reads a few rows of a segment's object at known offsets.

An ordinary Parquet reader would read the whole footer, which for two million rows is 240 kB, and takes 3 ms and 3 MB of
memory, even for one row group. So a process reads a footer once, keeps the offset of each page (25 kB), and decodes the
pages itself: plain values, LZ4 or uncompressed, with a CRC-32, one page for each row group and column, as
SEGMENT_FORMAT writes them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from actstore_storage.bucket import Bucket
from actstore_storage.errors import CorruptObject, corrupt_object, damaged
from actstore_storage.features.entries import COLUMNS, Entries
from actstore_storage.format.products import SEGMENT_FORMAT, SEGMENT_GROUP_ROWS, ObjectRecord
from actstore_storage.parquet.pages import page_at
from actstore_storage.parquet.reading import open_record, open_source, reading_errors

# Objects whose offsets a process keeps. As merges write them, each has two million rows.
_PLACES_KEPT = 4096
# Decoded row groups that are kept while questions about one feature use them, and the most that one read decodes.
_GROUPS_HELD = 64
_TYPES: dict[str, type[np.generic]] = {
    name: SEGMENT_FORMAT.schema.field(name).type.to_pandas_dtype() for name in COLUMNS
}


@dataclass(frozen=True, eq=False)
class Places:
    """For each row group: where its columns begin and how long they are, and its largest activation."""

    starts: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    highest: npt.NDArray[np.float32]
    compressed: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.starts)


class SegmentFile:
    """Opened with the first read; for one question at a time."""

    def __init__(self, bucket: Bucket, record: ObjectRecord, owner: str) -> None:
        self._bucket, self.record, self._owner = bucket, record, owner
        self._source: pa.NativeFile | None = None
        self._groups: dict[int, Entries] = {}
        self._activations: dict[int, npt.NDArray[np.float32]] = {}

    @property
    def places(self) -> Places:
        return _places(self._bucket, self.record, self._owner)

    def read(self, first: int, last: int) -> Entries:
        """Reads rows `first` to `last` (exclusive)."""
        if first >= last:
            return Entries.concatenated([])
        groups = range(first // SEGMENT_GROUP_ROWS, -(-last // SEGMENT_GROUP_ROWS))
        begin = groups.start * SEGMENT_GROUP_ROWS
        found = [
            part
            for start in range(groups.start, groups.stop, _GROUPS_HELD)
            for part in self._held(range(start, min(start + _GROUPS_HELD, groups.stop)))
        ]
        return Entries.concatenated(found).take(slice(first - begin, last - begin))

    def activations(self, group: int) -> npt.NDArray[np.float32]:
        """The activations of a row group."""
        if group in self._groups:
            return self._groups[group].activation
        if group not in self._activations:
            _make_room(self._activations)
            [[self._activations[group]]] = self._fetched(range(group, group + 1), COLUMNS[:1])
        return self._activations[group]

    def _held(self, groups: range) -> list[Entries]:
        missing = [group for group in groups if group not in self._groups]
        if missing:
            fetched = range(missing[0], missing[-1] + 1)
            for group, columns in zip(fetched, self._fetched(fetched, COLUMNS), strict=True):
                if group not in self._groups:
                    _make_room(self._groups, groups)
                    self._groups[group] = Entries(*columns)
        return [self._groups[group] for group in groups]

    def _fetched(self, groups: range, names: tuple[str, ...]) -> Iterator[list[npt.NDArray[Any]]]:
        """By one read. Columns of a row group are adjacent, and so are row groups in the file."""
        places = self.places
        numbers = range(len(names))  # `names` are the first of COLUMNS
        begin = int(places.starts[groups.start, 0])
        end = int(places.starts[groups.stop - 1, numbers[-1]] + places.sizes[groups.stop - 1, numbers[-1]])
        data = self._bytes(begin, end)
        for group in groups:
            starts, sizes = (places.starts[group] - begin).tolist(), places.sizes[group].tolist()
            yield [
                self._column(data[starts[i] : starts[i] + sizes[i]], _TYPES[names[i]], places.compressed[i])
                for i in numbers
            ]

    def _bytes(self, begin: int, end: int) -> memoryview:
        with reading_errors(self._bucket, self.record, self._owner):
            if self._source is None:
                self._source = open_source(self._bucket, self.record, self._owner)
            self._source.seek(begin)
            data = self._source.read_buffer(end - begin)
        if len(data) != end - begin:
            raise self._damaged("it ends before its rows do")
        return memoryview(data).cast("B")

    def _column(self, chunk: memoryview, kind: type[np.generic], compressed: bool) -> npt.NDArray[Any]:
        try:
            page = page_at(chunk, 0)
            page.check(chunk)
            data = chunk[page.start : page.end]
            values = _LZ4.decompress(data, page.plain_bytes) if compressed else data
            # Parquet has no integers with fewer than four bytes.
            stored = np.int32 if kind is np.uint8 else kind
            return np.frombuffer(values, stored, page.values).astype(kind, copy=False)
        except (ValueError, OSError) as error:
            raise self._damaged(f"a page cannot be decoded: {error}") from error

    def _damaged(self, what: str) -> CorruptObject:
        return damaged(self.record.key, what, owner=self._owner)


@lru_cache(_PLACES_KEPT)
def _places(bucket: Bucket, record: ObjectRecord, owner: str) -> Places:
    with open_record(bucket, record, owner) as file, _as_recorded(record, owner):
        return _from_footer(file.metadata)


def _from_footer(footer: pq.FileMetaData) -> Places:
    """Errors: ValueError for a file that SEGMENT_FORMAT did not write."""
    names = footer.schema.names
    if tuple(names[-len(COLUMNS) :]) != COLUMNS:
        raise ValueError(f"its columns are {names}")
    starts, sizes, highest = [], [], []
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        if number < footer.num_row_groups - 1 and group.num_rows != SEGMENT_GROUP_ROWS:
            raise ValueError(f"row group {number} has {group.num_rows} rows")
        chunks = [group.column(place) for place in range(len(names) - len(COLUMNS), len(names))]
        starts.append([chunk.data_page_offset for chunk in chunks])
        sizes.append([chunk.total_compressed_size for chunk in chunks])
        if any(chunk.has_dictionary_page for chunk in chunks) or chunks[0].statistics is None:
            raise ValueError("its pages are dictionary-encoded, or it lacks statistics of activations")
        highest.append(chunks[0].statistics.max)
    shape = -1, len(COLUMNS)
    return Places(
        np.array(starts, np.int64).reshape(shape),
        np.array(sizes, np.int32).reshape(shape),
        np.array(highest, np.float32),
        tuple(_is_compressed(chunk.compression) for chunk in chunks) if starts else (),
    )


def _is_compressed(codec: str) -> bool:
    if codec not in ("LZ4", "UNCOMPRESSED"):
        raise ValueError(f"its codec is {codec}")
    return codec == "LZ4"


@contextmanager
def _as_recorded(record: ObjectRecord, owner: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise corrupt_object(record.key, f"object {record.key} of {owner} is not a feature index: {error}") from error


def _make_room(held: dict[int, Any], needed: range = range(0)) -> None:
    """The oldest are removed first, except those that are being used."""
    while len(held) >= _GROUPS_HELD:
        held.pop(next(group for group in held if group not in needed))


_LZ4 = pa.Codec("lz4_raw")
