"""Many commits in few objects: what keeps a run of 100,000 shards cheap to open.

`fold_commits` copies the commits of whole blocks of shards into one Parquet object each, in blocks of 256, 4,096 and
65,536, and of a complete run those that are left over at its end. Commits stay where they are: a checkpoint says
nothing that they do not, so it may be lost, written twice, or seen late. A reader takes the largest blocks that there
are, and lists commits only of shards that none of them holds.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from actstore_storage.bucket import Bucket
from actstore_storage.errors import CorruptObject
from actstore_storage.format.commit import Commit, commit_of
from actstore_storage.format.keys import (
    checkpoint_key,
    checkpoint_sketches_key,
    checkpoints_folder,
    commit_key,
    commits_folder,
)
from actstore_storage.format.moments import Moments
from actstore_storage.format.records import seal, unseal
from actstore_storage.format.specification import RunRecord
from actstore_storage.format.tokens import TOKEN_CLASSES
from actstore_storage.norms.sketches import (
    NormSketches,
    Sketches,
    are_sketched,
    checkpoint_sketches,
    missing_sketches,
    shard_sketches,
)

if TYPE_CHECKING:
    from actstore_storage.runs.snapshot import Snapshot

BLOCKS = (256, 4096, 65_536)
# Commits that are read together when one of them is asked for.
_GROUP_ROWS = 64
_GROUPS_KEPT = 64
# Of shards' sketches, which are read when they are folded.
_FETCH_THREADS = 8
_SUMMARY_KEY, _OF_KEY = b"actstore.summary", b"actstore.specification_sha256"
_HOW = ("attention_implementation", "device", "code_version")


@dataclass(frozen=True)
class Summary:
    """What many commits say together. `how` has each distinct value of `_HOW`'s fields, in order of shard."""

    tokens_by_class: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(TOKEN_CLASSES, 0))
    norm_moments: Mapping[str, Mapping[str, Moments]] = field(default_factory=dict)
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
        """`run`: whose checkpoint it is in."""
        fields = asdict(self)
        for classes in fields["norm_moments"].values():
            for moments in classes.values():
                if math.isinf(moments["log_sum"]):  # JSON has no infinity
                    moments["log_sum"] = None
        return seal(fields | {"run": run})

    @classmethod
    def from_json(cls, data: bytes, key: str, record: RunRecord) -> "Summary":
        """Errors: CorruptObject, also for that of another run."""

        def of(fields: dict[str, Any]) -> "Summary":
            if fields.pop("run", record.run) != record.run:
                raise ValueError("it is of another run")
            for classes in fields["norm_moments"].values():
                for name, moments in classes.items():
                    log_sum = -math.inf if moments["log_sum"] is None else moments["log_sum"]
                    classes[name] = Moments(**moments | {"log_sum": log_sum})
            return cls(**fields | {"how": {name: tuple(values) for name, values in fields["how"].items()}})

        return unseal(data, key, of, sealed=record.sealed)


@dataclass(frozen=True)
class Checkpoint:
    """The commits of `shards`, read only where one is asked for."""

    bucket: Bucket
    record: RunRecord
    shards: range
    tokens: npt.NDArray[np.int64]
    summary: Summary

    @property
    def key(self) -> str:
        return checkpoint_key(self.record.run, self.shards)

    def commits(self, first: int, last: int) -> Iterator[Commit]:
        """Of shards `first` to before `last`."""
        for group in range((first - self.shards.start) // _GROUP_ROWS, -(-(last - self.shards.start) // _GROUP_ROWS)):
            begin = self.shards.start + group * _GROUP_ROWS
            for shard, record in enumerate(self._group(group), start=begin):
                if first <= shard < last:
                    yield commit_of(self.record, shard, record, self.key)

    @cached_property
    def _group(self) -> Callable[[int], tuple[bytes, ...]]:
        """Not for longer than the snapshot: a run that is removed may come again under its name."""
        return lru_cache(maxsize=_GROUPS_KEPT)(lambda group: _records(self.bucket, self.key, group))


class Commits(Sequence[Commit]):
    """A run's commits in order of shard: whole checkpoints, and the commits that no checkpoint holds."""

    def __init__(self, checkpoints: Sequence[Checkpoint], loose: Sequence[Commit]) -> None:
        self._parts: list[Checkpoint | Commit] = sorted([*checkpoints, *loose], key=_first_shard)
        held = [part.shards if isinstance(part, Checkpoint) else [part.shard] for part in self._parts]
        self.shards = np.concatenate([np.empty(0, np.int64), *(np.asarray(part, np.int64) for part in held)])
        self._starts = np.cumsum([0, *map(len, held)])

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
        """Those of these shards that are committed; others are not looked at."""
        first, last = np.searchsorted(self.shards, [shards.start, shards.stop])
        return self._between(int(first), int(last))

    @cached_property
    def summary(self) -> Summary:
        return Summary.merged(
            [part.summary if isinstance(part, Checkpoint) else Summary.of(part) for part in self._parts]
        )

    @cached_property
    def token_counts(self) -> npt.NDArray[np.int64]:
        """Of each commit, in their order."""
        held = [part.tokens if isinstance(part, Checkpoint) else [part.tokens] for part in self._parts]
        return np.concatenate([np.empty(0, np.int64), *(np.asarray(part, np.int64) for part in held)])

    @property
    def loose(self) -> list[Commit]:
        """Those that no checkpoint holds."""
        return [part for part in self._parts if isinstance(part, Commit)]

    @property
    def checkpoints(self) -> list[Checkpoint]:
        return [part for part in self._parts if isinstance(part, Checkpoint)]

    def _between(self, first: int, last: int) -> Iterator[Commit]:
        """By place, not by shard."""
        part = int(np.searchsorted(self._starts, first, side="right")) - 1
        while first < last:
            found, begin, end = self._parts[part], int(self._starts[part]), int(self._starts[part + 1])
            if isinstance(found, Checkpoint):
                offset = found.shards.start - begin
                yield from found.commits(first + offset, min(end, last) + offset)
            else:
                yield found
            first, part = end, part + 1


def fold_commits(snapshot: "Snapshot") -> list[str]:
    """Writes each checkpoint that the snapshot's commits fill and that is not there; of a complete run, commits that
    are gone and that checkpoints hold; and merged sketches that are gone from beside the snapshot's own.

    Answers the new objects' keys, without those of new checkpoints' sketches.

    Two at once write the same. Errors: StoreError; CorruptObject for sketches that cannot be read.
    """
    written = []
    there = set(_listed(snapshot.bucket, snapshot.record.run))
    for block in _blocks(snapshot):
        covered = any(block.start >= other.start and block.stop <= other.stop for other in there)
        if covered or not _holds_all(snapshot.commits, block):
            continue
        key, commits = checkpoint_key(snapshot.record.run, block), list(snapshot.commits.of_shards(block))
        summary = Summary.merged([Summary.of(commit) for commit in commits])
        # First, so that a checkpoint without them is one of shards that have none.
        _put_sketches(snapshot, block, commits, list(summary.norm_moments), there)
        snapshot.bucket.put_if_absent(key, _encoded(commits, summary))
        written.append(key)
        there.add(block)
    return written + _restored_commits(snapshot) + _mended_sketches(snapshot, there)


def _restored_commits(snapshot: "Snapshot") -> list[str]:
    """Commits of a complete run that are gone and that a checkpoint holds; while a run grows, nobody lists them all."""
    bucket, run = snapshot.bucket, snapshot.record.run
    if not snapshot.complete:
        return []
    there = set(bucket.keys(commits_folder(run)))
    gone = [shard for shard in snapshot.shards.tolist() if commit_key(run, shard) not in there]
    commits = [commit for shard in gone for commit in snapshot.commits.of_shards(range(shard, shard + 1))]
    return [
        commit_key(run, one.shard) for one in commits if bucket.put_if_absent(commit_key(run, one.shard), one.to_json())
    ]


def _mended_sketches(snapshot: "Snapshot", there: Iterable[range]) -> list[str]:
    """Last: what a damaged shard keeps from being mended keeps nothing else from being folded."""
    missing, written = missing_sketches(snapshot), []
    for part in snapshot.commits.checkpoints:
        key = checkpoint_sketches_key(snapshot.record.run, part.shards)
        if key in missing:
            commits = list(part.commits(part.shards.start, part.shards.stop))
            if _put_sketches(snapshot, part.shards, commits, list(part.summary.norm_moments), there):
                written.append(key)
    return written


def _put_sketches(
    snapshot: "Snapshot", block: range, commits: Sequence[Commit], names: Sequence[str], there: Iterable[range]
) -> bool:
    """The block's, where its shards have any; from checkpoints that are `there` inside it and have theirs, unless those
    are damaged: then from the shards.
    """
    bucket, record = snapshot.bucket, snapshot.record
    inside = [other for other in there if block.start <= other.start and other.stop <= block.stop and other != block]
    smaller = [other for other in inside if bucket.exists(checkpoint_sketches_key(record.run, other))]
    try:
        sketches = _merged_sketches(snapshot, commits, names, smaller)
    except CorruptObject:
        if not smaller:
            raise
        sketches = _merged_sketches(snapshot, commits, names, ())
    if sketches is None:
        return False
    encoded = sketches.encoded(record.specification_sha256)
    return bucket.put_if_absent(checkpoint_sketches_key(record.run, block), encoded)


def _blocks(snapshot: "Snapshot") -> Iterator[range]:
    total = snapshot.record.shards_total
    for size in BLOCKS:
        yield from (range(start, start + size) for start in range(0, total - size + 1, size))
    if snapshot.complete and total % BLOCKS[0]:
        yield range(total - total % BLOCKS[0], total)


def open_checkpoints(
    bucket: Bucket, record: RunRecord, unreadable: list[CorruptObject] | None = None
) -> list[Checkpoint]:
    """The largest ones, no shard twice, in order of shard.

    Errors: CorruptObject for one that cannot be read; with `unreadable` it goes there, and is as if it were not there,
    and so is one of whose commits any cannot be read.
    """
    opened: list[Checkpoint] = []
    for block in sorted(_listed(bucket, record.run), key=len, reverse=True):
        if any(_overlap(block, other.shards) for other in opened):
            continue
        try:
            found = _opened(bucket, record, block)
            if unreadable is not None:
                deque(found.commits(block.start, block.stop), maxlen=0)
            opened.append(found)
        except CorruptObject as error:
            if unreadable is None:
                raise
            unreadable.append(error)
    return sorted(opened, key=_first_shard)


def smaller_checkpoints(snapshot: "Snapshot") -> Iterator[Checkpoint | CorruptObject]:
    """Those that larger ones took the place of, which nobody reads while these are there."""
    read = [checkpoint.shards for checkpoint in snapshot.commits.checkpoints]
    for block in _listed(snapshot.bucket, snapshot.record.run):
        if block not in read and any(_overlap(block, other) for other in read):
            try:
                yield _opened(snapshot.bucket, snapshot.record, block)
            except CorruptObject as error:
                yield error


def _largest(blocks: Iterable[range]) -> list[range]:
    """Those that do not overlap, in order of shard."""
    chosen: list[range] = []
    for block in sorted(blocks, key=len, reverse=True):
        if not any(_overlap(block, other) for other in chosen):
            chosen.append(block)
    return sorted(chosen, key=lambda block: block.start)


def _overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop


def _listed(bucket: Bucket, run: str) -> list[range]:
    """The blocks of the checkpoints that are there; of other sizes than ours they may be a later version's."""
    found = []
    for key in bucket.keys(checkpoints_folder(run)):
        first, separator, last = key.rpartition("/")[2].removesuffix(".parquet").partition("-")
        if separator and first.isdigit() and last.isdigit() and int(last) >= int(first):
            found.append(range(int(first), int(last) + 1))
    return found


def _holds_all(commits: Commits, block: range) -> bool:
    first, last = np.searchsorted(commits.shards, [block.start, block.stop])
    return bool(last - first == len(block))


def _merged_sketches(
    snapshot: "Snapshot", commits: Sequence[Commit], names: Sequence[str], smaller: Sequence[range]
) -> NormSketches | None:
    """Of the commits, from `smaller` checkpoints where these hold them; None without norms, or where one lacks it.

    Errors: CorruptObject for sketches that cannot be merged.
    """
    if not are_sketched(commits, names):
        return None
    bucket, record = snapshot.bucket, snapshot.record
    folded = [_opened(bucket, record, block) for block in _largest(smaller)]
    loose = [commit for commit in commits if not any(commit.shard in part.shards for part in folded)]
    merged = NormSketches(names)

    def read(part: Checkpoint | Commit) -> Sketches | None:
        if isinstance(part, Commit):
            return shard_sketches(bucket, part, names)
        return checkpoint_sketches(bucket, record, part.shards, part.summary.norm_moments, names)

    with ThreadPoolExecutor(_FETCH_THREADS) as pool:
        for found in pool.map(read, [*folded, *loose]):
            if found is None:
                return None
            try:
                merged.merge(found)
            except (RuntimeError, ValueError, IndexError) as error:  # DataSketches', of bytes that are no sketch
                raise CorruptObject(
                    f"run {record.run}: sketches of norms cannot be merged: {error}", field="run", value=record.run
                ) from error
    return merged


def _encoded(commits: Sequence[Commit], summary: Summary) -> bytes:
    """Small columns for those who count, and the commits' own JSON for those who read."""
    columns = {
        "shard": pa.array([commit.shard for commit in commits], pa.int32()),
        "tokens": pa.array([commit.tokens for commit in commits], pa.int64()),
        "record": pa.array([commit.to_json() for commit in commits], pa.binary()),
    }
    schema = pa.schema([pa.field(name, column.type, nullable=False) for name, column in columns.items()])
    sink, first = pa.BufferOutputStream(), commits[0]
    with pq.ParquetWriter(
        sink,
        schema.with_metadata({_SUMMARY_KEY: summary.to_json(first.run), _OF_KEY: first.specification_sha256.encode()}),
        compression="zstd",
        use_dictionary=False,
        write_statistics=["shard"],  # of records they would be copies
        write_page_checksum=True,
    ) as file:
        file.write_table(pa.table(columns, schema), row_group_size=_GROUP_ROWS)
    return bytes(sink.getvalue())


def _opened(bucket: Bucket, record: RunRecord, block: range) -> Checkpoint:
    key = checkpoint_key(record.run, block)
    try:
        with bucket.open(key) as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
            columns = file.read(columns=["shard", "tokens"])
            summary = Summary.from_json(file.schema_arrow.metadata[_SUMMARY_KEY], key, record)
            specification = file.schema_arrow.metadata[_OF_KEY]
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        failure = bucket.store_error(error) if isinstance(error, OSError) else None
        raise failure or _corrupt(key, str(error)) from error
    if specification != record.specification_sha256.encode():
        raise _corrupt(key, "it is of another specification")
    if columns["shard"].to_pylist() != list(block):
        raise _corrupt(key, "it does not hold the shards of its name")
    return Checkpoint(bucket, record, block, columns["tokens"].to_numpy(), summary)


def _records(bucket: Bucket, key: str, group: int) -> tuple[bytes, ...]:
    try:
        with bucket.open(key) as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
            records: list[bytes] = file.read_row_group(group, columns=["record"])["record"].to_pylist()
    except (pa.ArrowException, OSError, KeyError) as error:
        failure = bucket.store_error(error) if isinstance(error, OSError) else None
        raise failure or _corrupt(key, str(error)) from error
    return tuple(records)


def _merged_classes(parts: Sequence[Mapping[str, Moments]]) -> dict[str, Moments]:
    merged: dict[str, Moments] = {}
    for part in parts:
        for name, moments in part.items():
            merged[name] = merged.get(name, Moments()).merge(moments)
    return merged


def _first_shard(part: Checkpoint | Commit) -> int:
    return part.shards.start if isinstance(part, Checkpoint) else part.shard


def _corrupt(key: str, what: str) -> CorruptObject:
    return CorruptObject(f"checkpoint {key} is damaged: {what}", field="object", value=key)
