"""Who of a coordinator's workers is idle, and what becomes of one that dies: with stand-ins that capture nothing."""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from actstore_storage.errors import ActstoreError
from actstore_worker.capture.limits import CoordinatorLimits
from actstore_worker.capture.shards.worker import TASKS
from actstore_worker.capture.worker_pool import WorkerPool
from tests.waiting import PATIENCE_SECONDS

LOST = ActstoreError("a worker process died", reason="WORKERS_UNAVAILABLE")
FULL = ActstoreError("no space", reason="STORE_FULL")
LIMITS = CoordinatorLimits(retry_seconds=0.05, heartbeat_seconds=0.05, answer_seconds=0.05)
PLANS: dict[str, Any] = {
    run: SimpleNamespace(record=SimpleNamespace(run=run), task=lambda shard, attempt: (shard, attempt))
    for run in ("a", "b")
}


class Standin:
    """Answers with the shard's number, or raises what it is told to."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault, self.gate = fault, asyncio.Event()
        self.attempts: list[str] = []
        self.interrupted: list[str] = []
        self.asked_ready: list[float] = []
        self.not_ready = 0

    async def capture(self, task: Any) -> Any:
        shard, attempt = task
        self.attempts.append(attempt)
        if self.fault is not None:
            raise self.fault
        await self.gate.wait()
        return shard

    async def interrupt(self, attempt: str) -> None:
        self.interrupted.append(attempt)

    async def ready(self) -> None:
        self.asked_ready.append(asyncio.get_running_loop().time())
        if len(self.asked_ready) <= self.not_ready:
            raise LOST

    async def flops(self) -> float:
        return 1.0


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, PATIENCE_SECONDS))


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


def test_each_worker_is_handed_out_once_before_any_is_twice() -> None:
    async def work() -> None:
        first, second, third = Standin(), Standin(), Standin()
        pool = WorkerPool([first, second], LIMITS)
        assert (len(pool), pool.places) == (2, 2 * TASKS)
        assert idle_now(pool) == [first, second] * TASKS
        pool.add([third])
        assert (len(pool), pool.places) == (3, 3 * TASKS)
        assert idle_now(pool) == [third] * TASKS

    run(work())


@pytest.mark.parametrize("fault", [None, FULL])
def test_a_worker_is_idle_again_after_its_attempt_whatever_came_of_it(fault: Exception | None) -> None:
    async def work() -> None:
        worker = Standin(fault)
        pool = WorkerPool([worker], LIMITS)
        assert idle_now(pool) == [worker] * TASKS
        capturing = asyncio.create_task(pool.capture(worker, PLANS["a"], 7))
        worker.gate.set()
        assert await asyncio.gather(capturing, return_exceptions=True) == [fault or 7]
        assert idle_now(pool) == [worker]
        assert worker.asked_ready == []  # which nobody asks of one that did not die

    run(work())


def test_one_that_died_is_idle_once_it_is_back_and_is_asked_only_now_and_then() -> None:
    async def work() -> None:
        worker = Standin(LOST)
        worker.not_ready = 2
        pool = WorkerPool([worker], LIMITS)
        idle_now(pool)
        with pytest.raises(ActstoreError, match="died"):
            await pool.capture(worker, PLANS["a"], 7)
        assert idle_now(pool) == []
        assert await pool.idle() is worker
        first, second, third = worker.asked_ready
        assert min(second - first, third - second) >= LIMITS.retry_seconds

    run(work())


def test_what_is_under_way_of_one_run_is_interrupted_and_nothing_that_is_over() -> None:
    async def work() -> None:
        one, other = Standin(), Standin()
        pool = WorkerPool([one, other], LIMITS)
        one.gate.set()
        await pool.capture(one, PLANS["a"], 0)
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


def test_who_does_not_answer_holds_up_neither_an_interrupt_nor_the_sum_of_speeds() -> None:
    class Deaf(Standin):
        async def interrupt(self, attempt: str) -> None:
            await asyncio.Event().wait()

        async def flops(self) -> float:
            return float(await asyncio.Event().wait())

    class Dead(Standin):
        async def flops(self) -> float:
            raise LOST

    async def work() -> None:
        deaf, alive = Deaf(), Standin()
        pool = WorkerPool([deaf, Dead(), alive], replace(LIMITS, heartbeat_seconds=0.01, answer_seconds=0.01))
        under_way = [asyncio.create_task(pool.capture(worker, PLANS["a"], 1)) for worker in (deaf, alive)]
        await asyncio.sleep(0)
        await pool.interrupt("a")
        assert alive.interrupted == alive.attempts
        assert await pool.flops() == 1.0
        deaf.gate.set()
        alive.gate.set()
        await asyncio.gather(*under_way)

    run(work())
