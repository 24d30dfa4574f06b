"""Assigns the shards of captures to workers until all of them are in the bucket.

The coordinator's only memory is the bucket: committed shards are never captured again, submitting the same
specification again captures what is missing, and a new coordinator finishes what an earlier one left. This module does
not use Ray: workers are objects that capture a shard.
"""

import asyncio
import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Protocol
from weakref import WeakValueDictionary

from actstore_api.reasons import REASONS, Kind
from actstore_api.records import capture as told
from actstore_api.records.capture import (
    CaptureEstimate,
    CaptureProgress,
    CaptureSpecification,
    GetCaptureTotalsAnswer,
)
from actstore_api.records.terms import Failure
from actstore_storage.errors import ActstoreError, BadRequest, NotThere
from actstore_storage.runs.opening import check_same_run
from actstore_storage.runs.snapshot import Snapshot
from actstore_worker.capture.limits import CoordinatorLimits
from actstore_worker.capture.merging import Merging
from actstore_worker.capture.progress import CaptureState
from actstore_worker.capture.run_plan import RunPlan
from actstore_worker.capture.shards.worker import ShardReport
from actstore_worker.capture.worker_pool import LOST_WORKER, Worker, WorkerPool

_log = logging.getLogger(__name__)

# Errors that would fail all other shards, too. After any other error the rest of the run is still captured.
_HOPELESS = {Kind.STORE, Kind.BAD_REQUEST, Kind.NOT_FOUND, Kind.DENIED, Kind.LIMIT}
# Errors that may go away: the capture pauses until they do.
_PAUSING = {"STORE_UNREACHABLE", "STORE_CREDENTIALS"}
# Errors of a single shard that happen again in each attempt.
_CERTAIN = {"VALUE_OVERFLOW"}
# The speed of a forward pass, as a fraction of the measured speed of a matrix product.
_FLOPS_SHARE = 0.5


class Preparer(Protocol):
    """Blocking work on models, datasets and the bucket, which runs on threads."""

    def plan(self, request: CaptureSpecification, stop: threading.Event) -> RunPlan:
        """Plans a run, without writing to the bucket. Errors: ActstoreError CANCELLED soon after `stop` is set."""

    def begin(self, plan: RunPlan, request: CaptureSpecification) -> Snapshot:
        """Creates the run and its request in the bucket, so that a later coordinator can finish it."""

    def unwant(self, run: str) -> None: ...

    def give_up(self, run: str) -> CaptureProgress | None:
        """Removes the request of a run that is not being captured. None: there was no request."""

    def wanted(self) -> dict[str, CaptureSpecification]:
        """Returns the requests by run."""

    def fold(self, run: str) -> None:
        """Folds commits into checkpoints."""


class Coordinator:
    """Runs captures. All methods run in one event loop, so that its state needs no locks."""

    def __init__(
        self, preparer: Preparer, workers: Iterable[Worker], limits: CoordinatorLimits, merging: Merging
    ) -> None:
        self._preparer = preparer
        self._limits = limits
        self._merging = merging
        self.pool = WorkerPool(list(workers), limits)
        self._captures: dict[str, CaptureState] = {}
        self._beginning = 0  # Slots that are reserved for captures that are not in `_captures` yet.
        self._by_run: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()
        self._planning = asyncio.Semaphore(limits.plans)
        self._totals: Counter[str] = Counter()  # By field of GetCaptureTotalsAnswer.

    async def submit(self, request: CaptureSpecification) -> str:
        """Plans and creates a run, and returns its name. If the request is wrong, an error is raised and nothing is
        written to the bucket.
        """
        plan = await self._plan(request)
        # From here on a caller who leaves changes nothing: a run that is created is captured.
        return await asyncio.shield(self._begin(plan, request))

    async def _begin(self, plan: RunPlan, request: CaptureSpecification) -> str:
        run = plan.record.run
        async with self._lock(run):
            if self._is_active(run):
                check_same_run(self._captures[run].record, plan.record)
                return run
            with self._place():
                snapshot = await asyncio.to_thread(self._preparer.begin, plan, request)
                self._captures.pop(run, None)
                self._forget_old()
                capture = self._captures[run] = CaptureState.of(snapshot, plan.dataset_files)
        plan = replace(plan, record=plan.record.continuing(snapshot.record))
        self._start(self._run(capture, plan))
        return run

    async def resume(self) -> bool:
        """Continue every requested run that this coordinator is not capturing. False: the store failed, try again."""
        whole = True
        try:
            wanted = await asyncio.to_thread(self._preparer.wanted)
        except ActstoreError as error:
            _log.warning("the list of requested captures cannot be read: %s", error.message)
            return False
        for run, request in wanted.items():
            if run in self._captures:
                continue
            try:
                await self.submit(request)
            except ActstoreError as error:
                _log.warning("the requested capture of run %s cannot be resumed: %s", run, error.message)
                whole = whole and error.reason not in _PAUSING
        return whole

    async def estimate(self, request: CaptureSpecification) -> CaptureEstimate:
        plan = await self._plan(request)
        flops = await self.pool.flops() * _FLOPS_SHARE
        work = plan.flops_per_token * plan.record.tokens_total
        return CaptureEstimate(
            documents=plan.documents,
            sequences=plan.record.sequences_total,
            tokens=plan.record.tokens_total,
            shards=plan.record.shards_total,
            bytes_by_product=plan.bytes_by_product,
            bytes=sum(plan.bytes_by_product.values()),
            seconds=work / flops if flops else 0.0,
            documents_with_bos=plan.documents_with_bos,
            dataset_files=plan.dataset_files,
        )

    async def _plan(self, request: CaptureSpecification) -> RunPlan:
        """Plans a run on a thread, which ends soon after the caller has gone."""
        stop = threading.Event()
        async with self._planning:
            try:
                return await asyncio.to_thread(self._preparer.plan, request, stop)
            finally:
                stop.set()

    async def progress_after(self, run: str, version: int) -> tuple[int, CaptureProgress]:
        """Returns progress and its version: at once if it is newer than `version`, else at the next change or
        heartbeat.
        """
        capture = self._find(run)
        if capture.version <= version and capture.active:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(capture.changed.wait(), self._limits.heartbeat_seconds)
        return capture.version, capture.progress()

    async def cancel(self, run: str) -> CaptureProgress:
        """Assigns no more shards and interrupts those in progress. Committed shards stay.

        It also removes the request of a run that is not being captured because it could not be resumed.
        """
        async with self._lock(run):  # Otherwise a run that is just being created would be missed.
            given_up = None if self._is_active(run) else await asyncio.to_thread(self._preparer.give_up, run)
        if given_up is not None:
            return given_up
        capture = self._find(run)
        if not capture.active:
            raise NotThere(
                f"run {run!r} is not being captured: it is {capture.state}",
                reason="CAPTURE_NOT_FOUND",
                field="run",
                value=run,
                allowed=self._running(),
            )
        await self._end(capture, "cancelled")
        await self.pool.interrupt(run)
        return capture.progress()

    async def totals(self) -> GetCaptureTotalsAnswer:
        return GetCaptureTotalsAnswer(captures_running=len(self._running()), **self._totals)

    async def _run(self, capture: CaptureState, plan: RunPlan) -> None:
        """Captures a run. All captures share the workers, first come, first served. A shard is assigned once a worker
        is idle.
        """
        attempts: set[asyncio.Task[None]] = set()
        while capture.active and (capture.pending or attempts):
            # A shard that will be tried again keeps its slot, so that an error of every shard does not make all of them
            # fail.
            if not capture.pending or len(attempts) >= self.pool.places:
                # And at intervals, for workers that have joined.
                _, attempts = await asyncio.wait(
                    attempts, timeout=self._limits.heartbeat_seconds, return_when=asyncio.FIRST_COMPLETED
                )
                continue
            worker = await self.pool.idle()
            if not capture.pending:
                self.pool.release(worker)
                continue
            attempts.add(asyncio.create_task(self._attempt(capture, plan, capture.pending.popleft(), worker)))
            attempts = {task for task in attempts if not task.done()}
        if attempts:
            await asyncio.wait(attempts)
        await self._finish(capture)

    async def _finish(self, capture: CaptureState) -> None:
        run = capture.record.run
        await self._fold(run)
        self._start(self._merging.merge(run))  # In the background: nothing waits for it.
        if capture.failed_shards:
            _, first = min(capture.failed_shards.items())
            await self._end(capture, "failed", first)
        else:
            await self._end(capture, "complete")

    async def _end(self, capture: CaptureState, state: told.CaptureState, failure: Failure | None = None) -> None:
        """Ends a capture once. Its request is removed before the final state is reported, and submitting the run again
        waits for this.
        """
        capture.pending.clear()
        async with capture.ending:
            if not capture.active:
                return
            await self._unwant(capture.record.run)
            capture.end(state, failure)
        self._totals[f"captures_{state}"] += 1

    async def _attempt(self, capture: CaptureState, plan: RunPlan, shard: int, worker: Worker) -> None:
        """Makes one attempt. A failed shard that will be tried again goes back to the pending ones."""
        failure = await self._try_shard(capture, plan, shard, worker)
        if failure is None or not capture.active:
            return
        if failure.reason in _PAUSING:
            if capture.pause(failure) > self._limits.patience_seconds:
                await self._end(capture, "failed", failure)
                return
            await asyncio.sleep(self._limits.pause_seconds)
        elif not self._may_try_again(capture, shard, failure):
            capture.fail_shard(shard, failure)
            if REASONS[failure.reason].kind in _HOPELESS and failure.reason not in _CERTAIN:
                await self._end(capture, "failed", failure)
            return
        else:
            await asyncio.sleep(self._limits.retry_seconds)
        capture.pending.appendleft(shard)

    def _may_try_again(self, capture: CaptureState, shard: int, failure: Failure) -> bool:
        if failure.reason in _CERTAIN:
            return False
        if failure.reason == LOST_WORKER:
            capture.lost[shard] += 1
            return capture.lost[shard] < self._limits.losses_per_shard
        capture.tried[shard] += 1
        return capture.tried[shard] < self._limits.attempts_per_shard

    async def _try_shard(self, capture: CaptureState, plan: RunPlan, shard: int, worker: Worker) -> Failure | None:
        run = capture.record.run
        try:
            self._count(capture, await self.pool.capture(worker, plan, shard))
        except ActstoreError as error:
            _log.warning("shard %d of %s: %s", shard, run, error.message)
            return Failure(error.reason, error.message, error.details)
        except Exception:  # noqa: BLE001  a worker's fault must not end the coordinator
            _log.exception("shard %d of %s", shard, run)
            return Failure(
                "INTERNAL", f"shard {shard} failed; the coordinator's log has the details", {"shard": str(shard)}
            )
        if capture.shards_committed % self._limits.fold_shards == 0:
            self._start(self._tidy(run))
        return None

    async def _tidy(self, run: str) -> None:
        await self._fold(run)
        await self._merging.merge(run)

    async def _fold(self, run: str) -> None:
        try:
            await asyncio.to_thread(self._preparer.fold, run)
        except ActstoreError as error:  # It is tried again later.
            _log.warning("the commits of %s could not be folded into checkpoints: %s", run, error.message)

    async def _unwant(self, run: str) -> None:
        try:
            await asyncio.to_thread(self._preparer.unwant, run)
        except ActstoreError as error:  # The next coordinator then finds a request with nothing left to do.
            _log.warning("the request for run %s could not be removed: %s", run, error.message)

    def _count(self, capture: CaptureState, report: ShardReport) -> None:
        if report.won:
            self._totals["shards_committed"] += 1
            self._totals["tokens_committed"] += report.tokens
            self._totals["bytes_committed"] += report.bytes
        else:
            capture.shuffle()
        if capture.active:
            capture.go_on()
        capture.committed(report.tokens)

    def _start(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _find(self, run: str) -> CaptureState:
        if run not in self._captures:
            raise NotThere(
                f"run {run!r} is not being captured",
                reason="CAPTURE_NOT_FOUND",
                field="run",
                value=run,
                allowed=self._running(),
            )
        return self._captures[run]

    def _is_active(self, run: str) -> bool:
        return run in self._captures and self._captures[run].active

    def _running(self) -> list[str]:
        return [run for run, capture in self._captures.items() if capture.active]

    def _lock(self, run: str) -> asyncio.Lock:
        """The lock for creating a run or removing its request."""
        return self._by_run.setdefault(run, asyncio.Lock())

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """Reserves a slot for a run before anything of it is in the bucket, so that simultaneous requests cannot exceed
        the limit.
        """
        running = len(self._running()) + self._beginning
        if running >= self._limits.captures:
            raise BadRequest(
                f"{running} captures are running, and at most {self._limits.captures} may run at a time",
                reason="LIMIT_EXCEEDED",
                field="captures",
                value=running + 1,
                allowed=f"at most {self._limits.captures}",
            )
        self._beginning += 1
        try:
            yield
        finally:
            self._beginning -= 1

    def _forget_old(self) -> None:
        ended = [run for run, capture in self._captures.items() if not capture.active]
        for run in ended[: max(0, len(ended) - self._limits.finished_captures + 1)]:
            del self._captures[run]
