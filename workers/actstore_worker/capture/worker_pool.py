"""The workers of one coordinator: how many are wanted, which ones are idle, and their attempts in progress.

A worker is started for each shard that waits or is in progress, up to the most that there may be. It is let go once so
many were not needed for a while; one that waits for a node is let go at once, so that no node is brought in vain.
"""

import asyncio
import contextlib
import logging
import time
import uuid
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from actstore_api.logs.lines import FIELDS
from actstore_storage.errors import ActstoreError
from actstore_worker.capture.limits import CoordinatorLimits
from actstore_worker.capture.run_plan import RunPlan
from actstore_worker.capture.shards.report import TASKS, ShardReport, fields_of

if TYPE_CHECKING:  # the coordinator's process makes no shard, and does not need torch
    from actstore_worker.capture.shards.tasks import Task

_log = logging.getLogger(__name__)

LOST_WORKER = "WORKERS_UNAVAILABLE"


class Worker(Protocol):
    """Captures up to `TASKS` shards at a time. It waits for its node as long as it has to."""

    async def ready(self) -> str:
        """Returns the worker's device, cpu or cuda, once it can take shards. Errors: ActstoreError; it cannot start."""

    async def ended(self) -> None:
        """Returns once the worker, which was ready, has ended, whatever ended it."""

    def end(self) -> None:
        """Ends the worker, wherever it is; no effect if it has ended."""

    async def capture(self, task: "Task[Any]") -> ShardReport:
        """Captures a shard. Errors: any; the shard is tried again. WORKERS_UNAVAILABLE if the worker died."""

    async def interrupt(self, attempt: str) -> None:
        """Make `capture` of this attempt stop soon; no effect if it has ended."""

    async def flops(self) -> float:
        """Floating-point operations per second of a large matrix product on its device."""


@dataclass(eq=False)
class _Member:
    """A worker of the pool. `device` is None, and it takes no shard, until it has come."""

    worker: Worker
    device: str | None = None
    free: int = 0


class Peak:
    """A value and the largest that it was in the last `seconds`. Each step takes constant time on average."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.value = 0
        # Earlier values, each with the time until which it held: the later, the smaller.
        self._earlier: deque[tuple[float, int]] = deque()

    def set(self, value: int, now: float) -> None:
        if value < self.value:
            while self._earlier and self._earlier[-1][1] <= self.value:
                self._earlier.pop()
            self._earlier.append((now, self.value))
        self.value = value

    def at(self, now: float) -> int:
        """The largest value since `seconds` before now."""
        self._forget(now)
        return max(self.value, self._earlier[0][1]) if self._earlier else self.value

    def falls_in(self, now: float) -> float | None:
        """The seconds until the largest value may be a smaller one. None: it stays as long as the value does."""
        self._forget(now)
        return max(0.0, self._earlier[0][0] + self.seconds - now) if self._earlier else None

    def _forget(self, now: float) -> None:
        while self._earlier and (self._earlier[0][0] + self.seconds <= now or self._earlier[0][1] <= self.value):
            self._earlier.popleft()


class WorkerPool:
    """All workers. All methods run in one event loop.

    `most` is how many there may be, and `room` how many the nodes have room for that are there: both are the cluster's,
    and change with it.
    """

    def __init__(self, new_worker: Callable[[], Worker], limits: CoordinatorLimits, most: int = 1) -> None:
        self._new_worker, self._limits = new_worker, limits
        self.most = self.room = most
        self._members: dict[Worker, _Member] = {}
        self._coming: dict[_Member, None] = {}  # Those that take no shard yet.
        # By number of free places, those that have been idle longest first.
        self._by_free: list[OrderedDict[_Member, None]] = [OrderedDict() for _ in range(TASKS + 1)]
        self._freed = asyncio.Event()
        self._in_flight: dict[str, tuple[str, Worker]] = {}  # By attempt: its run and worker.
        self._shards = self._wishes = 0
        self._needed = Peak(limits.worker_idle_seconds)
        self._flops: float | None = None  # Of one worker, as last measured.
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Workers that have come, and those that are on their way."""
        return len(self._members)

    @property
    def devices(self) -> Mapping[str, int]:
        """Workers that can take shards, by device."""
        return Counter(member.device for member in self._members.values() if member.device is not None)

    @property
    def idle_workers(self) -> int:
        """Workers that have come and capture nothing."""
        return len(self._by_free[TASKS])

    @property
    def waits_for(self) -> str:
        """What shards wait for, in words. Empty: a worker is there."""
        if len(self._members) > len(self._coming):
            return ""
        return "a capture worker, which starts" if self.room else "a node for a capture worker"

    @property
    def wanted(self) -> int:
        """Workers that are needed now."""
        expected = min(self._shards + self._wishes, self.room)
        return min(self.most, max(self._limits.workers_min, self._shards, expected))

    @property
    def places(self) -> int:
        """The largest number of tasks that all workers together can have in progress. At least 1: without a worker, the
        first task waits for one.
        """
        return max(1, TASKS * len(self._members))

    def want(self, shards: int) -> None:
        """Says how many shards wait or are in progress."""
        self._shards = shards
        self.adjust()

    @contextlib.contextmanager
    def expecting(self) -> Iterator[None]:
        """Within this context, one more worker is wanted, if there is room for it: a shard may come soon."""
        self._wishes += 1
        self.adjust()
        try:
            yield
        finally:
            self._wishes -= 1
            self.adjust()

    def resize(self, most: int, room: int) -> None:
        """Says how many workers there may be from now on."""
        self.most, self.room = most, room
        self.adjust()

    def adjust(self) -> None:
        """Starts workers that are missing, and lets those go that have not been needed for a while."""
        now, wanted = time.monotonic(), self.wanted
        self._needed.set(wanted, now)
        for _ in range(wanted - len(self._members)):
            self._begin()
        if len(self._members) > wanted:
            self._let_go(now)

    async def idle(self) -> Worker:
        """The worker with most free places that has been idle longest, once there is one, for `capture` or
        `release`.
        """
        while not any(self._by_free[1:]):
            self._freed.clear()
            await self._freed.wait()
        member = next(iter(next(filter(None, reversed(self._by_free)))))
        self._move(member, member.free - 1)
        return member.worker

    def release(self, worker: Worker) -> None:
        """The worker has a free place again. No effect if it has gone."""
        member = self._members.get(worker)
        if member is not None:
            self._move(member, member.free + 1)

    async def capture(self, worker: Worker, plan: RunPlan, shard: int) -> ShardReport:
        """Makes one attempt with that worker, which has a free place again afterwards, unless it died.

        Errors: any of the worker's.
        """
        attempt = uuid.uuid4().hex[:12]
        self._in_flight[attempt] = plan.record.run, worker
        lost = False
        try:
            FIELDS.set(fields_of(plan.record.run, shard, attempt))
            return await worker.capture(plan.task(shard, attempt))
        except ActstoreError as error:
            lost = error.reason == LOST_WORKER
            raise
        finally:
            del self._in_flight[attempt]
            if lost:
                self._drop(worker)
                self.adjust()
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
        """The speed of as many workers as there may be, by the average of those that answer. Without any, it is as last
        measured, or 0.
        """
        # Without room, those that are on their way wait for a node, which may take long.
        asked = [one for one in self._members.values() if self.room or one not in self._coming]
        answers = (asyncio.wait_for(_speed(one.worker), self._limits.answer_seconds) for one in asked)
        found = await asyncio.gather(*answers, return_exceptions=True)
        speeds = [speed for speed in found if isinstance(speed, float)]
        if speeds:
            self._flops = sum(speeds) / len(speeds)
        return (self._flops or 0.0) * self.most

    def _begin(self) -> None:
        member = _Member(self._new_worker())
        self._members[member.worker] = member
        self._coming[member] = None
        task = asyncio.create_task(self._follow(member), name="capture-worker")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow(self, member: _Member) -> None:
        """Offers the worker from when it has come until it has ended. Another takes its place if one is needed."""
        try:
            device = await member.worker.ready()
        except ActstoreError as error:
            if member.worker in self._members:
                _log.warning("a capture worker did not start: %s", error.message)
                await asyncio.sleep(self._limits.pause_seconds)
        else:
            member.device = device
            self._coming.pop(member, None)
            if member.worker in self._members:
                self._move(member, TASKS)
            await member.worker.ended()
        self._drop(member.worker)
        self.adjust()

    def _let_go(self, now: float) -> None:
        while self._coming and len(self._members) > max(self.wanted, self.room):
            self._drop(next(reversed(self._coming)).worker)
        while len(self._members) > self._needed.at(now) and self._by_free[TASKS]:
            self._drop(next(iter(self._by_free[TASKS])).worker)
        seconds = self._needed.falls_in(now)
        if self._timer is not None:
            self._timer.cancel()
        if seconds is not None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self.adjust)

    def _drop(self, worker: Worker) -> None:
        member = self._members.pop(worker, None)
        if member is not None:
            self._coming.pop(member, None)
            self._by_free[member.free].pop(member, None)
            worker.end()

    def _move(self, member: _Member, free: int) -> None:
        """To the end of those with so many free places."""
        self._by_free[member.free].pop(member, None)
        member.free = free
        if free:
            self._by_free[free][member] = None
            self._freed.set()


async def _speed(worker: Worker) -> float:
    await worker.ready()
    return await worker.flops()
