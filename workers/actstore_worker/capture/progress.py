"""How a capture is getting on: what callers are told, and what the coordinator keeps of it."""

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from actstore_api.records.terms import Failure
from actstore_storage.format.specification import RunRecord
from actstore_storage.runs.snapshot import Snapshot

# Of shards that failed, those whose causes are told.
FAILED_SHARDS_TOLD = 100


class State(Enum):
    """The names of proto CaptureState."""

    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    COMPLETE = "COMPLETE"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"

    @property
    def ended(self) -> bool:
        return self not in (State.RUNNING, State.PAUSED)


@dataclass(frozen=True)
class DatasetFiles:
    """Fields of proto DatasetFiles: of the dataset's folder, how many files are read and not, and some that are not."""

    read: int = 0
    not_read: int = 0
    first_not_read: tuple[str, ...] = ()


NO_FILES = DatasetFiles()


@dataclass(frozen=True)
class Progress:
    """Fields of proto CaptureProgress."""

    run: str
    state: State
    shards_committed: int
    shards_total: int
    tokens_committed: int
    tokens_total: int
    elapsed_seconds: float
    failure: Failure | None
    failed_shards: Mapping[int, Failure] = field(default_factory=dict)
    dataset_files: DatasetFiles = field(default_factory=DatasetFiles)

    @property
    def ended(self) -> bool:
        return self.state.ended


@dataclass(frozen=True)
class Estimate:
    """Fields of proto CaptureEstimate."""

    documents: int
    sequences: int
    tokens: int
    shards: int
    bytes_by_product: Mapping[str, int]
    bytes: int
    seconds: float
    documents_with_bos: int = 0
    dataset_files: DatasetFiles = field(default_factory=DatasetFiles)


@dataclass
class Totals:
    """Counts since this coordinator started; the fields of proto GetCaptureTotalsResponse."""

    captures_running: int = 0
    captures_complete: int = 0
    captures_failed: int = 0
    captures_cancelled: int = 0
    shards_committed: int = 0
    tokens_committed: int = 0
    bytes_committed: int = 0


@dataclass
class CaptureState:
    """A capture in hand. `changed` is set, and replaced, at each change.

    `tried` counts the failures of a shard, `lost` the workers that died with it.
    """

    record: RunRecord
    pending: deque[int]
    shards_committed: int
    tokens_committed: int
    dataset_files: DatasetFiles = field(default_factory=DatasetFiles)
    state: State = State.RUNNING
    failure: Failure | None = None
    failed_shards: dict[int, Failure] = field(default_factory=dict)
    tried: Counter[int] = field(default_factory=Counter)
    lost: Counter[int] = field(default_factory=Counter)
    paused_since: float | None = None
    ending: asyncio.Lock = field(default_factory=asyncio.Lock)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    version: int = 0
    started: float = field(default_factory=time.monotonic)
    elapsed_seconds: float | None = None

    @classmethod
    def of(cls, snapshot: Snapshot, files: DatasetFiles = NO_FILES) -> "CaptureState":
        there = set(snapshot.shards)
        pending = deque(shard for shard in range(snapshot.record.shards_total) if shard not in there)
        return cls(snapshot.record, pending, len(there), snapshot.tokens_committed, files)

    @property
    def active(self) -> bool:
        return not self.state.ended

    def progress(self) -> Progress:
        elapsed_seconds = time.monotonic() - self.started if self.elapsed_seconds is None else self.elapsed_seconds
        told = sorted(self.failed_shards.items())[:FAILED_SHARDS_TOLD]
        return Progress(
            self.record.run,
            self.state,
            self.shards_committed,
            self.record.shards_total,
            self.tokens_committed,
            self.record.tokens_total,
            elapsed_seconds,
            self.failure if self.state in (State.FAILED, State.PAUSED) else None,
            dict(told),
            self.dataset_files,
        )

    def committed(self, tokens: int) -> None:
        self.shards_committed += 1
        self.tokens_committed += tokens
        self.tell()

    def pause(self, failure: Failure) -> float:
        """Seconds for which it has been paused now."""
        if self.paused_since is None:
            self.paused_since = time.monotonic()
            self.state, self.failure = State.PAUSED, failure
            self.tell()
        return time.monotonic() - self.paused_since

    def go_on(self) -> None:
        if self.paused_since is not None:
            self.paused_since = None
            self.state, self.failure = State.RUNNING, None
            self.tell()

    def fail_shard(self, shard: int, failure: Failure) -> None:
        self.failed_shards[shard] = failure
        self.tell()

    def shuffle(self) -> None:
        """Another coordinator is at work on this run: go on somewhere else than it does."""
        shards = list(self.pending)
        random.shuffle(shards)
        self.pending = deque(shards)

    def end(self, state: State, failure: Failure | None = None) -> None:
        self.pending.clear()
        self.elapsed_seconds = time.monotonic() - self.started
        self.state, self.failure = state, failure
        self.tell()

    def tell(self) -> None:
        self.version += 1
        self.changed.set()
        self.changed = asyncio.Event()
