"""The merged index of a run by feature: segments, each for a range of shards, in parts for ranges of features.

Rows are in order of feature, token class and activation, and include their tokens. A feature's rows on text, for
example, are contiguous, and the segment's statistics give their number, so that a question about a feature seeks and
reads about as many rows as it returns. A segment's manifest names its objects and is created once. Segments contain
only what the shards contain, so they may be lost, written twice, or seen late.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from actstore_storage.bucket import Bucket
from actstore_storage.errors import corrupt_object
from actstore_storage.features.entries import Entries
from actstore_storage.features.segment_file import SegmentFile
from actstore_storage.format.blocks import holds_all, largest_apart, listed_blocks
from actstore_storage.format.keys import segment_key, segments_folder
from actstore_storage.format.products import SEGMENT_GROUP_ROWS, ObjectRecord
from actstore_storage.format.records import as_record, seal, unseal
from actstore_storage.format.tokens import TOKEN_CLASSES, numbers_of_names
from actstore_storage.parquet.reading import open_record
from actstore_storage.runs.snapshot import Snapshot

# Segments that a process keeps in memory. A run that is being captured may have 45 at once; statistics take 28 bytes
# per feature and token class.
_MANIFESTS_KEPT, _STATISTICS_KEPT = 64, 64
_MEMORY_OF_PART = 1024


@dataclass(frozen=True)
class Part:
    """One object: the rows of features `first_feature` to `end_feature` (exclusive)."""

    first_feature: int
    end_feature: int
    object: ObjectRecord


@dataclass(frozen=True)
class Segment:
    """The index of a range of shards: a manifest that names its objects. Parts are in order of feature and cover all of
    them. Its key is `runs/<run>/index/<sae>/segments/<first>-<last>.json`.
    """

    run: str
    sae: str
    specification_sha256: str
    first_shard: int
    end_shard: int
    parts: tuple[Part, ...]
    statistics: ObjectRecord
    token_counts: ObjectRecord

    @property
    def shards(self) -> range:
        return range(self.first_shard, self.end_shard)

    @property
    def objects(self) -> list[ObjectRecord]:
        return [*(part.object for part in self.parts), self.statistics, self.token_counts]

    @property
    def owner(self) -> str:
        return f"run {self.run}, index of {self.sae}"

    def part_of(self, feature: int) -> Part:
        return self.parts[int(np.searchsorted(self._ends, feature, side="right"))]

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        return np.array([part.end_feature for part in self.parts])

    def to_json(self) -> bytes:
        return seal(asdict(self))

    @classmethod
    def from_json(cls, data: bytes, key: str, *, sealed: bool = False) -> "Segment":
        """`sealed`: it must have its own hash. Errors: CorruptObject."""
        return unseal(data, key, lambda fields: as_record(fields, cls), sealed=sealed)


@dataclass(frozen=True)
class ClassCounts:
    """[features, token classes]: the counts of every feature in a range of shards, by token class."""

    count: npt.NDArray[np.int64]
    maximum: npt.NDArray[np.float32]
    sum: npt.NDArray[np.float64]

    @classmethod
    def none(cls, d_sae: int) -> "ClassCounts":
        shape = d_sae, len(TOKEN_CLASSES)
        return cls(np.zeros(shape, np.int64), np.zeros(shape, np.float32), np.zeros(shape, np.float64))

    def add(self, table: Mapping[str, npt.NDArray[Any]]) -> None:
        """Adds rows of the statistics objects, with the class's number."""
        place = table["feature"], table["token_class"]
        np.add.at(self.count, place, table["count"])
        np.maximum.at(self.maximum, place, table["maximum"])
        np.add.at(self.sum, place, table["sum"])

    def merge(self, other: "ClassCounts") -> None:
        """Adds the counts of another range of shards."""
        self.count[:] += other.count
        self.sum[:] += other.sum
        np.maximum(self.maximum, other.maximum, out=self.maximum)

    def rows_before(self, feature: int) -> npt.NDArray[np.int64]:
        """[token classes]: the number of rows before them, of smaller features and of this one's earlier classes, in
        the sorted index.
        """
        first = feature * len(TOKEN_CLASSES)
        return self._rows_before[first : first + len(TOKEN_CLASSES)]

    @cached_property
    def _rows_before(self) -> npt.NDArray[np.int64]:
        """Called once everything has been added."""
        return np.concatenate([[0], np.cumsum(self.count)])


class SegmentReader:
    """A segment's rows of a feature, by token class."""

    def __init__(self, bucket: Bucket, segment: Segment, d_sae: int) -> None:
        self._bucket, self.segment, self._d_sae = bucket, segment, d_sae

    @property
    def counts(self) -> ClassCounts:
        return _counts(self._bucket, self.segment.statistics, self.segment.owner, self._d_sae)

    def lists(self, feature: int) -> list[tuple[int, "StoredList"]]:
        """For each token class with any rows, its number and rows."""
        part, counts = self.segment.part_of(feature), self.counts
        file = SegmentFile(self._bucket, part.object, self.segment.owner)
        before = counts.rows_before(feature) - counts.rows_before(part.first_feature)[0]
        return [
            (number, StoredList(file, int(before[number]), int(count), float(counts.maximum[feature, number])))
            for number, count in enumerate(counts.count[feature])
            if count
        ]


class StoredList:
    """A sorted range of a part's rows; reads the row groups that are requested."""

    def __init__(self, file: SegmentFile, first: int, count: int, maximum: float) -> None:
        self._file, self._first = file, first
        self.count, self.maximum = count, maximum

    def at(self, place: int) -> float:
        group, row = divmod(self._first + place, SEGMENT_GROUP_ROWS)
        return float(self._file.activations(group)[row])

    def read(self, first: int, last: int) -> Entries:
        return self._file.read(self._first + first, self._first + last)

    def above(self, value: float) -> int:
        return self._place(lambda activation: activation > value)

    def at_least(self, value: float) -> int:
        return self._place(lambda activation: activation >= value)

    def _place(self, is_before: Callable[[float], bool]) -> int:
        """The number of rows that pass; no row passes after one that does not.

        If a row group belongs to the range from its first row on, the footer gives the value of that row, unless the
        range ends in it. So one row group is read, or two if those rows end with the last but one.
        """
        if not is_before(self.maximum):
            return 0
        groups = range(self._first // SEGMENT_GROUP_ROWS, -(-(self._first + self.count) // SEGMENT_GROUP_ROWS))
        known = groups[1:-1]
        highest = self._file.places.highest
        group = groups.start + bisect_left(known, True, key=lambda one: not is_before(float(highest[one])))
        found = self._place_in(group, is_before)
        if group == groups.stop - 2 and found == (group + 1) * SEGMENT_GROUP_ROWS - self._first:
            found = self._place_in(group + 1, is_before)
        return found

    def _place_in(self, group: int, is_before: Callable[[float], bool]) -> int:
        """The same, if all rows of earlier groups pass, and none of later ones."""
        begin = group * SEGMENT_GROUP_ROWS
        rows = range(max(self._first, begin), min(self._first + self.count, begin + SEGMENT_GROUP_ROWS))
        activations = self._file.activations(group)
        passed = bisect_left(rows, True, key=lambda row: not is_before(float(activations[row - begin])))
        return rows.start + passed - self._first


def chosen_segments(snapshot: Snapshot, sae: str) -> list[Segment]:
    """Reads the largest segments whose shards the snapshot has, no shard twice, in order of shard.

    A complete run has one segment, which is requested by its name: the others need not be listed.
    """
    if snapshot.complete:
        with suppress(KeyError):
            whole = range(snapshot.record.shards_total)
            read = partial(read_segment, snapshot, sae, whole)
            # It stands as long as the run; smaller segments go when it comes.
            return [snapshot.memory.read(("segment", sae), read, lambda segment: _MEMORY_OF_PART * len(segment.parts))]
    listed = listed_segments(snapshot.bucket, snapshot.record.run, sae)
    complete = [shards for shards in listed if holds_all(snapshot.shards, shards)]
    return [read_segment(snapshot, sae, shards) for shards in largest_apart(complete)]


def listed_segments(bucket: Bucket, run: str, sae: str) -> list[range]:
    """Lists the existing segments by their shards."""
    return listed_blocks(bucket, segments_folder(run, sae), ".json")


def read_segment(snapshot: Snapshot, sae: str, shards: range) -> Segment:
    """Reads the manifest of a segment. Errors: CorruptObject for an invalid manifest, or one of another run; KeyError
    if there is none.
    """
    key = segment_key(snapshot.record.run, sae, shards)
    segment = _parsed(snapshot.bucket.get(key), key, snapshot.record.sealed)
    found = segment.run, segment.sae, segment.specification_sha256, segment.shards
    if found != (snapshot.record.run, sae, snapshot.record.specification_sha256, shards):
        raise corrupt_object(key, f"{key} is the index of another run or SAE: {found}")
    return segment


@lru_cache(_MANIFESTS_KEPT)
def _parsed(data: bytes, key: str, sealed: bool) -> Segment:
    """Cached by content, not by key: a run that is removed may be created again with the same name."""
    return Segment.from_json(data, key, sealed=sealed)


@lru_cache(_STATISTICS_KEPT)
def _counts(bucket: Bucket, record: ObjectRecord, owner: str, d_sae: int) -> ClassCounts:
    with open_record(bucket, record, owner) as file:
        table = file.read()
    columns = {name: table[name].to_numpy() for name in ("feature", "count", "maximum", "sum")}
    found = ClassCounts.none(d_sae)
    found.add(columns | {"token_class": numbers_of_names(table["token_class"].to_numpy())})
    return found
