"""The state of a capture: what the coordinator keeps of it, and what callers get."""

import asyncio
import random
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from actstore_api.records import capture
from actstore_api.records.capture import CaptureProgress, CaptureSpecification, DatasetFiles, ShardFailure
from actstore_api.records.terms import Failure
from actstore_api.request_ids import REQUEST_ID
from actstore_storage.format.specification import RunRecord
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.wanted import Queued
from actstore_worker.capture.planning.work import token_layers_per_shard
from actstore_worker.capture.queueing.fair_queue import Flow
from actstore_worker.capture.queueing.waiting import Entry

# The number of failed shards whose causes are reported.
FAILED_SHARDS_TOLD = 100


NO_FILES = DatasetFiles()


@dataclass
class CaptureState:
    """A capture of this coordinator. `changed` is set, and replaced, at each change.

    `waits` is whether it is in the queue. `tried` counts the failures of a shard, `lost` the workers that died with it.
    """

    record: RunRecord
    pending: deque[int]
    shards_committed: int
    tokens_committed: int
    dataset_files: DatasetFiles = field(default_factory=DatasetFiles)
    queued: Queued = field(default_factory=Queued)
    request: CaptureSpecification = field(default_factory=CaptureSpecification)
    waits: bool = False
    state: capture.CaptureState = "running"
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
    # Who asked for it, for the log; empty if an earlier coordinator was asked.
    request_id: str = field(default_factory=REQUEST_ID.get)

    @classmethod
    def of(cls, snapshot: Snapshot, files: DatasetFiles = NO_FILES) -> "CaptureState":
        missing = np.ones(snapshot.record.shards_total, dtype=bool)
        missing[snapshot.shards] = False
        pending = deque(np.flatnonzero(missing).tolist())
        return cls(snapshot.record, pending, len(missing) - len(pending), snapshot.tokens_committed, files)

    @property
    def active(self) -> bool:
        return self.state in ("running", "paused")

    @property
    def flow(self) -> Flow:
        return Flow(self.queued.capture_class, self.queued.principal)

    @property
    def waited_seconds(self) -> float:
        """Seconds since it was submitted, or since it was found for one of an earlier version, which has no time."""
        submitted = self.queued.submitted_seconds
        return max(0.0, time.time() - submitted) if submitted else time.monotonic() - self.started

    @cached_property
    def shard_token_layers(self) -> float:
        return token_layers_per_shard(self.record)

    @property
    def order(self) -> tuple[float, float, str]:
        """A principal's captures of one class get workers in this order."""
        return self.queued.turn, self.queued.submitted_seconds, self.record.run

    @property
    def token_layers_committed(self) -> float:
        return self.shards_committed * self.shard_token_layers

    @property
    def entry(self) -> Entry:
        left = (self.record.shards_total - self.shards_committed) * self.shard_token_layers
        return Entry(self.record.run, self.flow, self.queued.turn, self.queued.submitted_seconds, left)

    def leave_queue(self) -> None:
        self.waits = False
        self.tell()

    def progress(self) -> CaptureProgress:
        elapsed_seconds = time.monotonic() - self.started if self.elapsed_seconds is None else self.elapsed_seconds
        told = sorted(self.failed_shards.items())[:FAILED_SHARDS_TOLD]
        return CaptureProgress(
            self.record.run,
            self.state,
            self.shards_committed,
            self.record.shards_total,
            self.tokens_committed,
            self.record.tokens_total,
            elapsed_seconds,
            self.failure if self.state in ("failed", "paused") else None,
            tuple(ShardFailure(*each) for each in told),
            self.dataset_files,
        )

    def committed(self, tokens: int) -> None:
        self.shards_committed += 1
        self.tokens_committed += tokens
        self.tell()

    def pause(self, failure: Failure) -> float:
        """The seconds for which it has been paused."""
        if self.paused_since is None:
            self.paused_since = time.monotonic()
            self.state, self.failure = "paused", failure
            self.tell()
        return time.monotonic() - self.paused_since

    def go_on(self) -> None:
        if self.paused_since is not None:
            self.paused_since = None
            self.state, self.failure = "running", None
            self.tell()

    def fail_shard(self, shard: int, failure: Failure) -> None:
        self.failed_shards[shard] = failure
        self.tell()

    def shuffle(self) -> None:
        """Another coordinator works on the same run: shuffles the pending shards, so that both work on
        different ones.
        """
        shards = list(self.pending)
        random.shuffle(shards)
        self.pending = deque(shards)

    def end(self, state: capture.CaptureState, failure: Failure | None = None) -> None:
        self.pending.clear()
        self.elapsed_seconds = time.monotonic() - self.started
        self.state, self.failure, self.waits = state, failure, False
        self.tell()

    def tell(self) -> None:
        self.version += 1
        self.changed.set()
        self.changed = asyncio.Event()
