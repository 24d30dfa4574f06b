"""Reads an SAE's features from a snapshot: from merged segments of the index, and from shards that no segment covers
yet.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actstore_storage.errors import BadRequest
from actstore_storage.features.entries import Entries
from actstore_storage.features.ranking import LoadedList, Ranking, SortedList, places_above, places_at_least
from actstore_storage.features.segments import ClassCounts, SegmentReader, chosen_segments
from actstore_storage.format.commit import Commit
from actstore_storage.format.keys import index_product, statistics_product
from actstore_storage.format.tokens import TOKEN_CLASSES, kept_numbers, numbers_of_names, token_classes
from actstore_storage.parquet.reading import open_product
from actstore_storage.parquet.row_cache import NO_CACHE, RowCache
from actstore_storage.parquet.row_groups import groups_between
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.token_filter import TokenFilter
from actstore_storage.runs.tokens import shard_tokens

# The most activations that a question with a filter can search: it reads every activation of its feature.
FILTERED_ENTRIES_MAX = 50_000_000


class FeatureReader:
    """Reads an SAE's features from a snapshot's segments and other shards. It is opened once for many questions about
    one snapshot. Errors: SAE_NOT_FOUND.
    """

    def __init__(self, snapshot: Snapshot, sae: str, cache: RowCache = NO_CACHE) -> None:
        self.snapshot, self.sae, self.cache = snapshot, sae, cache
        self.d_sae = snapshot.sae(sae).d_sae
        self.segments = [
            SegmentReader(snapshot.bucket, segment, self.d_sae) for segment in chosen_segments(snapshot, sae)
        ]
        self._held: tuple[int, list[tuple[int, SortedList]]] = -1, []

    @cached_property
    def loose(self) -> list[Commit]:
        """The shards that no segment covers."""
        held = [reader.segment.shards for reader in self.segments]
        shards = [shard for shard in self.snapshot.shards.tolist() if not any(shard in other for other in held)]
        return list(self.snapshot.commits.of_each(shards))

    def check(self, feature: int) -> None:
        """Errors: FEATURE_OUT_OF_RANGE."""
        if not 0 <= feature < self.d_sae:
            raise BadRequest(
                f"SAE {self.sae} has no feature {feature}",
                reason="FEATURE_OUT_OF_RANGE",
                field="feature",
                value=feature,
                allowed=f"0 to {self.d_sae - 1}",
            )

    def ranking(self, feature: int, exclude: frozenset[str], keep: TokenFilter | None = None) -> Ranking:
        """The feature's activations on tokens that are not excluded, and that `keep` passes; its own `exclude` applies
        too.
        """
        self.check(feature)
        if keep is not None:
            keep.check(self.snapshot.record)
        lists = self._lists(feature, exclude | (keep.exclude if keep else frozenset()))
        if keep is None:
            return Ranking(lists)
        entries = Ranking(lists)
        if entries.total > FILTERED_ENTRIES_MAX:
            raise BadRequest(
                f"feature {feature} has {entries.total:,} activations, and a filter can search "
                f"{FILTERED_ENTRIES_MAX:,} at most",
                reason="LIMIT_EXCEEDED",
                field="filter",
                value=entries.total,
                allowed=f"0 to {FILTERED_ENTRIES_MAX}",
            )
        found = entries.all()
        return Ranking([LoadedList(found.take(keep.mask_of(found)))])

    def counts(self, feature: int, exclude: frozenset[str]) -> tuple[int, float, float]:
        """The number of activations that are not excluded, the largest, and their sum."""
        self.check(feature)
        kept = kept_numbers(exclude)
        lists = self._lists(feature, exclude)
        total = sum(float(reader.counts.sum[feature, kept].sum()) for reader in self.segments)
        total += sum(each.sum for each in lists if isinstance(each, ShardList))
        return (
            sum(each.count for each in lists),
            max((each.maximum for each in lists if each.count), default=0.0),
            total,
        )

    @cached_property
    def class_counts(self) -> ClassCounts:
        """The counts of every feature."""
        found = ClassCounts.none(self.d_sae)
        for reader in self.segments:
            found.merge(reader.counts)
        for commit in self.loose:
            found.add(shard_statistics(self.snapshot, commit, self.sae))
        return found

    def _lists(self, feature: int, exclude: frozenset[str]) -> list[SortedList]:
        """Data of the last feature is cached for the next question about it."""
        if self._held[0] != feature:
            found = [numbered for reader in self.segments for numbered in reader.lists(feature)]
            shards = [ShardFeature(self.snapshot, commit, self.sae, feature) for commit in self.loose]
            self._held = feature, [*found, *(numbered for shard in shards for numbered in shard.lists())]
        kept = kept_numbers(exclude)
        return [found for number, found in self._held[1] if number in kept]


class ShardFeature:
    """A feature in one shard, read when needed."""

    def __init__(self, snapshot: Snapshot, commit: Commit, sae: str, feature: int) -> None:
        self._snapshot, self._commit, self._sae, self._feature = snapshot, commit, sae, feature

    def lists(self) -> Iterator[tuple[int, "ShardList"]]:
        """For each token class with any rows, its number and rows."""
        with open_product(self._snapshot.bucket, self._commit, statistics_product(self._sae)) as file:
            found = rows_of_feature(file, self._feature)
        for row in found.to_pylist():
            name = row["token_class"]
            yield TOKEN_CLASSES.index(name), ShardList(self, name, row["count"], row["maximum"], row["sum"])

    @cached_property
    def by_class(self) -> dict[str, Entries]:
        with open_product(self._snapshot.bucket, self._commit, index_product(self._sae)) as file:
            found = rows_of_feature(file, self._feature)
        tokens = shard_tokens(self._snapshot.bucket, self._commit)
        entries = with_tokens(found, tokens)
        return {name: entries.take(mask) for name, mask in token_classes(entries.flags).items()}


@dataclass(frozen=True)
class ShardList:
    """A feature's activations on tokens of one class in one shard."""

    shard: ShardFeature
    token_class: str
    count: int
    maximum: float
    sum: float

    @property
    def _entries(self) -> Entries:
        return self.shard.by_class[self.token_class]

    def at(self, place: int) -> float:
        return float(self._entries.activation[place])

    def above(self, value: float) -> int:
        return places_above(self._entries.activation, value)

    def at_least(self, value: float) -> int:
        return places_at_least(self._entries.activation, value)

    def read(self, first: int, last: int) -> Entries:
        return self._entries.take(slice(first, last))


def with_tokens(index_rows: pa.Table, tokens: pa.Table) -> Entries:
    """Adds a shard's tokens to rows of its index."""
    rows = index_rows["row"].to_numpy()
    beside = (tokens[name].to_numpy()[rows] for name in ("sequence", "position", "document", "token", "flags"))
    return Entries(index_rows["activation"].to_numpy(), *beside)


def shard_statistics(snapshot: Snapshot, commit: Commit, sae: str) -> dict[str, npt.NDArray[Any]]:
    """Reads a shard's `statistics-<sae>`, with the token class's number instead of its name."""
    with open_product(snapshot.bucket, commit, statistics_product(sae)) as file:
        table = file.read()
    columns = {name: table[name].to_numpy() for name in ("feature", "count", "maximum", "sum")}
    return columns | {"token_class": numbers_of_names(table["token_class"].to_numpy())}


def rows_of_feature(file: pq.ParquetFile, feature: int, end: int | None = None) -> pa.Table:
    """Reads, from a file sorted by `feature`, the rows of this one, or of a range up to `end` (exclusive)."""
    last = feature if end is None else end - 1
    groups = groups_between(file, "feature", feature, last)
    table = file.read_row_groups(list(groups), use_threads=False)
    return table.filter(pc.and_(pc.greater_equal(table["feature"], feature), pc.less_equal(table["feature"], last)))
