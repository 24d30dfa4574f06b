"""Reads the tokens of a run's shards, and the sources of their documents."""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.side_by_side import read_side_by_side
from actstore_storage.format.commit import Commit
from actstore_storage.format.products import POSITIONS, TOKENS, TOKENS_FORMAT
from actstore_storage.parquet.reading import open_product
from actstore_storage.parquet.row_cache import NO_CACHE, RowCache
from actstore_storage.runs.document_sources import SOURCE_FIELDS, answered, source_columns
from actstore_storage.runs.snapshot import Snapshot

TOKEN_COLUMNS = tuple(TOKENS_FORMAT.schema.names)
# The numbers of a shard's tokens in the cache: all of them without their sources and with them, and single row groups.
_ALONE, _WITH_SOURCES, _GROUPS = 0, 1, 2
# Memory of a footer over its bytes, and of the numbers that are taken from it, by row group.
_MEMORY_OVER_FOOTER, _MEMORY_OF_GROUP = 8, 120


def dense_token_rows(bucket: Bucket, commit: Commit, tokens: int) -> npt.NDArray[np.int64]:
    """Reads which tokens have dense rows: row i of every dense site of the shard belongs to token row [i] of this. The
    shard has this many tokens.
    """
    if POSITIONS not in commit.objects:
        return np.arange(tokens)
    with open_product(bucket, commit, POSITIONS) as file:
        rows: npt.NDArray[np.int64] = file.read()["row"].to_numpy().astype(np.int64)
    return rows


def sourced_tokens(bucket: Bucket, commit: Commit, cache: RowCache) -> pa.Table:
    """Reads a shard's tokens, as `shard_tokens`, with the columns of sources if the shard has them."""

    def read() -> pa.Table:
        with open_product(bucket, commit, TOKENS) as file:
            return file.read(columns=[*TOKEN_COLUMNS, *source_columns(file)]).combine_chunks()

    return cache.get(commit.objects[TOKENS].key, _WITH_SOURCES, read)


def document_sources(snapshot: Snapshot) -> pa.Table:
    """Reads the sources of documents: columns document, source and row, one row per document of the committed shards,
    ascending.
    """

    def read(commit: Commit) -> pa.Table:
        with open_product(snapshot.bucket, commit, TOKENS) as file:
            tokens = file.read(columns=["document", *source_columns(file)], use_threads=False)
        documents, firsts = np.unique(tokens["document"].to_numpy(), return_index=True)
        return pa.table([pa.array(documents), *answered(tokens.take(pa.array(firsts)))], schema=schema)

    schema = pa.schema([TOKENS_FORMAT.schema.field("document"), *SOURCE_FIELDS])
    found = pa.concat_tables([schema.empty_table(), *read_side_by_side(read, snapshot.commits)])
    _, firsts = np.unique(found["document"].to_numpy(), return_index=True)  # a document may be in two shards
    return found.take(pa.array(firsts))


def shard_tokens(bucket: Bucket, commit: Commit, cache: RowCache = NO_CACHE) -> pa.Table:
    """Reads the columns TOKEN_COLUMNS of a shard."""

    def read() -> pa.Table:
        with open_product(bucket, commit, TOKENS) as file:
            return file.read(columns=list(TOKEN_COLUMNS)).combine_chunks()

    return cache.get(commit.objects[TOKENS].key, _ALONE, read)


@dataclass(frozen=True)
class SequenceTokens:
    """The tokens of one sequence are rows `first` to `end` (exclusive) of `rows`, which begin at the shard's row
    `first_row`. There are columns of sources if the shard has them.
    """

    commit: Commit
    first_row: int
    rows: pa.Table
    first: int
    end: int

    def column(self, name: str) -> npt.NDArray[Any]:
        """The values of this sequence's tokens."""
        values: npt.NDArray[Any] = self.rows[name].to_numpy()
        return values[self.first : self.end]


def sequence_tokens(snapshot: Snapshot, sequences: Iterable[int], cache: RowCache) -> dict[int, SequenceTokens]:
    """Reads the tokens of some sequences, whose shards are committed: the row groups that hold them, and no others."""
    size = snapshot.record.specification.sequences_per_shard
    by_shard: dict[int, set[int]] = {}
    for sequence in sequences:
        by_shard.setdefault(sequence // size, set()).add(sequence)
    shards = [_ShardTokens(snapshot, commit, cache) for commit in snapshot.commits.of_each(by_shard)]
    far = [each for each in shards if each.is_far(by_shard[each.shard])]  # what is in memory needs no thread
    deque(read_side_by_side(lambda each: each.fetch(by_shard[each.shard]), far), maxlen=0)
    return {sequence: each.of(sequence) for each in shards for sequence in by_shard[each.shard]}


@dataclass(frozen=True)
class _Places:
    """Where a shard's sequences are: for each row group, its first and last sequence, and its first row."""

    footer: pq.FileMetaData
    first_sequence: Sequence[int]
    last_sequence: Sequence[int]
    first_row: Sequence[int]

    @classmethod
    def of(cls, footer: pq.FileMetaData) -> "_Places":
        groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
        place = footer.schema.names.index("sequence")
        told = [group.column(place).statistics for group in groups]
        rows = list(accumulate((group.num_rows for group in groups), initial=0))
        return cls(footer, [one.min for one in told], [one.max for one in told], rows[:-1])

    @property
    def nbytes(self) -> int:
        return int(_MEMORY_OVER_FOOTER * self.footer.serialized_size + _MEMORY_OF_GROUP * len(self.first_row))

    def groups_of(self, sequence: int) -> range:
        return range(bisect_left(self.last_sequence, sequence), bisect_right(self.first_sequence, sequence))


class _ShardTokens:
    """The tokens of a shard by row group, for one question."""

    def __init__(self, snapshot: Snapshot, commit: Commit, cache: RowCache) -> None:
        self._snapshot, self._commit, self._cache = snapshot, commit, cache
        self.shard, self._key = commit.shard, commit.objects[TOKENS].key
        self._groups: dict[int, pa.Table] = {}

    def is_far(self, sequences: Iterable[int]) -> bool:
        """Whether something of these has to be read from the store. What is near is held for the question."""
        places = self._snapshot.memory.find(self._place)
        if not isinstance(places, _Places):
            return True
        for group in self._wanted(places, sequences):
            key = self._key, _GROUPS + group
            # What is not there is asked for, and so counted, when it is fetched.
            found = self._cache.find(key) if self._cache.holds(key) else None
            if found is None:
                return True
            self._groups[group] = found
        return False

    def fetch(self, sequences: Iterable[int]) -> None:
        """Reads what is far."""
        footer = self._places.footer
        missing = [group for group in self._wanted(self._places, sequences) if group not in self._groups]
        with open_product(self._snapshot.bucket, self._commit, TOKENS, footer=footer) as file:
            columns = ["sequence", "position", "token", *source_columns(file)]
            for group in missing:
                read = partial(file.read_row_group, group, columns=columns, use_threads=False)
                self._groups[group] = self._cache.get(self._key, _GROUPS + group, read)

    def of(self, sequence: int) -> SequenceTokens:
        groups = self._places.groups_of(sequence)
        parts = [self._groups[group] for group in groups]
        found = parts[0] if len(parts) == 1 else pa.concat_tables(parts)
        first, end = found["sequence"].to_numpy().searchsorted([sequence, sequence + 1]).tolist()
        return SequenceTokens(self._commit, self._places.first_row[groups.start], found, first, end)

    @property
    def _place(self) -> tuple[str, str]:
        return "places", self._key

    @cached_property
    def _places(self) -> _Places:
        def read() -> _Places:
            with open_product(self._snapshot.bucket, self._commit, TOKENS) as file:
                return _Places.of(file.metadata)

        return self._snapshot.memory.read(self._place, read, lambda places: places.nbytes)

    @staticmethod
    def _wanted(places: _Places, sequences: Iterable[int]) -> set[int]:
        return {group for sequence in sequences for group in places.groups_of(sequence)}
