"""The features of an SAE in a range of shards, from whichever segments and shards contain them."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actstore_storage.bucket import Bucket
from actstore_storage.features.entries import COLUMNS, Entries
from actstore_storage.features.ranking import Ranking, SortedList
from actstore_storage.features.reader import FeatureReader, ShardFeature, rows_of_feature, shard_statistics, with_tokens
from actstore_storage.features.segments import ClassCounts, Segment, SegmentReader, chosen_segments
from actstore_storage.format.blocks import is_inside
from actstore_storage.format.commit import Commit
from actstore_storage.format.keys import index_product
from actstore_storage.format.tokens import TOKEN_CLASSES, numbers_of_names, token_classes
from actstore_storage.parquet.reading import open_product, open_record
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.tokens import shard_tokens

# Nonzeros in one part, which is sorted in memory: about 100 bytes each. A feature with more has its own part, and is
# merged in pieces of this size.
PART_ROWS = 1 << 21


def token_counts(snapshot: Snapshot, sae: str) -> dict[str, npt.NDArray[np.int64]]:
    """Counts, by token class, how often each token id occurs in the snapshot's text."""
    reader = FeatureReader(snapshot, sae)
    found = _TokenCounts()
    for segment in reader.segments:
        found.add_segment(snapshot.bucket, segment.segment)
    for commit in reader.loose:
        found.add_shard(snapshot, commit)
    return found.by_class


class Sources:
    """The largest segments inside a range of shards, and its other shards."""

    def __init__(self, snapshot: Snapshot, sae: str, shards: range) -> None:
        self._snapshot, self._sae = snapshot, sae
        d_sae = snapshot.sae(sae).d_sae
        inside = [segment for segment in chosen_segments(snapshot, sae) if is_inside(segment.shards, shards)]
        held = [segment.shards for segment in inside]
        loose = [one for one in snapshot.commits.of_shards(shards) if not any(one.shard in block for block in held)]
        found: list[SegmentReader | Commit] = [SegmentReader(snapshot.bucket, segment, d_sae) for segment in inside]
        # In order of shard, so that a stable sort leaves ties in order of sequence.
        self._sources = sorted([*found, *loose], key=_first_shard)
        self._d_sae = d_sae

    def __len__(self) -> int:
        return len(self._sources)

    @property
    def counts(self) -> ClassCounts:
        found = ClassCounts.none(self._d_sae)
        for source in self._sources:
            if isinstance(source, Commit):
                found.add(shard_statistics(self._snapshot, source, self._sae))
            else:
                found.merge(source.counts)
        return found

    def rows(self, first: int, end: int) -> tuple[npt.NDArray[np.int32], Entries]:
        """Rows of features `first` to `end` (exclusive): each row's feature, and the rows; by source."""
        parts = [self._rows_of(source, first, end) for source in self._sources]
        feature = np.concatenate([np.empty(0, np.int32), *(feature for feature, _ in parts)])
        return feature, Entries.concatenated([entries for _, entries in parts])

    def count_of(self, feature: int) -> int:
        return sum(each.count for _, each in self._lists(feature))

    def rows_in_order(self, feature: int, piece_rows: int) -> Iterator[tuple[npt.NDArray[np.int32], Entries]]:
        """Rows of one feature in the order of a part; this many at a time, if all would not fit into memory."""
        lists = self._lists(feature)
        for number in range(len(TOKEN_CLASSES)):
            ranking = Ranking([each for its, each in lists if its == number])
            for entries in ranking.chunks(0.0, piece_rows):
                yield np.full(len(entries), feature, np.int32), entries

    def token_counts(self) -> dict[str, npt.NDArray[np.int64]]:
        found = _TokenCounts()
        for source in self._sources:
            if isinstance(source, Commit):
                found.add_shard(self._snapshot, source)
            else:
                found.add_segment(self._snapshot.bucket, source.segment)
        return found.by_class

    def _lists(self, feature: int) -> list[tuple[int, SortedList]]:
        found: list[tuple[int, SortedList]] = []
        for source in self._sources:
            if isinstance(source, Commit):
                found += ShardFeature(self._snapshot, source, self._sae, feature).lists()
            else:
                found += source.lists(feature)
        return found

    def _rows_of(self, source: "SegmentReader | Commit", first: int, end: int) -> tuple[npt.NDArray[np.int32], Entries]:
        bucket = self._snapshot.bucket
        if isinstance(source, Commit):
            with open_product(bucket, source, index_product(self._sae)) as file:
                found = rows_of_feature(file, first, end)
            return found["feature"].to_numpy(), with_tokens(found, shard_tokens(bucket, source))
        tables = []
        for part in source.segment.parts:
            if part.first_feature < end and first < part.end_feature:
                with open_record(bucket, part.object, source.segment.owner) as file:
                    tables.append(rows_of_feature(file, first, end))
        table = pa.concat_tables(tables)
        return table["feature"].to_numpy(), Entries(*(table[name].to_numpy() for name in COLUMNS))


class _TokenCounts:
    def __init__(self) -> None:
        self.by_class = {name: np.zeros(0, np.int64) for name in TOKEN_CLASSES}

    def add_shard(self, snapshot: Snapshot, commit: Commit) -> None:
        tokens = shard_tokens(snapshot.bucket, commit)
        for name, mask in token_classes(tokens["flags"].to_numpy()).items():
            self._add(name, np.bincount(tokens["token"].to_numpy()[mask]))

    def add_segment(self, bucket: Bucket, segment: Segment) -> None:
        with open_record(bucket, segment.token_counts, segment.owner) as file:
            table = file.read()
        number = numbers_of_names(table["token_class"].to_numpy())
        token, count = table["token"].to_numpy(), table["count"].to_numpy()
        for place, name in enumerate(TOKEN_CLASSES):
            here = number == place
            if here.any():
                self._add(name, np.bincount(token[here], count[here]).astype(np.int64))

    def _add(self, name: str, counts: npt.NDArray[np.int64]) -> None:
        held = self.by_class[name]
        size = max(len(held), len(counts))
        self.by_class[name] = np.pad(held, (0, size - len(held))) + np.pad(counts, (0, size - len(counts)))


def feature_ranges(counts: npt.NDArray[np.int64], part_rows: int) -> list[tuple[int, int]]:
    """Cuts the features into ranges of about `part_rows` nonzeros; a feature is in one range only, however
    many it has.
    """
    ends = np.cumsum(counts)
    ranges, first, d_sae = [], 0, len(counts)
    while first < d_sae:
        before = int(ends[first - 1]) if first else 0
        end = min(d_sae, max(first + 1, int(np.searchsorted(ends, before + part_rows, side="right"))))
        ranges.append((first, end))
        first = end
    return ranges


def _first_shard(source: "SegmentReader | Commit") -> int:
    return source.shard if isinstance(source, Commit) else source.segment.first_shard
