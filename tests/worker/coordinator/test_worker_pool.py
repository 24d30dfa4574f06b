"""How many workers a coordinator has, which of them is idle, and what becomes of one that dies: with stand-ins that
capture nothing.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from actstore_storage.errors import ActstoreError
from actstore_worker.capture.limits import CoordinatorLimits
from actstore_worker.capture.shards.report import TASKS
from actstore_worker.capture.worker_pool import Peak, WorkerPool
from tests.waiting import PATIENCE_SECONDS

LOST = ActstoreError("a worker process died", reason="WORKERS_UNAVAILABLE")
FULL = ActstoreError("no space", reason="STORE_FULL")
LIMITS = CoordinatorLimits(retry_seconds=0.05, pause_seconds=0.05, heartbeat_seconds=0.05, answer_seconds=0.05)
FOREVER = CoordinatorLimits(worker_idle_seconds=10 * PATIENCE_SECONDS)
PLANS: dict[str, Any] = {
    run: SimpleNamespace(record=SimpleNamespace(run=run), task=lambda shard, attempt: (shard, attempt))
    for run in ("a", "b")
}


class Standin:
    """Answers with the shard's number, or raises what it is told to. It comes once `comes` is set."""

    def __init__(self, fault: Exception | None = None, speed: float | Exception | None = 1.0) -> None:
        self.fault, self.speed = fault, speed
        self.gate, self.comes, self.over = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.comes.set()
        self.attempts: list[str] = []
        self.interrupted: list[str] = []
        self.cannot_start = False

    async def ready(self) -> str:
        await self.comes.wait()
        if self.cannot_start:
            raise LOST
        return "cpu"

    async def ended(self) -> None:
        await self.over.wait()

    def end(self) -> None:
        self.over.set()

    async def capture(self, task: Any) -> Any:
        shard, attempt = task
        self.attempts.append(attempt)
        if self.fault is not None:
            raise self.fault
        await self.gate.wait()
        return shard

    async def interrupt(self, attempt: str) -> None:
        self.interrupted.append(attempt)

    async def flops(self) -> float:
        if self.speed is None:
            await asyncio.Event().wait()
        if isinstance(self.speed, Exception):
            raise self.speed
        assert self.speed is not None
        return self.speed


class Started:
    """The workers that a pool has started, in order; the next ones are as told, then ordinary."""

    def __init__(self, *nexts: Standin) -> None:
        self.nexts, self.workers = list(nexts), list[Standin]()

    def __call__(self) -> Standin:
        self.workers.append(self.nexts.pop(0) if self.nexts else Standin())
        return self.workers[-1]

    @property
    def there(self) -> list[Standin]:
        return [worker for worker in self.workers if not worker.over.is_set()]


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, PATIENCE_SECONDS))


async def until(holds: Any) -> None:
    while not holds():
        await asyncio.sleep(0.001)


def idle_now(pool: WorkerPool) -> list[Any]:
    """All that can be had without waiting; they are not given back."""
    found: list[Any] = []
    waiting = pool.idle()
    try:
        while True:
            waiting.send(None)
            waiting.close()
            return found
    except StopIteration as got:
        return [got.value, *idle_now(pool)]


async def pool_of(*workers: Standin, limits: CoordinatorLimits = LIMITS) -> WorkerPool:
    """A pool in which all of these have come."""
    pool = WorkerPool(Started(*workers), limits, len(workers))
    pool.want(len(workers))
    await until(lambda: pool.idle_workers == len(workers))
    return pool


def test_each_worker_is_handed_out_once_before_any_is_twice() -> None:
    async def work() -> None:
        first, second, third = Standin(), Standin(), Standin()
        pool = WorkerPool(Started(first, second, third), LIMITS, 3)
        pool.want(2)
        await until(lambda: pool.idle_workers == 2)
        assert (len(pool), pool.places) == (2, 2 * TASKS)
        assert idle_now(pool) == [first, second] * TASKS
        pool.want(3)
        await until(lambda: pool.idle_workers == 1)
        assert (len(pool), pool.places) == (3, 3 * TASKS)
        assert idle_now(pool) == [third] * TASKS

    run(work())


def test_as_many_workers_come_as_shards_wait_up_to_the_most() -> None:
    async def work() -> None:
        started = Started()
        pool = WorkerPool(started, FOREVER, 4)
        assert (len(pool), pool.wanted, pool.places) == (0, 0, 1)
        for shards, workers in ((1, 1), (3, 3), (100, 4), (2, 4)):
            pool.want(shards)
            assert (pool.wanted, len(started.there)) == (min(shards, 4), workers)
        pool.resize(6, 0)
        pool.want(100)
        assert len(started.there) == 6

    run(work())


def test_workers_that_are_not_needed_are_let_go_after_a_while_and_come_back() -> None:
    """The busy ones stay, and at rest only the least number."""

    async def work() -> None:
        started = Started()
        pool = WorkerPool(started, replace(LIMITS, worker_idle_seconds=0.05, workers_min=1), 4)
        pool.want(4)
        await until(lambda: pool.idle_workers == 4)
        busy = [await pool.idle() for _ in range(3)]
        pool.want(0)
        assert len(started.there) == 4
        await until(lambda: len(started.there) == 3)
        assert set(busy) == set(started.there)
        for worker in busy:
            pool.release(worker)
        pool.adjust()
        assert (len(pool), pool.idle_workers, len(started.there)) == (1, 1, 1)
        pool.want(4)
        await until(lambda: pool.idle_workers == 4)
        assert len(started.workers) == 7

    run(work())


def test_one_that_waits_for_a_node_is_let_go_as_soon_as_it_is_not_needed() -> None:
    """Those for which there is room come, and are let go later."""

    async def work() -> None:
        started = Started(*(Standin() for _ in range(4)))
        pool = WorkerPool(started, FOREVER, 4)
        for worker in started.nexts:
            worker.comes.clear()
        pool.resize(4, 1)
        pool.want(4)
        first, *others = started.workers
        pool.want(0)
        assert started.there == [first]
        first.comes.set()
        await until(lambda: pool.idle_workers == 1)
        assert all(other.over.is_set() for other in others)

    run(work())


def test_a_shard_that_may_come_wants_a_worker_only_where_there_is_room() -> None:
    async def work() -> None:
        started = Started()
        pool = WorkerPool(started, FOREVER, 4)
        pool.resize(4, 0)
        with pool.expecting():
            assert started.workers == []
        pool.resize(4, 1)
        with pool.expecting():
            assert len(started.workers) == 1
            pool.want(1)  # It came.
        assert len(started.workers) == 1

    run(work())


@pytest.mark.parametrize("fault", [None, FULL])
def test_a_worker_is_idle_again_after_its_attempt_whatever_came_of_it(fault: Exception | None) -> None:
    async def work() -> None:
        worker = Standin(fault)
        pool = await pool_of(worker)
        assert idle_now(pool) == [worker] * TASKS
        capturing = asyncio.create_task(pool.capture(worker, PLANS["a"], 7))
        worker.gate.set()
        assert await asyncio.gather(capturing, return_exceptions=True) == [fault or 7]
        assert idle_now(pool) == [worker]

    run(work())


def test_another_takes_the_place_of_one_that_died_in_a_shard_or_between_two() -> None:
    """One that cannot start is tried again after a pause."""

    async def work() -> None:
        first, second, third = Standin(LOST), Standin(), Standin()
        second.cannot_start = True
        started = Started(first, second, third)
        pool = WorkerPool(started, LIMITS, 1)
        pool.want(1)
        worker = await pool.idle()
        with pytest.raises(ActstoreError, match="died"):
            await pool.capture(worker, PLANS["a"], 7)
        assert first.over.is_set()
        began = asyncio.get_running_loop().time()
        assert await pool.idle() is third
        assert asyncio.get_running_loop().time() - began >= LIMITS.pause_seconds
        third.over.set()  # Between two shards nobody calls it.
        await until(lambda: len(started.workers) == 4)
        assert await pool.idle() is started.workers[3]
        pool.release(third)  # A place of one that has gone is no place.
        assert idle_now(pool) == [started.workers[3]]

    run(work())


def test_what_is_under_way_of_one_run_is_interrupted_and_nothing_that_is_over() -> None:
    async def work() -> None:
        one, other = Standin(), Standin()
        pool = await pool_of(one, other)
        idle_now(pool)
        one.gate.set()
        await pool.capture(one, PLANS["a"], 0)
        assert await pool.idle() is one
        one.gate.clear()
        under_way = [
            asyncio.create_task(pool.capture(worker, PLANS[name], 1))
            for worker, name in ((one, "a"), (one, "b"), (other, "a"))
        ]
        await asyncio.sleep(0)
        await pool.interrupt("a")
        assert (one.interrupted, other.interrupted) == ([one.attempts[1]], other.attempts)
        assert len({*one.attempts, *other.attempts}) == 4
        for worker in (one, other):
            worker.gate.set()
        assert await asyncio.gather(*under_way) == [1, 1, 1]

    run(work())


def test_who_does_not_hear_holds_up_no_interrupt() -> None:
    class Deaf(Standin):
        async def interrupt(self, attempt: str) -> None:
            await asyncio.Event().wait()

    async def work() -> None:
        deaf, alive = Deaf(), Standin()
        pool = await pool_of(deaf, alive)
        idle_now(pool)
        under_way = [asyncio.create_task(pool.capture(worker, PLANS["a"], 1)) for worker in (deaf, alive)]
        await asyncio.sleep(0)
        await pool.interrupt("a")
        assert alive.interrupted == alive.attempts
        deaf.gate.set()
        alive.gate.set()
        await asyncio.gather(*under_way)

    run(work())


def test_the_speed_is_of_all_that_there_may_be_by_those_that_answer() -> None:
    """It is remembered where nobody is there; without a node it is unknown, and no node is wanted for it."""

    async def work() -> None:
        pool = await pool_of(Standin(speed=1.0), Standin(speed=3.0), Standin(speed=None), Standin(speed=LOST))
        assert await pool.flops() == 4 * 2.0
        started = Started()
        alone = WorkerPool(started, replace(LIMITS, worker_idle_seconds=0.01), 5)
        alone.resize(5, 0)
        with alone.expecting():
            assert (await alone.flops(), started.workers) == (0.0, [])
        alone.resize(5, 1)
        with alone.expecting():
            assert await alone.flops() == 5.0
        await until(lambda: not started.there)
        alone.resize(5, 0)
        assert await alone.flops() == 5.0

    run(work())


def test_a_peak_lasts_for_its_seconds() -> None:
    peak = Peak(10.0)
    for now, value in ((0, 3), (1, 5), (2, 1), (3, 2), (4, 0)):
        peak.set(value, now)
    found = [(now, peak.at(now)) for now in (4, 11, 12, 13, 14)]
    assert found == [(4, 5), (11, 5), (12, 2), (13, 2), (14, 0)]
    peak.set(1, 20)
    assert (peak.at(20), peak.falls_in(20)) == (1, None)
    peak.set(0, 21)
    assert (peak.at(30), peak.falls_in(30), peak.at(31)) == (1, 1.0, 0)
