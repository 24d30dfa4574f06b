"""Hands the shards of running captures to idle workers, fairly among principals, and tries failed ones again."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from actstore_api.logs.traces import apart
from actstore_api.reasons import REASONS, Kind
from actstore_api.records.terms import Failure
from actstore_storage.errors import ActstoreError
from actstore_worker.capture.limits import CoordinatorLimits
from actstore_worker.capture.queueing.fair_queue import FairQueue, Flow
from actstore_worker.capture.queueing.progress import CaptureState
from actstore_worker.capture.run_plan import RunPlan
from actstore_worker.capture.shards.report import ShardReport
from actstore_worker.capture.worker_pool import LOST_WORKER, Worker, WorkerPool

_log = logging.getLogger(__name__)

# Errors that would fail all other shards, too. After any other error the rest of the run is still captured.
_HOPELESS = {Kind.STORE, Kind.BAD_REQUEST, Kind.NOT_FOUND, Kind.DENIED, Kind.LIMIT}
# Errors that may go away: the capture pauses until they do.
PAUSING = {"STORE_UNREACHABLE", "STORE_CREDENTIALS"}
# Errors of a single shard that happen again in each attempt.
_CERTAIN = {"VALUE_OVERFLOW"}


class Audience(Protocol):
    """Who is told what becomes of shards."""

    async def fail(self, capture: CaptureState, failure: Failure) -> None:
        """No further shard of this capture would succeed."""

    def captured(self, capture: CaptureState, report: ShardReport) -> None: ...

    def attempt_failed(self, failure: Failure) -> None: ...


@dataclass(eq=False)
class _Running:
    """A capture whose shards are assigned. `attempts` includes those that wait to be tried again."""

    capture: CaptureState
    plan: RunPlan
    attempts: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def goes_on(self) -> bool:
        return bool(self.attempts or (self.capture.active and self.capture.pending))


class Attempts:
    """All attempts of one coordinator. All methods run in one event loop."""

    def __init__(
        self,
        pool: WorkerPool,
        limits: CoordinatorLimits,
        audience: Audience,
        start: Callable[[Awaitable[None]], "asyncio.Task[None]"],
    ) -> None:
        self._pool, self._limits, self._audience, self._start = pool, limits, audience, start
        self._fair = FairQueue(limits.quantum_token_layers, limits.bulk_share)
        # Two of one run, if it was submitted again after its end while an attempt was still being interrupted.
        self._running: list[_Running] = []
        self._assigning: asyncio.Task[None] | None = None

    async def run(self, capture: CaptureState, plan: RunPlan) -> None:
        """Captures all shards that are pending, until they are committed or given up, or the capture ends."""
        running = _Running(capture, plan)
        self._running.append(running)
        try:
            while running.goes_on:
                running.ended.clear()
                self._assign_soon()
                # At intervals, too, for shards that are tried again.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._limits.heartbeat_seconds):  # wait_for may swallow a cancellation.
                        await running.ended.wait()
        finally:
            self._running.remove(running)
            self._tell_demand()

    def _tell_demand(self) -> None:
        """Shards that wait to be tried again count: their workers would only be let go to come back."""
        self._pool.want(sum(len(one.capture.pending) + one.attempts for one in self._running))

    def _assign_soon(self) -> None:
        self._tell_demand()
        if self._assigning is None or self._assigning.done():
            self._assigning = self._start(self._assign())

    async def _assign(self) -> None:
        """Assigns shards while there are any. Which one is decided once a worker is idle."""
        while self._waiting():
            worker = await self._pool.idle()
            if waiting := self._waiting():
                chosen = waiting[
                    self._fair.choose({flow: one.capture.shard_token_layers for flow, one in waiting.items()})
                ]
                chosen.attempts += 1
                self._start(self._attempt(chosen, chosen.capture.pending.popleft(), worker))
            else:
                self._pool.release(worker)

    def _waiting(self) -> dict[Flow, _Running]:
        """The first capture of each flow that has a shard to assign. The flow with the least committed work comes
        first, also after a restart.

        A shard that will be tried again keeps its slot, so that an error of every shard does not make all of them fail.
        """
        waiting: dict[Flow, _Running] = {}
        for one in sorted(self._running, key=lambda one: one.capture.order):
            if one.capture.active and one.capture.pending and one.attempts < self._pool.places:
                waiting.setdefault(one.capture.flow, one)
        return dict(sorted(waiting.items(), key=lambda found: found[1].capture.token_layers_committed))

    async def _attempt(self, running: _Running, shard: int, worker: Worker) -> None:
        apart(running.capture.request_id, running.capture.queued.traceparent)
        try:
            await self._make(running.capture, running.plan, shard, worker)
        finally:
            running.attempts -= 1
            running.ended.set()
        self._assign_soon()

    async def _make(self, capture: CaptureState, plan: RunPlan, shard: int, worker: Worker) -> None:
        """Makes one attempt. A failed shard that will be tried again goes back to the pending ones."""
        failure = await self._try_shard(capture, plan, shard, worker)
        if failure is not None:
            self._audience.attempt_failed(failure)
        if failure is None or not capture.active:
            return
        if failure.reason in PAUSING:
            if capture.pause(failure) > self._limits.patience_seconds:
                await self._audience.fail(capture, failure)
                return
            await asyncio.sleep(self._limits.pause_seconds)
        elif not self._may_try_again(capture, shard, failure):
            capture.fail_shard(shard, failure)
            if REASONS[failure.reason].kind in _HOPELESS and failure.reason not in _CERTAIN:
                await self._audience.fail(capture, failure)
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
            report = await self._pool.capture(worker, plan, shard)
        except ActstoreError as error:
            _log.warning("shard %d of %s: %s", shard, run, error.for_log)
            return Failure(error.reason, error.message, error.details)
        except Exception:  # noqa: BLE001  a worker's fault must not end the coordinator
            _log.exception("shard %d of %s", shard, run)
            return Failure(
                "INTERNAL", f"shard {shard} failed; the coordinator's log has the details", {"shard": str(shard)}
            )
        self._audience.captured(capture, report)
        return None
