"""Checkpoints: many commits in few objects, so that a run of 100,000 shards opens quickly.

A checkpoint is one Parquet object with the commits of a block of shards. Commits are kept: a checkpoint contains only
what they contain, so it may be lost, written twice, or seen late. A reader uses the largest existing blocks, and lists
commits only for shards that none of them covers.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from actstore_storage.bucket import Bucket, told_apart
from actstore_storage.bucket.cache import ByteCache, Memory
from actstore_storage.bucket.side_by_side import read_side_by_side
from actstore_storage.errors import CorruptObject, damaged
from actstore_storage.format.blocks import largest_apart, listed_blocks, overlap
from actstore_storage.format.commit import Commit, commit_of
from actstore_storage.format.keys import checkpoint_key, checkpoints_folder
from actstore_storage.format.moments import Moments, NormMoments, fields_of_moments, restore_infinities
from actstore_storage.format.products import OF_SPECIFICATION
from actstore_storage.format.records import as_record, seal, unseal
from actstore_storage.format.specification import RunRecord
from actstore_storage.format.tokens import TOKEN_CLASSES

_SUMMARY_KEY = b"actstore.summary"
# Commits that are read together when one of them is needed.
_GROUP_ROWS = 64
# What an opened run keeps of its commits and of what was computed from them, if it has no part in a larger memory.
OWN_BYTES = 32 << 20
_HOW = ("attention_implementation", "device", "code_version")


@dataclass(frozen=True)
class Summary:
    """The combined statistics of many commits. `how` has each distinct value of `_HOW`'s fields, in order of shard."""

    tokens_by_class: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(TOKEN_CLASSES, 0))
    norm_moments: NormMoments = field(default_factory=dict)
    non_finite: Mapping[str, int] = field(default_factory=dict)
    how: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, commit: Commit) -> "Summary":
        how = {name: (getattr(commit, name),) for name in _HOW}
        return cls(commit.tokens_by_class, commit.norm_moments, commit.non_finite, how)

    @classmethod
    def merged(cls, parts: Sequence["Summary"]) -> "Summary":
        tokens = {name: sum(part.tokens_by_class.get(name, 0) for part in parts) for name in TOKEN_CLASSES}
        sites = dict.fromkeys(site for part in parts for site in part.norm_moments)
        products = dict.fromkeys(product for part in parts for product in part.non_finite)
        return cls(
            tokens,
            {site: _merged_classes([part.norm_moments.get(site, {}) for part in parts]) for site in sites},
            {product: sum(part.non_finite.get(product, 0) for part in parts) for product in products},
            {name: tuple(dict.fromkeys(one for part in parts for one in part.how.get(name, ()))) for name in _HOW},
        )

    def to_json(self, run: str) -> bytes:
        """Writes the record; `run`: the run of the checkpoint."""
        return seal(vars(self) | {"norm_moments": fields_of_moments(self.norm_moments), "run": run})

    @classmethod
    def from_json(cls, data: bytes, key: str, record: RunRecord) -> "Summary":
        """Reads the record. Errors: CorruptObject, also for that of another run."""

        def of(fields: dict[str, Any]) -> "Summary":
            if fields.pop("run", record.run) != record.run:
                raise ValueError("it belongs to another run")
            restore_infinities(fields["norm_moments"])
            return as_record(fields, cls)

        return unseal(data, key, of, sealed=record.sealed)


def own_memory() -> Memory:
    return Memory(ByteCache(OWN_BYTES))


@dataclass(frozen=True)
class Checkpoint:
    """The commits of `shards`, read only when one is needed."""

    bucket: Bucket
    record: RunRecord
    shards: range
    tokens: npt.NDArray[np.int64]
    summary: Summary
    memory: Memory = field(default_factory=own_memory, compare=False)

    @property
    def key(self) -> str:
        return checkpoint_key(self.record.run, self.shards)

    def commits(self, first: int, last: int) -> Iterator[Commit]:
        """The commits of shards `first` to `last` (exclusive)."""
        for group in range((first - self.shards.start) // _GROUP_ROWS, -(-(last - self.shards.start) // _GROUP_ROWS)):
            begin = self.shards.start + group * _GROUP_ROWS
            for shard, record in enumerate(self._group(group), start=begin):
                if first <= shard < last:
                    yield commit_of(self.record, shard, record, self.key)

    def _group(self, group: int) -> tuple[bytes, ...]:
        """Cached only for the opened run: a run that is removed may be created again with the same name."""
        read = partial(_records, self.bucket, self.key, group)
        return self.memory.read((self.shards, group), read, lambda records: sum(map(len, records)))


class Commits(Sequence[Commit]):
    """A run's commits in order of shard: whole checkpoints, and the commits that no checkpoint covers."""

    def __init__(self, checkpoints: Sequence[Checkpoint], loose: Sequence[Commit]) -> None:
        self._parts: list[Checkpoint | Commit] = sorted([*checkpoints, *loose], key=_first_shard)
        held = [part.shards if isinstance(part, Checkpoint) else [part.shard] for part in self._parts]
        self.shards = np.concatenate([np.empty(0, np.int64), *(np.asarray(part, np.int64) for part in held)])
        self._starts = np.cumsum([0, *map(len, held)])

    def through(self, bucket: Bucket, memory: Memory) -> "Commits":
        """The same commits, which are read from this bucket and kept in this memory."""
        found = copy(self)
        found._parts = [
            replace(part, bucket=bucket, memory=memory) if isinstance(part, Checkpoint) else part
            for part in self._parts
        ]
        return found

    def __len__(self) -> int:
        return len(self.shards)

    @overload
    def __getitem__(self, index: int) -> Commit: ...

    @overload
    def __getitem__(self, index: slice) -> list[Commit]: ...

    def __getitem__(self, index: int | slice) -> Commit | list[Commit]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(index)
        [commit] = self._between(place, place + 1)
        return commit

    def __iter__(self) -> Iterator[Commit]:
        return self._between(0, len(self))

    def of_shards(self, shards: range) -> Iterator[Commit]:
        """The commits among these shards; others are not read."""
        first, last = np.searchsorted(self.shards, [shards.start, shards.stop])
        return self._between(int(first), int(last))

    def of_each(self, shards: Iterable[int]) -> Iterator[Commit]:
        """As `of_shards`, for shards that need not be consecutive."""
        for shard in shards:
            yield from self.of_shards(range(shard, shard + 1))

    @cached_property
    def summary(self) -> Summary:
        return Summary.merged(
            [part.summary if isinstance(part, Checkpoint) else Summary.of(part) for part in self._parts]
        )

    @cached_property
    def token_counts(self) -> npt.NDArray[np.int64]:
        """The number of tokens of each commit, in their order."""
        held = [part.tokens if isinstance(part, Checkpoint) else [part.tokens] for part in self._parts]
        return np.concatenate([np.empty(0, np.int64), *(np.asarray(part, np.int64) for part in held)])

    @property
    def loose(self) -> list[Commit]:
        """The commits that no checkpoint covers."""
        return [part for part in self._parts if isinstance(part, Commit)]

    @property
    def checkpoints(self) -> list[Checkpoint]:
        return [part for part in self._parts if isinstance(part, Checkpoint)]

    def _between(self, first: int, last: int) -> Iterator[Commit]:
        """By index, not by shard."""
        part = int(np.searchsorted(self._starts, first, side="right")) - 1
        while first < last:
            found, begin, end = self._parts[part], int(self._starts[part]), int(self._starts[part + 1])
            if isinstance(found, Checkpoint):
                offset = found.shards.start - begin
                yield from found.commits(first + offset, min(end, last) + offset)
            else:
                yield found
            first, part = end, part + 1


def listed_checkpoints(bucket: Bucket, run: str) -> list[range]:
    """Lists the existing checkpoints by their shards."""
    return listed_blocks(bucket, checkpoints_folder(run), ".parquet")


def open_checkpoints(
    bucket: Bucket, record: RunRecord, unreadable: list[CorruptObject] | None = None
) -> list[Checkpoint]:
    """Opens the largest checkpoints, no shard twice, in order of shard.

    Errors: CorruptObject for one that cannot be read. With `unreadable`, the error is added to it instead, and the
    checkpoint is ignored, as is one with a commit that cannot be read.
    """
    opened: dict[range, Checkpoint] = {}
    blocks = listed_checkpoints(bucket, record.run)
    largest = largest_apart(blocks)
    ahead = dict(zip(largest, read_side_by_side(partial(_opened, bucket, record), largest), strict=True))

    def can_be_opened(block: range) -> bool:
        try:
            found = ahead[block] if block in ahead else open_checkpoint(bucket, record, block)
            if isinstance(found, CorruptObject):
                raise found
            if unreadable is not None:
                deque(found.commits(block.start, block.stop), maxlen=0)
        except CorruptObject as error:
            if unreadable is None:
                raise
            unreadable.append(error)
            return False
        opened[block] = found
        return True

    return [opened[block] for block in largest_apart(blocks, can_be_opened)]


def smaller_checkpoints(
    bucket: Bucket, record: RunRecord, read: Sequence[range]
) -> Iterator[Checkpoint | CorruptObject]:
    """Opens the checkpoints that larger ones, which are read, have replaced; nobody reads them while the larger ones
    exist.
    """
    for block in listed_checkpoints(bucket, record.run):
        if block not in read and any(overlap(block, other) for other in read):
            yield _opened(bucket, record, block)


def _opened(bucket: Bucket, record: RunRecord, block: range) -> Checkpoint | CorruptObject:
    try:
        return open_checkpoint(bucket, record, block)
    except CorruptObject as error:
        return error


def encoded_checkpoint(commits: Sequence[Commit], summary: Summary) -> bytes:
    """Writes a checkpoint: small columns for counting, and the commits' own JSON."""
    columns = {
        "shard": pa.array([commit.shard for commit in commits], pa.int32()),
        "tokens": pa.array([commit.tokens for commit in commits], pa.int64()),
        "record": pa.array([commit.to_json() for commit in commits], pa.binary()),
    }
    schema = pa.schema([pa.field(name, column.type, nullable=False) for name, column in columns.items()])
    sink, first = pa.BufferOutputStream(), commits[0]
    metadata = {_SUMMARY_KEY: summary.to_json(first.run), OF_SPECIFICATION: first.specification_sha256.encode()}
    with pq.ParquetWriter(
        sink,
        schema.with_metadata(metadata),
        compression="zstd",
        use_dictionary=False,
        write_statistics=["shard"],  # they would be copies of records
        write_page_checksum=True,
    ) as file:
        file.write_table(pa.table(columns, schema), row_group_size=_GROUP_ROWS)
    return bytes(sink.getvalue())


def open_checkpoint(bucket: Bucket, record: RunRecord, block: range) -> Checkpoint:
    """Opens a checkpoint, without its commits. Errors: CorruptObject."""
    key = checkpoint_key(record.run, block)
    try:
        with bucket.open(key) as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
            columns = file.read(columns=["shard", "tokens"])
            summary = Summary.from_json(file.schema_arrow.metadata[_SUMMARY_KEY], key, record)
            specification = file.schema_arrow.metadata[OF_SPECIFICATION]
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise told_apart(bucket, error, damaged(key, error, kind="checkpoint")) from error
    if specification != record.specification_sha256.encode():
        raise damaged(key, "it belongs to another specification", kind="checkpoint")
    if not np.array_equal(columns["shard"].to_numpy(), np.arange(block.start, block.stop)):
        raise damaged(key, "it does not hold the shards that its name says", kind="checkpoint")
    return Checkpoint(bucket, record, block, columns["tokens"].to_numpy(), summary)


def _records(bucket: Bucket, key: str, group: int) -> tuple[bytes, ...]:
    try:
        with bucket.open(key) as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
            records: list[bytes] = file.read_row_group(group, columns=["record"])["record"].to_pylist()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise told_apart(bucket, error, damaged(key, error, kind="checkpoint")) from error
    return tuple(records)


def _merged_classes(parts: Sequence[Mapping[str, Moments]]) -> dict[str, Moments]:
    merged: dict[str, Moments] = {}
    for part in parts:
        for name, moments in part.items():
            merged[name] = merged.get(name, Moments()).merge(moments)
    return merged


def _first_shard(part: Checkpoint | Commit) -> int:
    return part.shards.start if isinstance(part, Checkpoint) else part.shard
