"""Hands the shards of captures to workers until the bucket has all of them.

Its only memory is the bucket: what is committed is never done again, and the same specification submitted again
finishes what is missing. Knows nothing of Ray: workers are objects that capture a shard.
"""

import asyncio
import contextlib
import itertools
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from actstore_api.reasons import REASONS, Failure, Kind
from actstore_storage.errors import ActstoreError, BadRequest, NotThere
from actstore_storage.snapshot import Snapshot
from actstore_storage.specification import RunRecord
from actstore_worker.capture_worker import TASKS, ShardReport, ShardTask
from actstore_worker.plan import CaptureRequest, Plan
from actstore_worker.settings import CoordinatorLimits

_log = logging.getLogger(__name__)

# What fails one shard so will fail all others; after anything else the rest of the run is still captured.
_HOPELESS = {Kind.STORE, Kind.BAD_REQUEST, Kind.NOT_FOUND, Kind.DENIED, Kind.LIMIT}


class State(Enum):
    """The names of proto CaptureState."""

    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"


class Worker(Protocol):
    """Captures up to `TASKS` shards at a time."""

    async def capture(self, task: ShardTask) -> ShardReport:
        """Errors: any; the shard is tried again."""

    async def interrupt(self, attempt: str) -> None:
        """Make `capture` of this attempt give up soon; no effect where it is over."""


@dataclass(frozen=True)
class Prepared:
    """A run that is in the bucket, and how to capture what `snapshot` does not have."""

    plan: Plan
    snapshot: Snapshot


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

    @property
    def ended(self) -> bool:
        return self.state is not State.RUNNING


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
class _Capture:
    """`in_flight` holds the worker of each attempt; `changed` is set, and replaced, at each change."""

    record: RunRecord
    pending: deque[int]
    shards_committed: int
    tokens_committed: int
    state: State = State.RUNNING
    failure: Failure | None = None
    in_flight: dict[str, Worker] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    version: int = 0
    started: float = field(default_factory=time.monotonic)
    elapsed_seconds: float | None = None

    @classmethod
    def of(cls, snapshot: Snapshot) -> "_Capture":
        there = {commit.shard for commit in snapshot.commits}
        pending = deque(shard for shard in range(snapshot.record.shards_total) if shard not in there)
        return cls(snapshot.record, pending, len(there), snapshot.tokens_committed)

    def progress(self) -> Progress:
        elapsed_seconds = time.monotonic() - self.started if self.elapsed_seconds is None else self.elapsed_seconds
        return Progress(
            self.record.run,
            self.state,
            self.shards_committed,
            self.record.shards_total,
            self.tokens_committed,
            self.record.tokens_total,
            elapsed_seconds,
            self.failure if self.state is State.FAILED else None,
        )

    def end(self, state: State) -> None:
        self.elapsed_seconds = time.monotonic() - self.started
        self.state = state
        self.tell()

    def tell(self) -> None:
        self.version += 1
        self.changed.set()
        self.changed = asyncio.Event()


class Coordinator:
    """All methods run in one event loop, so that its state needs no locks."""

    def __init__(
        self,
        prepare: Callable[[CaptureRequest], Prepared],
        workers: Sequence[Worker],
        limits: CoordinatorLimits,
    ) -> None:
        self._prepare = prepare
        self._limits = limits
        # Each worker as often as it takes tasks, but all of them once before any of them twice.
        places = [worker for _ in range(TASKS) for worker in workers]
        self._lane_count = len(places)
        self._idle: asyncio.Queue[Worker] = asyncio.Queue()
        for worker in places:
            self._idle.put_nowait(worker)
        self._captures: dict[str, _Capture] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._planning = asyncio.Semaphore(limits.plans)
        self._totals = Totals()

    async def submit(self, request: CaptureRequest) -> str:
        """The run's name once it is planned and in the bucket. Errors: whatever is wrong with the request."""
        async with self._planning:
            prepared = await asyncio.to_thread(self._prepare, request)
        run = prepared.snapshot.record.run
        known = self._captures.get(run)
        if known is not None and known.state is State.RUNNING:
            return run
        self._check_room()
        self._captures.pop(run, None)
        self._forget_old()
        capture = self._captures[run] = _Capture.of(prepared.snapshot)
        task = asyncio.create_task(self._run(capture, prepared.plan))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return run

    async def progress_after(self, run: str, version: int) -> tuple[int, Progress]:
        """Progress and its version: at once where it is newer than `version`, else at the next change or heartbeat."""
        capture = self._find(run)
        if capture.version <= version and capture.state is State.RUNNING:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(capture.changed.wait(), self._limits.heartbeat_seconds)
        return capture.version, capture.progress()

    async def cancel(self, run: str) -> Progress:
        """Gives out no more shards and interrupts those under way. What is committed stays."""
        capture = self._find(run)
        if capture.state is not State.RUNNING:
            raise NotThere(
                f"run {run!r} is not being captured: it is {capture.state.value.lower()}",
                reason="CAPTURE_NOT_FOUND",
                field="run",
                value=run,
                allowed=self._running(),
            )
        capture.pending.clear()
        capture.end(State.CANCELLED)
        self._totals.captures_cancelled += 1
        await asyncio.gather(
            *(worker.interrupt(attempt) for attempt, worker in capture.in_flight.items()), return_exceptions=True
        )
        return capture.progress()

    async def totals(self) -> Totals:
        self._totals.captures_running = len(self._running())
        return self._totals

    async def _run(self, capture: _Capture, plan: Plan) -> None:
        """A lane for each task that the workers take at once; all captures share them, first come, first served."""
        lanes = min(self._lane_count, len(capture.pending))
        await asyncio.gather(*(self._lane(capture, plan) for _ in range(lanes)))
        if capture.state is not State.RUNNING:
            return
        if capture.failure is None:
            capture.end(State.COMPLETE)
            self._totals.captures_complete += 1
        else:
            capture.end(State.FAILED)
            self._totals.captures_failed += 1

    async def _lane(self, capture: _Capture, plan: Plan) -> None:
        while capture.pending:
            shard = capture.pending.popleft()
            for tried in itertools.count(1):
                failure = await self._try_shard(capture, plan, shard)
                if failure is None or capture.state is not State.RUNNING:
                    break
                if tried == self._limits.attempts_per_shard:
                    capture.failure = capture.failure or failure
                    if REASONS[failure.reason].kind in _HOPELESS:
                        capture.pending.clear()
                    break
                await asyncio.sleep(self._limits.retry_seconds)

    async def _try_shard(self, capture: _Capture, plan: Plan, shard: int) -> Failure | None:
        worker = await self._idle.get()
        attempt = uuid.uuid4().hex[:12]
        capture.in_flight[attempt] = worker
        try:
            if capture.state is State.RUNNING:
                self._count(capture, await worker.capture(_task(plan, shard, attempt)))
        except ActstoreError as error:
            _log.warning("shard %d of %s: %s", shard, capture.record.run, error.message)
            return Failure(error.reason, error.message, error.details)
        except Exception:  # noqa: BLE001  a worker's fault must not end the coordinator
            _log.exception("shard %d of %s", shard, capture.record.run)
            return Failure("INTERNAL", f"shard {shard} failed; the coordinator's log says how", {"shard": str(shard)})
        finally:
            del capture.in_flight[attempt]
            self._idle.put_nowait(worker)
        return None

    def _count(self, capture: _Capture, report: ShardReport) -> None:
        capture.shards_committed += 1
        capture.tokens_committed += report.tokens
        if report.won:
            self._totals.shards_committed += 1
            self._totals.tokens_committed += report.tokens
            self._totals.bytes_committed += report.bytes
        capture.tell()

    def _find(self, run: str) -> _Capture:
        if run not in self._captures:
            raise NotThere(
                f"run {run!r} is not being captured",
                reason="CAPTURE_NOT_FOUND",
                field="run",
                value=run,
                allowed=self._running(),
            )
        return self._captures[run]

    def _running(self) -> list[str]:
        return [run for run, capture in self._captures.items() if capture.state is State.RUNNING]

    def _check_room(self) -> None:
        running = len(self._running())
        if running >= self._limits.captures:
            raise BadRequest(
                f"{running} captures are running, and no more than {self._limits.captures} may",
                reason="LIMIT_EXCEEDED",
                field="captures",
                value=running + 1,
                allowed=f"at most {self._limits.captures}",
            )

    def _forget_old(self) -> None:
        ended = [run for run, capture in self._captures.items() if capture.state is not State.RUNNING]
        for run in ended[: max(0, len(ended) - self._limits.finished_captures + 1)]:
            del self._captures[run]


def _task(plan: Plan, shard: int, attempt: str) -> ShardTask:
    """With the plan's record, not that of whoever began the run: a commit says which device and version made it."""
    sequences = plan.sequences.select(plan.record.shard_sequences(shard))
    return ShardTask(plan.record, plan.model_source, plan.sae_paths, shard, sequences, attempt)
