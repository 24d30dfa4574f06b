"""Runs captures until all of their shards are in the bucket: queues them, starts them, and follows them to their end.

The coordinator's only memory is the bucket: committed shards are never captured again, submitting the same
specification again captures what is missing, and a new coordinator finishes what an earlier one left. This module does
not use Ray: workers are objects that capture a shard.
"""

import asyncio
import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Protocol
from weakref import WeakValueDictionary

from actstore_api.logs.lines import FIELDS
from actstore_api.logs.traces import apart
from actstore_api.records import capture as told
from actstore_api.records.capture import (
    CaptureEstimate,
    CaptureProgress,
    CaptureSpecification,
    GetCaptureTotalsAnswer,
    PrincipalTotals,
)
from actstore_api.records.terms import Failure
from actstore_storage.errors import ActstoreError, NotThere
from actstore_storage.runs.opening import check_same_run
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.wanted import Queued
from actstore_worker.caller import ANYONE, Caller
from actstore_worker.capture.activity import Activity
from actstore_worker.capture.attempts import PAUSING, Attempts
from actstore_worker.capture.limits import CoordinatorLimits
from actstore_worker.capture.merging import Merging
from actstore_worker.capture.queued_captures import QueuedCaptures
from actstore_worker.capture.queueing.planning import Planning
from actstore_worker.capture.queueing.progress import CaptureState
from actstore_worker.capture.queueing.quotas import UseQuotas
from actstore_worker.capture.queueing.usage import UsedBy
from actstore_worker.capture.run_plan import RunPlan
from actstore_worker.capture.shards.report import ShardReport
from actstore_worker.capture.worker_pool import LOST_WORKER, Worker, WorkerPool
from actstore_worker.models.used import Used

_log = logging.getLogger(__name__)

# The speed of a forward pass, as a fraction of the measured speed of a matrix product.
_FLOPS_SHARE = 0.5


class Preparer(Protocol):
    """Blocking work on models, datasets and the bucket, which runs on threads."""

    def plan(self, request: CaptureSpecification, stop: threading.Event) -> RunPlan:
        """Plans a run, without writing to the bucket. Errors: ActstoreError CANCELLED soon after `stop` is set."""

    def begin(self, plan: RunPlan, request: CaptureSpecification, queued: Queued) -> Snapshot:
        """Creates the run and its request in the bucket, so that a later coordinator can finish it."""

    def unwant(self, run: str) -> None: ...

    def give_up(self, run: str) -> CaptureProgress | None:
        """Removes the request of a run that is not being captured. None: there was no request."""

    def wanted(self) -> list[tuple[CaptureSpecification, Queued]]:
        """Returns the requests, in the order in which their captures start, within a class."""

    def opened(self, run: str) -> Snapshot | None:
        """Opens a run. None: it does not exist."""

    def fold(self, run: str) -> None:
        """Folds commits into checkpoints."""


class Coordinator:
    """Runs captures. All methods run in one event loop, so that its state needs no locks."""

    def __init__(
        self,
        preparer: Preparer,
        new_worker: Callable[[], Worker],
        limits: CoordinatorLimits,
        merging: Merging,
        workers_max: int = 1,
    ) -> None:
        """`new_worker` starts a worker. There are at most `workers_max`, until the pool is resized."""
        self._preparer = preparer
        self._limits = limits
        self._merging = merging
        self.pool = WorkerPool(new_worker, limits, workers_max)
        self._attempts = Attempts(self.pool, limits, self, self._start)
        self._captures = QueuedCaptures(limits)
        self._by_run: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()
        self._planning = Planning(limits.plans)
        self._totals: Counter[str] = Counter()  # By field of GetCaptureTotalsAnswer.
        self.used_by = UsedBy(limits.principals_counted)
        self._quotas = UseQuotas(limits.tokens_a_minute, limits.device_seconds_an_hour, limits.principals)
        self.activity = Activity()

    async def submit(self, request: CaptureSpecification, caller: Caller = ANYONE) -> str:
        """Plans and creates a run, and returns its name. It starts as soon as it has a place.

        If the request is wrong, the queue is full or a quota is used up, an error is raised and nothing is written to
        the bucket.
        """
        self.admit(caller.principal)
        return await self._submit(request, caller)

    def admit(self, principal: str) -> None:
        """Errors: BUSY or LIMIT_EXCEEDED for a principal that is beyond what it may use."""
        self._quotas.check(principal)

    def used_live(self, principal: str, used: Used) -> None:
        """Counts what a principal used in live questions and sweeps."""
        self.activity.live_seconds += used.device_seconds
        self._used(principal, used)

    def _used(self, principal: str, used: Used) -> None:
        self.used_by.add(principal, used)
        self._quotas.used(principal, used)

    async def _submit(self, request: CaptureSpecification, caller: Caller, queued: Queued | None = None) -> str:
        """`queued`: the place that an earlier coordinator gave it."""
        with self.pool.expecting():
            plan = await self._plan(request, caller)
        # From here on a caller who leaves changes nothing: a run that is created is captured.
        return await asyncio.shield(self._begin(plan, request, caller.principal, queued))

    async def _begin(self, plan: RunPlan, request: CaptureSpecification, principal: str, queued: Queued | None) -> str:
        run = plan.record.run
        async with self._lock(run):
            if (known := self._captures.get(run)) is not None and known.active:
                check_same_run(known.record, plan.record)
                return run
            there = await asyncio.to_thread(self._preparer.opened, run)
            committed = 0 if there is None else there.tokens_committed
            new = self._captures.new_place(plan.record, principal, committed)
            with new if queued is None else contextlib.nullcontext(queued) as place:
                snapshot = await asyncio.to_thread(self._preparer.begin, plan, request, place)
                capture = self._captures.enter(snapshot, request, place)
        capture.dataset_files = plan.dataset_files
        self._start_next(plan)
        return run

    async def resume(self) -> bool:
        """Continue every requested run that this coordinator is not capturing, in the order of their turns.

        False: the store failed, try again.
        """
        whole = True
        try:
            wanted = await asyncio.to_thread(self._preparer.wanted)
        except ActstoreError as error:
            _log.warning("the list of requested captures cannot be read: %s", error.for_log)
            return False
        for request, queued in wanted:
            if self._captures.get(request.run) is not None:
                continue
            try:
                await self._resume(request, queued)
            except ActstoreError as error:
                _log.warning("the requested capture of run %s cannot be resumed: %s", request.run, error.for_log)
                whole = whole and error.reason not in PAUSING
            except Exception:  # noqa: BLE001  a fault of one capture must not keep the others from going on
                _log.exception("the requested capture of run %s cannot be resumed", request.run)
        self._start_next()
        return whole

    async def _resume(self, request: CaptureSpecification, queued: Queued) -> None:
        """A run that exists waits again without being planned, which would take long for many."""
        async with self._lock(request.run):
            if self._captures.is_active(request.run):
                return
            snapshot = await asyncio.to_thread(self._preparer.opened, request.run)
            if snapshot is not None:
                self._captures.enter_again(snapshot, request, queued)
                return
        await self._submit(request, Caller(queued.principal), queued)

    async def estimate(self, request: CaptureSpecification, caller: Caller = ANYONE) -> CaptureEstimate:
        with self.pool.expecting():
            plan = await self._plan(request, caller)
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

    async def _plan(self, request: CaptureSpecification, caller: Caller = ANYONE) -> RunPlan:
        """Plans a run on a thread, which ends soon after the caller has gone.

        Errors: those of the request; LIMIT_EXCEEDED if its turn comes later than the caller waits.
        """
        stop = threading.Event()
        async with self._planning.turn(caller):
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
        return capture.version, self._progress(capture)

    async def cancel(self, run: str) -> CaptureProgress:
        """Assigns no more shards and interrupts those in progress. Committed shards stay.

        It also removes the request of a run that is not being captured because it could not be resumed.
        """
        async with self._lock(run):  # Otherwise a run that is just being created would be missed.
            given_up = None if self._captures.is_active(run) else await asyncio.to_thread(self._preparer.give_up, run)
        if given_up is not None:
            return given_up
        capture = self._find(run)
        if not capture.active:
            raise NotThere(
                f"run {run!r} is not being captured: it is {capture.state}",
                reason="CAPTURE_NOT_FOUND",
                field="run",
                value=run,
                allowed=self._captures.active,
            )
        await self._end(capture, "cancelled")
        await self.pool.interrupt(run)
        return self._progress(capture)

    @property
    def paused(self) -> int:
        """Captures that wait for the store."""
        return self._captures.paused

    @property
    def quota_refusals(self) -> Mapping[str, int]:
        """Refusals since the start, by the quota that was used up."""
        return {**self._quotas.refusals, "tokens_a_day": self._captures.refusals_of_tokens}

    async def totals(self) -> GetCaptureTotalsAnswer:
        principals = self.used_by.principals.items()
        return GetCaptureTotalsAnswer(
            captures_running=self._captures.running,
            queues=self._captures.totals(),
            principals=tuple(PrincipalTotals(name, used.device_seconds) for name, used in principals),
            **self._totals,
        )

    def _start_next(self, known: RunPlan | None = None) -> None:
        """Starts every capture that has a place. The plans of others are dropped, because they hold their runs' tokens:
        only the `known` one may be used at once.
        """
        while capture := self._captures.start_next():
            plan = known if known is not None and known.record.run == capture.record.run else None
            self._start(self._run(capture, plan))

    def _progress(self, capture: CaptureState) -> CaptureProgress:
        place = self._captures.place(capture, self.pool.most)
        waits = capture.state == "running" and place is None
        return replace(capture.progress(), queue=place, waits_for=self.pool.waits_for if waits else "")

    async def _run(self, capture: CaptureState, plan: RunPlan | None) -> None:
        """Captures a run, and ends it whatever happens: nobody waits for a capture that a fault has stopped.

        After a fault it stays requested: the next coordinator tries again.
        """
        apart(capture.request_id, capture.queued.traceparent)
        FIELDS.set({"run": capture.record.run})
        try:
            await self._capture(capture, plan)
        except Exception:  # noqa: BLE001  a fault of one capture must not end the coordinator
            _log.exception("the capture of %s cannot go on", capture.record.run)
            failure = Failure("INTERNAL", "the capture cannot go on; the coordinator's log has the details", {})
            await self._end(capture, "failed", failure, let_go=False)

    async def _capture(self, capture: CaptureState, plan: RunPlan | None) -> None:
        """Captures what is missing of a run. All captures share the workers: see `Attempts`."""
        if capture.pending:
            plan = plan or await self._plan_again(capture)
            if plan is None:
                return
            capture.dataset_files = plan.dataset_files
            await self._attempts.run(capture, replace(plan, record=plan.record.continuing(capture.record)))
        await self._finish(capture)

    async def _plan_again(self, capture: CaptureState) -> RunPlan | None:
        """Plans a capture that has waited. None: it has ended, because it was cancelled, or cannot be planned any more.

        It could be planned when it was submitted, so it stays requested: the next coordinator tries again.
        """
        while capture.active:
            try:
                plan = await self._plan(capture.request)
                check_same_run(capture.record, plan.record)
            except ActstoreError as error:
                failure = Failure(error.reason, error.message, error.details)
                if failure.reason not in PAUSING or capture.pause(failure) > self._limits.patience_seconds:
                    await self._end(capture, "failed", failure, let_go=False)
                else:
                    await asyncio.sleep(self._limits.pause_seconds)
            else:
                capture.go_on()
                return plan
        return None

    async def fail(self, capture: CaptureState, failure: Failure) -> None:
        """Ends a capture, because no further shard would succeed."""
        await self._end(capture, "failed", failure)

    async def _finish(self, capture: CaptureState) -> None:
        run = capture.record.run
        await self._fold(run)
        self._start(self._merging.merge(run))  # In the background: nothing waits for it.
        if capture.failed_shards:
            _, first = min(capture.failed_shards.items())
            await self._end(capture, "failed", first)
        else:
            await self._end(capture, "complete")

    async def _end(
        self,
        capture: CaptureState,
        state: told.CaptureState,
        failure: Failure | None = None,
        *,
        let_go: bool = True,
    ) -> None:
        """Ends a capture once. Its request is removed, if it is let go, before the final state is reported, and
        submitting the run again waits for this.
        """
        capture.pending.clear()
        async with capture.ending:
            if not capture.active:
                return
            if let_go:
                await self._unwant(capture.record.run)
            capture.end(state, failure)
        _log.info("the capture of %s is %s %s", capture.record.run, state, failure.reason if failure else "")
        self._totals[f"captures_{state}"] += 1
        self._captures.ended(capture)
        self._start_next()

    async def _tidy(self, run: str) -> None:
        await self._fold(run)
        await self._merging.merge(run)

    async def _fold(self, run: str) -> None:
        try:
            await asyncio.to_thread(self._preparer.fold, run)
        except ActstoreError as error:  # It is tried again later.
            _log.warning("the commits of %s could not be folded into checkpoints: %s", run, error.for_log)

    async def _unwant(self, run: str) -> None:
        try:
            await asyncio.to_thread(self._preparer.unwant, run)
        except ActstoreError as error:
            _log.warning("the request for run %s could not be removed yet: %s", run, error.for_log)
            self._start(self._unwant_later(run))

    async def _unwant_later(self, run: str) -> None:
        """Removes a request once the store lets it, unless the run is asked for again. If this coordinator ends before,
        the next one finds a request with nothing left to do.
        """
        gone = False
        while not gone:
            await asyncio.sleep(self._limits.pause_seconds)
            async with self._lock(run):
                if self._captures.is_active(run):
                    return
                with contextlib.suppress(ActstoreError):
                    await asyncio.to_thread(self._preparer.unwant, run)
                    gone = True

    def attempt_failed(self, failure: Failure) -> None:
        """Counts an attempt that failed."""
        self.activity.failed(lost=failure.reason == LOST_WORKER)

    def captured(self, capture: CaptureState, report: ShardReport) -> None:
        self.activity.captured(report, capture.shard_token_layers)
        self._used(capture.queued.principal, Used(report.tokens, report.device_seconds))
        self._captures.speed.observe(capture.shard_token_layers, report.device_seconds)
        if report.won:
            self._totals["shards_committed"] += 1
            self._totals["tokens_committed"] += report.tokens
            self._totals["bytes_committed"] += report.bytes
        else:
            capture.shuffle()
        if capture.active:
            capture.go_on()
        capture.committed(report.tokens)
        if capture.shards_committed % self._limits.fold_shards == 0:
            self._start(self._tidy(capture.record.run))

    def _start(self, work: Awaitable[None]) -> "asyncio.Task[None]":
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _find(self, run: str) -> CaptureState:
        capture = self._captures.get(run)
        if capture is None:
            raise NotThere(
                f"run {run!r} is not being captured",
                reason="CAPTURE_NOT_FOUND",
                field="run",
                value=run,
                allowed=self._captures.active,
            )
        return capture

    def _lock(self, run: str) -> asyncio.Lock:
        """The lock for creating a run or removing its request."""
        return self._by_run.setdefault(run, asyncio.Lock())
