"""Loads stored rows for training: shuffled, directly from the bucket, with several sites of the same tokens.

Row groups are taken in a random order, several at a time as a pool, and batches are drawn at random from the pool's
rows. Each row is copied only once, into its batch. A batch's rows therefore come from `pool_groups` random places of
the run; two rows of a batch are related, beyond chance, only in that they may come from the same row group.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from actstore_storage.bucket import FETCH_THREADS
from actstore_storage.errors import BadRequest
from actstore_storage.format.commit import Commit
from actstore_storage.format.tokens import kept_classes, kept_rows
from actstore_storage.parquet.reading import open_product
from actstore_storage.rows.memory import GroupPlace, Reading, RowMemory, group_places
from actstore_storage.rows.reading import SiteRead
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.tokens import TOKEN_COLUMNS, dense_token_rows, shard_tokens

# Row groups read concurrently, in addition to those of the current pool.
READERS = 2


@dataclass(frozen=True)
class LoadedBatch:
    """Rows of one batch. `sites` has [rows, width] in `dtypes`' element type, bfloat16 as uint16; `tokens` the
    requested columns.
    """

    sites: Mapping[str, npt.NDArray[Any]]
    dtypes: Mapping[str, str]
    tokens: Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class HeldOut:
    """Holds out one in this many sequences of the run, beginning with the first; with `alone`, only these are taken.

    Whole sequences, spread over the run, so that held-out text is similar, but no sequence is in both.
    """

    every: int
    alone: bool = False

    def __post_init__(self) -> None:
        if self.every < 2:
            raise BadRequest(f"every is {self.every}", field="held_out.every", value=self.every, allowed="2 or more")

    def keeps(self, sequence: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        kept: npt.NDArray[np.bool_] = (sequence % self.every == 0) == self.alone
        return kept


@dataclass(frozen=True)
class _Chunk:
    """Dense rows `first` to `last` (exclusive) of a shard: a row group of the site with the smallest ones."""

    commit: Commit
    first: int
    last: int
    places: Mapping[str, Sequence[GroupPlace]]


@dataclass(frozen=True)
class _Rows:
    """Copies. `places` [row, 2]: chunk, and row in it."""

    places: npt.NDArray[np.int64]
    sites: dict[str, npt.NDArray[Any]]
    tokens: dict[str, npt.NDArray[Any]]

    def at(self, which: slice | npt.NDArray[np.int64]) -> "_Rows":
        sites = {name: rows[which] for name, rows in self.sites.items()}
        return _Rows(self.places[which], sites, {name: values[which] for name, values in self.tokens.items()})

    def before(self, rows: "_Rows") -> "_Rows":
        if not len(self.places):
            return rows
        return _Rows(
            np.concatenate([self.places, rows.places]),
            {name: np.concatenate([found, rows.sites[name]]) for name, found in self.sites.items()},
            {name: np.concatenate([found, rows.tokens[name]]) for name, found in self.tokens.items()},
        )


@dataclass(frozen=True)
class _Loaded:
    """Rows of one or several chunks, without excluded tokens. `starts`: where they are in each site's memory."""

    memory: RowMemory
    places: npt.NDArray[np.int64]
    starts: dict[str, npt.NDArray[np.int64]]
    tokens: dict[str, npt.NDArray[Any]]

    def take(self, which: npt.NDArray[np.int64]) -> _Rows:
        sites = {name: self.memory.take(name, starts[which]) for name, starts in self.starts.items()}
        return _Rows(self.places[which], sites, {name: values[which] for name, values in self.tokens.items()})


@dataclass(frozen=True)
class _Pool:
    """Rows that were left over from earlier pools, followed by newly loaded ones in random order."""

    carried: _Rows
    loaded: _Loaded
    order: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.carried.places) + len(self.order)

    def rows(self, first: int, last: int) -> _Rows:
        before = len(self.carried.places)
        chosen = self.order[max(first - before, 0) : max(last - before, 0)]
        return self.carried.at(slice(first, last)).before(self.loaded.take(chosen))


class TrainingLoader:
    """Iterates over one epoch's batches; iterating again gives the next epoch's, in another order.

    `state()` may be called after any batch; a loader made with the same arguments continues from there with `resume`,
    with the same batches. Rows of `exclude`d token classes, BOS by default, are left out. The last batch of an epoch
    may be smaller. Checksums, which take two thirds of the reading time, are verified when a loader reads a row group
    for the first time, and not again in later epochs.

    Errors: BadRequest for a site that the run does not store, or a batch or pool without rows.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        sites: Sequence[str],
        *,
        batch_rows: int = 4096,
        seed: int = 0,
        pool_groups: int = 8,
        exclude: frozenset[str] = frozenset({"bos"}),
        columns: Sequence[str] = (),
        held_out: HeldOut | None = None,
    ) -> None:
        for field, value in (("batch_rows", batch_rows), ("pool_groups", pool_groups)):
            if value < 1:
                raise BadRequest(f"{field} is {value}", field=field, value=value, allowed="1 or more")
        for name in columns:
            if name not in TOKEN_COLUMNS:
                raise BadRequest(
                    f"stored rows have no column {name!r}", field="columns", value=name, allowed=TOKEN_COLUMNS
                )
        kept_classes(exclude)
        commits = list(snapshot.commits)
        self._snapshot, self._sites = snapshot, [SiteRead(snapshot, commits, site) for site in sites]
        self._batch_rows, self._seed, self._pool_groups = batch_rows, seed, pool_groups
        self._exclude, self._columns, self._held_out = exclude, tuple(columns), held_out
        with ThreadPoolExecutor(FETCH_THREADS) as pool:
            self._chunks = [chunk for part in pool.map(self._chunks_of, commits) for chunk in part]
        self._verified: set[int] = set()
        # Counts of finished epochs, for the next one.
        self._spare: list[tuple[RowMemory, RowMemory]] = []
        self._state: dict[str, Any] = {"epoch": 0, "pool": 0, "batch": 0, "carried": ()}

    @property
    def row_groups(self) -> int:
        return len(self._chunks)

    def state(self) -> dict[str, Any]:
        """Plain numbers and tuples, for a checkpoint of the training. It costs nothing to call it after each batch."""
        return dict(self._state)

    def resume(self, state: Mapping[str, Any]) -> None:
        self._state = {**state, "carried": tuple(map(tuple, state["carried"]))}

    def __iter__(self) -> Iterator[LoadedBatch]:
        memories = self._spare.pop() if self._spare else self._new_memories()
        try:
            with ThreadPoolExecutor(READERS, "row-groups") as readers:
                yield from self._epoch(readers, memories)
        finally:
            self._spare.append(memories)
        self._state = {"epoch": self._state["epoch"] + 1, "pool": 0, "batch": 0, "carried": ()}

    def _epoch(self, readers: ThreadPoolExecutor, memories: Sequence[RowMemory]) -> Iterator[LoadedBatch]:
        epoch, first_pool = self._state["epoch"], self._state["pool"]
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._chunks))
        pools = [order[start : start + self._pool_groups] for start in range(0, len(order), self._pool_groups)]
        carried = self._rows_at(self._state["carried"], memories[0])
        coming: deque[list[Future[_Loaded]]] = deque()
        for number in range(first_pool, len(pools)):
            while len(coming) < 2 and number + len(coming) < len(pools):  # this one, and the next while it is used
                wanted, memory = pools[number + len(coming)], memories[(number + len(coming)) % 2]
                coming.append([readers.submit(self._load, int(c), memory, slot) for slot, c in enumerate(wanted)])
            loaded = _joined([found.result() for found in coming.popleft()])
            shuffled = np.random.default_rng([self._seed, epoch, number]).permutation(len(loaded.places))
            pool = _Pool(carried, loaded, shuffled)
            whole = len(pool) if number + 1 == len(pools) else len(pool) - len(pool) % self._batch_rows
            skipped = self._state["batch"] if number == first_pool else 0
            # If a pool was begun, the carried rows are those it began with.
            self._state |= {"pool": number, "carried": tuple(map(tuple, carried.places.tolist()))}
            for start in range(skipped * self._batch_rows, whole, self._batch_rows):
                self._state["batch"] = start // self._batch_rows + 1
                rows = pool.rows(start, start + self._batch_rows)
                yield LoadedBatch(rows.sites, {site.site: site.dtype for site in self._sites}, rows.tokens)
            carried = pool.rows(whole, len(pool))
            self._state |= {"pool": number + 1, "batch": 0, "carried": tuple(map(tuple, carried.places.tolist()))}

    def _rows_at(self, carried: Sequence[tuple[int, int]], memory: RowMemory) -> _Rows:
        """Rows of a state, in its order."""
        places = np.array(carried, np.int64).reshape(-1, 2)
        by_chunk = np.argsort(places[:, 0], kind="stable")
        found = _Rows(places[:0], {}, {})
        for chunk in np.unique(places[:, 0]):
            loaded = self._load(int(chunk), memory, 0)
            wanted = places[by_chunk][places[by_chunk, 0] == chunk, 1]
            found = found.before(loaded.take(np.searchsorted(loaded.places[:, 1], wanted)))
        return found.at(np.argsort(by_chunk))

    def _new_memories(self) -> tuple[RowMemory, RowMemory]:
        """One that is used, and one that is filled meanwhile."""
        slot_rows = max((chunk.last - chunk.first for chunk in self._chunks), default=1)
        slots = min(self._pool_groups, max(1, len(self._chunks)))
        return RowMemory(self._sites, slots, slot_rows), RowMemory(self._sites, slots, slot_rows)

    def _chunks_of(self, commit: Commit) -> list[_Chunk]:
        """Lists the chunks from the footers only."""
        places = {}
        for site in self._sites:
            with open_product(self._snapshot.bucket, commit, site.site) as file:
                places[site.site] = group_places(file.metadata)
        smallest = max(self._sites, key=lambda site: site.row_bytes)
        return [_Chunk(commit, place.first, place.last, places) for place in places[smallest.site]]

    def _load(self, number: int, memory: RowMemory, slot: int) -> _Loaded:
        chunk = self._chunks[number]
        bucket, size = self._snapshot.bucket, chunk.last - chunk.first
        reading = Reading(bucket, chunk.commit, chunk.first, chunk.last, chunk.places, number not in self._verified)
        starts = {site.site: memory.fill(slot, site.site, reading) for site in self._sites}
        self._verified.add(number)
        if not self._exclude and not self._columns and self._held_out is None:
            return _Loaded(memory, _places(number, np.arange(size)), starts, {})
        tokens = shard_tokens(bucket, chunk.commit)
        rows = dense_token_rows(bucket, chunk.commit, tokens.num_rows)[chunk.first : chunk.last]
        keep = kept_rows(tokens["flags"].to_numpy()[rows], self._exclude)
        if self._held_out is not None:
            keep &= self._held_out.keeps(tokens["sequence"].to_numpy()[rows])
        kept = np.flatnonzero(keep)
        columns = {name: tokens[name].to_numpy()[rows[kept]] for name in self._columns}
        return _Loaded(memory, _places(number, kept), {name: found[kept] for name, found in starts.items()}, columns)


def _joined(parts: Sequence[_Loaded]) -> _Loaded:
    """Rows of one memory."""
    first = parts[0]
    return _Loaded(
        first.memory,
        np.concatenate([part.places for part in parts]),
        {name: np.concatenate([part.starts[name] for part in parts]) for name in first.starts},
        {name: np.concatenate([part.tokens[name] for part in parts]) for name in first.tokens},
    )


def _places(chunk: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.stack([np.full(len(rows), chunk), rows], axis=1)
