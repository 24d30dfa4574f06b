"""Stored rows for training: shuffled, from the bucket directly, several sites of the same tokens side by side.

Row groups are taken in a random order, so many of them at a time as a pool, and batches are drawn at random from the
pool's rows. Nothing is copied but each row into its batch. A batch's rows therefore come from `pool_groups` random
places of the run; what two rows of a batch have in common, beyond chance, is that they may be of one row group.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actstore_storage.commit import Commit
from actstore_storage.errors import BadRequest
from actstore_storage.exclusion import kept_classes, kept_rows
from actstore_storage.reading import open_product
from actstore_storage.rows import TOKEN_COLUMNS, DenseReader, SiteRead, dense_token_rows, shard_tokens
from actstore_storage.runs import FETCH_THREADS
from actstore_storage.snapshot import Snapshot

# Elements as NumPy holds them; bfloat16, which it does not know, as its raw bits.
ELEMENT_TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
# Row groups read at the same time, beside those of the pool that is being served.
READERS = 2


@dataclass(frozen=True)
class LoadedBatch:
    """`sites` has [rows, width] in `dtypes`' element type, bfloat16 as uint16; `tokens` the columns asked for.

    Rows of one row group lie together: a batch is drawn at random, and its order is not.
    """

    sites: Mapping[str, npt.NDArray[Any]]
    dtypes: Mapping[str, str]
    tokens: Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class HeldOut:
    """Every so many-th sequence of the run, beginning with the first: left out, or with `alone` nothing else taken.

    Whole sequences, all over the run, so that what is held out is of the same text and of no sequence that is trained
    on.
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
    """Dense rows `first` to before `last` of a shard: a row group of the site with the smallest ones."""

    commit: Commit
    first: int
    last: int


@dataclass(frozen=True)
class _Loaded:
    sites: dict[str, npt.NDArray[Any]]
    tokens: dict[str, npt.NDArray[Any]]
    # Rows of the chunk that no excluded token has.
    kept: npt.NDArray[np.int64]


class TrainingLoader:
    """Iterates over one epoch's batches; iterated again, over the next epoch's, in another order.

    `state()` may be taken after any batch; a loader made with the same arguments goes on from there with `resume`, with
    the same batches. Rows of `exclude`d token classes, BOS by default, are left out. The last batch of an epoch may be
    smaller. Checksums, which are two thirds of what a read costs, are verified when a loader reads a row group first,
    and not again in later epochs.

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
                raise BadRequest(f"rows have no column {name!r}", field="columns", value=name, allowed=TOKEN_COLUMNS)
        kept_classes(exclude)
        commits = list(snapshot.commits)
        self._snapshot, self._sites = snapshot, [SiteRead(snapshot, commits, site) for site in sites]
        self._batch_rows, self._seed, self._pool_groups = batch_rows, seed, pool_groups
        self._exclude, self._columns, self._held_out = exclude, tuple(columns), held_out
        with ThreadPoolExecutor(FETCH_THREADS) as pool:
            self._chunks = [chunk for part in pool.map(self._chunks_of, commits) for chunk in part]
        self._verified: set[int] = set()
        self._state: dict[str, Any] = {"epoch": 0, "pool": 0, "batch": 0, "carried": ()}

    @property
    def row_groups(self) -> int:
        return len(self._chunks)

    def state(self) -> dict[str, Any]:
        """Plain numbers and tuples, for a checkpoint of the training. It costs nothing to ask after each batch."""
        return dict(self._state)

    def resume(self, state: Mapping[str, Any]) -> None:
        self._state = {**state, "carried": tuple(map(tuple, state["carried"]))}

    def __iter__(self) -> Iterator[LoadedBatch]:
        with ThreadPoolExecutor(READERS, "row-groups") as readers:
            yield from self._epoch(readers)
        self._state = {"epoch": self._state["epoch"] + 1, "pool": 0, "batch": 0, "carried": ()}

    def _epoch(self, readers: ThreadPoolExecutor) -> Iterator[LoadedBatch]:
        epoch, first_pool = self._state["epoch"], self._state["pool"]
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._chunks))
        pools = [order[start : start + self._pool_groups] for start in range(0, len(order), self._pool_groups)]
        # Rows that the pools before did not fill a batch with, as (chunk, row).
        carried = np.array(self._state["carried"], np.int64).reshape(-1, 2)
        held = {int(chunk): self._load(int(chunk)) for chunk in np.unique(carried[:, 0])}
        coming: deque[dict[int, Future[_Loaded]]] = deque()
        for number in range(first_pool, len(pools)):
            while len(coming) < 2 and number + len(coming) < len(pools):  # this one, and the next while it is served
                wanted = pools[number + len(coming)]
                coming.append({int(chunk): readers.submit(self._load, int(chunk)) for chunk in wanted})
            loaded = {chunk: future.result() for chunk, future in coming.popleft().items()}
            held = {chunk: held[chunk] for chunk in {int(chunk) for chunk in carried[:, 0]}} | loaded
            places = np.concatenate([carried, self._shuffled(loaded, epoch, number)])
            last = number + 1 == len(pools)
            whole = len(places) if last else len(places) - len(places) % self._batch_rows
            skipped = self._state["batch"] if number == first_pool else 0
            # Of a pool that was begun, the carried rows are those it began with.
            self._state |= {"pool": number, "carried": tuple(map(tuple, carried.tolist()))}
            for start in range(skipped * self._batch_rows, whole, self._batch_rows):
                self._state["batch"] = start // self._batch_rows + 1
                yield self._gather(held, places[start : start + self._batch_rows])
            carried = places[whole:]
            self._state |= {"pool": number + 1, "batch": 0, "carried": tuple(map(tuple, carried.tolist()))}

    def _shuffled(self, loaded: Mapping[int, _Loaded], epoch: int, pool: int) -> npt.NDArray[np.int64]:
        """(chunk, row) of every row of a pool, in the order in which they are served."""
        rows = [found.kept for found in loaded.values()]
        chunks = np.repeat(np.fromiter(loaded, np.int64, len(loaded)), [len(part) for part in rows])
        places = np.stack([chunks, np.concatenate([np.empty(0, np.int64), *rows])], axis=1)
        return np.random.default_rng([self._seed, epoch, pool]).permutation(places)

    def _gather(self, held: Mapping[int, _Loaded], places: npt.NDArray[np.int64]) -> LoadedBatch:
        size = len(places)
        sites = {site.site: np.empty((size, site.width), ELEMENT_TYPES[site.dtype]) for site in self._sites}
        tokens: dict[str, npt.NDArray[Any]] = {}
        # One row group after the other: rows that are copied side by side go twice as fast as rows that are scattered.
        places = places[np.argsort(places[:, 0], kind="stable")]
        starts = np.flatnonzero(np.diff(places[:, 0], prepend=-1))
        for start, stop in zip(starts, [*starts[1:], size], strict=True):
            chunk, rows = held[int(places[start, 0])], places[start:stop, 1]
            for name, out in sites.items():
                np.take(chunk.sites[name], rows, axis=0, out=out[start:stop], mode="clip")  # else it copies twice
            for name, values in chunk.tokens.items():
                tokens.setdefault(name, np.empty(size, values.dtype))[start:stop] = values[rows]
        return LoadedBatch(sites, {site.site: site.dtype for site in self._sites}, tokens)

    def _chunks_of(self, commit: Commit) -> list[_Chunk]:
        """From the footers alone."""
        smallest = max(self._sites, key=lambda site: site.row_bytes)
        with open_product(self._snapshot.bucket, commit, smallest.site) as file:
            ends = DenseReader(file).ends
        return [_Chunk(commit, int(first), int(last)) for first, last in pairwise(ends)]

    def _load(self, number: int) -> _Loaded:
        chunk = self._chunks[number]
        bucket, size = self._snapshot.bucket, chunk.last - chunk.first
        sites: dict[str, npt.NDArray[Any]] = {}
        for site in self._sites:
            with open_product(bucket, chunk.commit, site.site, verify=number not in self._verified) as file:
                raw = site.column(chunk.commit, DenseReader(file).rows(chunk.first, chunk.last))
            sites[site.site] = elements(raw, site.dtype, site.width)
        self._verified.add(number)
        if not self._exclude and not self._columns and self._held_out is None:
            return _Loaded(sites, {}, np.arange(size))
        tokens = shard_tokens(bucket, chunk.commit)
        rows = dense_token_rows(bucket, chunk.commit, tokens.num_rows)[chunk.first : chunk.last]
        kept = kept_rows(tokens["flags"].to_numpy()[rows], self._exclude)
        if self._held_out is not None:
            kept &= self._held_out.keeps(tokens["sequence"].to_numpy()[rows])
        columns = {name: tokens[name].to_numpy()[rows] for name in self._columns}
        return _Loaded(sites, columns, np.flatnonzero(kept))


def elements(raw: pa.Array, dtype: str, width: int) -> npt.NDArray[Any]:
    """[rows, width] in the memory that Arrow read into."""
    kind = np.dtype(ELEMENT_TYPES[dtype])
    row_bytes, first = width * kind.itemsize, raw.offset
    held = np.frombuffer(raw.buffers()[1] or b"", np.uint8)[first * row_bytes : (first + len(raw)) * row_bytes]
    return held.view(kind).reshape(len(raw), width)
