"""The coordinator and workers that are slow, deaf, or not there."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from actstore_storage.bucket import Bucket
from actstore_storage.errors import ActstoreError
from actstore_storage.runs.opening import open_run
from actstore_worker.capture.flops import flops_per_token
from actstore_worker.capture.plan import PlanSettings, plan_capture
from actstore_worker.capture.progress import Progress, State, Totals
from actstore_worker.capture.shards.worker import TASKS, ShardReport, ShardTask
from actstore_worker.catalogue import ModelCatalogue
from actstore_worker.datasets.places import DatasetPlaces
from tests.coordinating import LIMITS, REQUEST, SHARDS, ThreadWorker, bucket, coordinator, lab, run, watch

__all__ = ["bucket", "lab"]


class Rated(ThreadWorker):
    """Says of itself that it is so fast; of None, it never answers, and of an error, it raises that."""

    def __init__(self, bucket: Bucket, speed: float | Exception | None) -> None:
        super().__init__(bucket)
        self._speed = speed

    async def flops(self) -> float:
        if self._speed is None:
            await asyncio.Event().wait()
        if isinstance(self._speed, Exception):
            raise self._speed
        assert self._speed is not None
        return self._speed


LOST = ActstoreError("a worker process died", reason="WORKERS_UNAVAILABLE")


@pytest.mark.parametrize(
    ("speeds", "together"), [([1e9], 1e9), ([1e9, 3e9], 4e9), ([None, 1e9, LOST], 1e9), ([None, LOST], None)]
)
def test_a_duration_is_estimated_from_half_the_speed_of_all_that_answer(
    speeds: Sequence[float | Exception | None], together: float | None, lab: Path, bucket: Bucket
) -> None:
    plan = plan_capture(REQUEST, ModelCatalogue((lab / "models",)), PlanSettings(DatasetPlaces((lab / "data",))))
    work = flops_per_token(plan) * plan.record.tokens_total

    async def seconds() -> float:
        workers = (Rated(bucket, speed) for speed in speeds)
        captures = coordinator(lab, bucket, *workers, limits=replace(LIMITS, answer_seconds=0.05))
        return (await captures.estimate(REQUEST)).seconds

    assert run(seconds()) == pytest.approx(work / (together / 2) if together else 0.0)


class Deaf(ThreadWorker):
    """Knows nothing of an interrupt, or dies of it."""

    def __init__(self, bucket: Bucket, gate: asyncio.Event, dies: bool) -> None:
        super().__init__(bucket)
        self._gate, self._dies = gate, dies

    async def capture(self, task: ShardTask) -> ShardReport:
        await self._gate.wait()
        return await super().capture(task)

    async def interrupt(self, attempt: str) -> None:
        if self._dies:
            raise LOST
        await asyncio.Event().wait()


@pytest.mark.parametrize("dies", [False, True])
def test_a_worker_that_does_not_hear_is_no_obstacle_to_cancelling(dies: bool, lab: Path, bucket: Bucket) -> None:
    """What it has in hand it finishes, and that stays, but nobody is told that the capture goes on."""

    async def work() -> tuple[Progress, Progress]:
        gate = asyncio.Event()
        captures = coordinator(lab, bucket, Deaf(bucket, gate, dies))
        await captures.submit(REQUEST)
        await asyncio.sleep(0)
        cancelled = await captures.cancel("run")
        gate.set()
        while (end := (await captures.progress_after("run", -1))[1]).shards_committed < TASKS:
            await asyncio.sleep(0.01)
        return cancelled, end

    cancelled, end = run(work())
    assert (cancelled.state, end.state) == (State.CANCELLED, State.CANCELLED)
    assert end.elapsed_seconds == cancelled.elapsed_seconds
    assert len(open_run(bucket, "run").shards) == TASKS


def test_a_shard_is_given_up_after_so_many_workers_and_their_places_wait_for_them(lab: Path, bucket: Bucket) -> None:
    """A worker that is not back yet, and does not say so at once, gets no shard before it is."""
    tried: Counter[int] = Counter()
    asked: list[int] = []

    class Dying(ThreadWorker):
        async def ready(self) -> None:
            asked.append(1)
            if len(asked) % 3:
                raise LOST

    def die(task: ShardTask) -> None:
        tried[task.shard] += 1
        if task.shard == 4:
            raise LOST

    async def work() -> Progress:
        limits = replace(LIMITS, losses_per_shard=5, attempts_per_shard=1)
        captures = coordinator(lab, bucket, Dying(bucket, die), limits=limits)
        return (await watch(captures, await captures.submit(REQUEST)))[-1]

    last = run(work())
    assert (last.state, set(last.failed_shards)) == (State.FAILED, {4})
    assert tried == Counter(range(SHARDS)) + Counter({4: 4})
    assert len(asked) >= 3 * 4


@pytest.mark.parametrize(
    "reason", ["STORE_FULL", "RUN_MISMATCH", "MODEL_NOT_FOUND", "UNAUTHENTICATED", "LIMIT_EXCEEDED"]
)
def test_what_is_no_shards_own_doing_ends_the_capture(reason: str, lab: Path, bucket: Bucket) -> None:
    tried: Counter[int] = Counter()

    def fail(task: ShardTask) -> None:
        tried[task.shard] += 1
        if task.shard == 0:
            raise ActstoreError("not here", reason=reason)

    async def work() -> Progress:
        limits = replace(LIMITS, attempts_per_shard=1)
        captures = coordinator(lab, bucket, ThreadWorker(bucket, fail), limits=limits)
        return (await watch(captures, await captures.submit(replace(REQUEST, sequences_per_shard=1))))[-1]

    last = run(work())
    assert (last.state, last.failure.reason if last.failure else "") == (State.FAILED, reason)
    assert len(tried) < last.shards_total


def test_totals_are_of_what_was_won(lab: Path, bucket: Bucket) -> None:
    async def work() -> Totals:
        captures = coordinator(lab, bucket, ThreadWorker(bucket))
        for name in ("a", "b"):
            await watch(captures, await captures.submit(replace(REQUEST, run=name)))
        await watch(captures, await captures.submit(replace(REQUEST, run="a")))  # again: nothing is left to do
        return await captures.totals()

    totals = run(work())
    found = [open_run(bucket, name) for name in ("a", "b")]
    stored = sum(stored.bytes for one in found for commit in one.commits for stored in commit.objects.values())
    tokens = sum(one.tokens_committed for one in found)
    assert totals == Totals(0, 3, 0, 0, 2 * SHARDS, tokens, stored)
