"""The workers of one coordinator: which ones are idle, their attempts in progress, and which ones died."""

import asyncio
import contextlib
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from actstore_api.logs.lines import FIELDS
from actstore_storage.errors import ActstoreError
from actstore_worker.capture.limits import CoordinatorLimits
from actstore_worker.capture.run_plan import RunPlan
from actstore_worker.capture.shards.tasks import Task, fields_of
from actstore_worker.capture.shards.worker import TASKS, ShardReport

LOST_WORKER = "WORKERS_UNAVAILABLE"


class Worker(Protocol):
    """Captures up to `TASKS` shards at a time."""

    async def capture(self, task: Task[Any]) -> ShardReport:
        """Captures a shard. Errors: any; the shard is tried again. WORKERS_UNAVAILABLE if the worker died."""

    async def interrupt(self, attempt: str) -> None:
        """Make `capture` of this attempt stop soon; no effect if it has ended."""

    async def ready(self) -> None:
        """Returns once the worker can take shards: if it died, once another has replaced it."""

    async def flops(self) -> float:
        """Floating-point operations per second of a large matrix product on its device."""


class WorkerPool:
    """All workers. All methods run in one event loop."""

    def __init__(self, workers: Sequence[Worker], limits: CoordinatorLimits) -> None:
        self._limits = limits
        self._workers: list[Worker] = []
        self._idle: asyncio.Queue[Worker] = asyncio.Queue()
        self._in_flight: dict[str, tuple[str, Worker]] = {}  # By attempt: its run and worker.
        self._coming_back: set[asyncio.Task[None]] = set()
        self.add(workers)

    def __len__(self) -> int:
        return len(self._workers)

    @property
    def places(self) -> int:
        """The largest number of tasks that all workers together can have in progress. At least 1: without a worker, the
        first task waits for one.
        """
        return max(1, TASKS * len(self._workers))

    def add(self, workers: Sequence[Worker]) -> None:
        """Adds each worker as often as it takes tasks, but all of them once before any of them twice."""
        self._workers += workers
        for worker in [worker for _ in range(TASKS) for worker in workers]:
            self.release(worker)

    async def idle(self) -> Worker:
        """The worker that has been idle longest, once there is one, for `capture` or `release`."""
        return await self._idle.get()

    def release(self, worker: Worker) -> None:
        self._idle.put_nowait(worker)

    async def capture(self, worker: Worker, plan: RunPlan, shard: int) -> ShardReport:
        """Makes one attempt with that worker, which is idle again afterwards: if it died, once another has replaced it.

        Errors: any of the worker's.
        """
        attempt = uuid.uuid4().hex[:12]
        self._in_flight[attempt] = plan.record.run, worker
        FIELDS.set(fields_of(plan.record.run, shard, attempt))
        lost = False
        try:
            return await worker.capture(plan.task(shard, attempt))
        except ActstoreError as error:
            lost = error.reason == LOST_WORKER
            raise
        finally:
            del self._in_flight[attempt]
            if lost:
                self._bring_back(worker)
            else:
                self.release(worker)

    async def interrupt(self, run: str) -> None:
        """Stops all attempts of a run soon. A worker that does not answer has nothing to interrupt."""
        under_way = [(attempt, worker) for attempt, (of, worker) in self._in_flight.items() if of == run]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.heartbeat_seconds):
                await asyncio.gather(
                    *(worker.interrupt(attempt) for attempt, worker in under_way), return_exceptions=True
                )

    async def flops(self) -> float:
        """The speed of all workers together; one that does not answer is not counted."""
        answers = (asyncio.wait_for(worker.flops(), self._limits.answer_seconds) for worker in self._workers)
        speeds = await asyncio.gather(*answers, return_exceptions=True)
        return sum(speed for speed in speeds if isinstance(speed, float))

    def _bring_back(self, worker: Worker) -> None:
        task = asyncio.create_task(self._release_when_ready(worker))
        self._coming_back.add(task)
        task.add_done_callback(self._coming_back.discard)

    async def _release_when_ready(self, worker: Worker) -> None:
        """A worker that died takes no shard before another has replaced it."""
        while True:
            try:
                await worker.ready()
            except ActstoreError:
                await asyncio.sleep(self._limits.retry_seconds)
            else:
                self.release(worker)
                return
