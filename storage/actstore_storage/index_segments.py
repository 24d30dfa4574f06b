"""The merged by-feature index of a run: segments, each of a range of shards, in parts of a range of features.

Rows are by feature, token class and activation, and carry their tokens: what a feature does on text alone lies in one
stretch, whose length the segment's statistics tell, so that a question about a feature seeks and reads about as many
rows as it answers with. A segment's manifest names its objects and is created once; segments say nothing that the
shards do not, so they may be lost, written twice, or seen late.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from actstore_storage.bucket import Bucket
from actstore_storage.commit import TOKEN_CLASSES, ObjectRecord
from actstore_storage.entries import COLUMNS, Entries
from actstore_storage.errors import CorruptObject
from actstore_storage.layout import segment_key, segments_folder
from actstore_storage.products import SEGMENT_GROUP_ROWS
from actstore_storage.reading import open_record
from actstore_storage.snapshot import Snapshot
from actstore_storage.specification import canonical_json

# Parsed footers and statistics that a process keeps; their objects have names of their own, so they cannot change.
_FOOTERS_KEPT, _STATISTICS_KEPT = 512, 32
# Of one stretch, row groups that are held decoded while a question looks into it.
_GROUPS_HELD = 64


@dataclass(frozen=True)
class Part:
    """One object: the rows of features `first_feature` to before `end_feature`."""

    first_feature: int
    end_feature: int
    object: ObjectRecord


@dataclass(frozen=True)
class Segment:
    """`runs/<run>/index/<sae>/segments/<first>-<last>.json`. Parts are in order of feature and cover all of them."""

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

    def to_json(self) -> bytes:
        return canonical_json(asdict(self))

    @classmethod
    def from_json(cls, data: bytes, key: str) -> "Segment":
        try:
            fields = json.loads(data)
            parts = [
                Part(part["first_feature"], part["end_feature"], ObjectRecord(**part["object"]))
                for part in fields.pop("parts")
            ]
            fields |= {name: ObjectRecord(**fields[name]) for name in ("statistics", "token_counts")}
            return cls(**fields, parts=tuple(parts))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptObject(f"{key} is not an index: {error}", field="object", value=key) from error


@dataclass(frozen=True)
class ClassCounts:
    """[features, token classes]: what a range of shards says of every feature, by token class."""

    count: npt.NDArray[np.int64]
    maximum: npt.NDArray[np.float32]
    sum: npt.NDArray[np.float64]

    @classmethod
    def none(cls, d_sae: int) -> "ClassCounts":
        shape = d_sae, len(TOKEN_CLASSES)
        return cls(np.zeros(shape, np.int64), np.zeros(shape, np.float32), np.zeros(shape, np.float64))

    def add(self, table: Mapping[str, npt.NDArray[Any]]) -> None:
        """Rows as in the statistics objects, with the class's number."""
        place = table["feature"], table["token_class"]
        np.add.at(self.count, place, table["count"])
        np.maximum.at(self.maximum, place, table["maximum"])
        np.add.at(self.sum, place, table["sum"])


class SegmentReader:
    """A segment's rows of a feature, by token class."""

    def __init__(self, bucket: Bucket, segment: Segment, d_sae: int) -> None:
        self._bucket, self.segment, self._d_sae = bucket, segment, d_sae
        self._ends = np.array([part.end_feature for part in segment.parts])

    @property
    def counts(self) -> ClassCounts:
        return _counts(self._bucket, self.segment, self._d_sae)

    def run(self, feature: int, token_class: int) -> "StoredRun":
        part = self.segment.parts[int(np.searchsorted(self._ends, feature, side="right"))]
        counts = self.counts
        first = int(counts.count[part.first_feature : feature].sum() + counts.count[feature, :token_class].sum())
        return StoredRun(
            self._bucket,
            part.object,
            self.segment.owner,
            first,
            int(counts.count[feature, token_class]),
            float(counts.maximum[feature, token_class]),
        )


class StoredRun:
    """A stretch of a part's rows, sorted; reads the row groups that it is asked for."""

    def __init__(
        self, bucket: Bucket, record: ObjectRecord, owner: str, first: int, count: int, maximum: float
    ) -> None:
        self._bucket, self._record, self._owner, self._first = bucket, record, owner, first
        self.count, self.maximum = count, maximum
        self._activations: dict[int, npt.NDArray[np.float32]] = {}

    def at(self, place: int) -> float:
        group, row = divmod(self._first + place, SEGMENT_GROUP_ROWS)
        if group not in self._activations:
            if len(self._activations) >= _GROUPS_HELD:
                self._activations.pop(next(iter(self._activations)))
            self._activations[group] = self._columns(range(group, group + 1), ("activation",))[0]
        return float(self._activations[group][row])

    def read(self, first: int, last: int) -> Entries:
        first, last = self._first + first, self._first + last
        groups = range(first // SEGMENT_GROUP_ROWS, -(-last // SEGMENT_GROUP_ROWS)) if last > first else range(0)
        begin = groups.start * SEGMENT_GROUP_ROWS
        return Entries(*self._columns(groups, COLUMNS)).take(slice(first - begin, last - begin))

    def _columns(self, groups: range, names: tuple[str, ...]) -> list[npt.NDArray[Any]]:
        footer = _footer(self._bucket, self._record, self._owner)
        with open_record(self._bucket, self._record, self._owner, footer=footer) as file:
            table = file.read_row_groups(list(groups), columns=list(names), use_threads=False)
        return [table[name].to_numpy() for name in names]


def chosen_segments(snapshot: Snapshot, sae: str) -> list[Segment]:
    """The largest of those whose shards the snapshot has, no shard twice, in order of shard."""
    chosen: list[range] = []
    for shards in sorted(listed_segments(snapshot.bucket, snapshot.record.run, sae), key=len, reverse=True):
        first, last = np.searchsorted(snapshot.shards, [shards.start, shards.stop])
        apart = not any(shards.start < other.stop and other.start < shards.stop for other in chosen)
        if apart and last - first == len(shards):
            chosen.append(shards)
    return [read_segment(snapshot, sae, shards) for shards in sorted(chosen, key=lambda shards: shards.start)]


def listed_segments(bucket: Bucket, run: str, sae: str) -> list[range]:
    found = []
    for key in bucket.keys(segments_folder(run, sae)):
        first, separator, last = key.rpartition("/")[2].removesuffix(".json").partition("-")
        if key.endswith(".json") and separator and first.isdigit() and last.isdigit() and int(last) >= int(first):
            found.append(range(int(first), int(last) + 1))
    return found


def read_segment(snapshot: Snapshot, sae: str, shards: range) -> Segment:
    """Errors: CorruptObject for what is no manifest, or one of another run."""
    key = segment_key(snapshot.record.run, sae, shards)
    segment = Segment.from_json(snapshot.bucket.get(key), key)
    found = segment.run, segment.sae, segment.specification_sha256, segment.shards
    if found != (snapshot.record.run, sae, snapshot.record.specification_sha256, shards):
        raise CorruptObject(f"{key} is an index of something else: {found}", field="object", value=key)
    return segment


def class_numbers(names: npt.NDArray[np.object_]) -> npt.NDArray[np.int64]:
    numbers = {name: number for number, name in enumerate(TOKEN_CLASSES)}
    return np.array([numbers[name] for name in names], np.int64)


@lru_cache(_STATISTICS_KEPT)
def _counts(bucket: Bucket, segment: Segment, d_sae: int) -> ClassCounts:
    with open_record(bucket, segment.statistics, segment.owner) as file:
        table = file.read()
    columns = {name: table[name].to_numpy() for name in ("feature", "count", "maximum", "sum")}
    found = ClassCounts.none(d_sae)
    found.add(columns | {"token_class": class_numbers(table["token_class"].to_numpy())})
    return found


@lru_cache(_FOOTERS_KEPT)
def _footer(bucket: Bucket, record: ObjectRecord, owner: str) -> pq.FileMetaData:
    with open_record(bucket, record, owner) as file:
        return file.metadata
