"""The coordinator and workers that are slow, deaf, or not there."""

import asyncio
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from actstore_api.records.capture import CaptureProgress, DatasetFiles, DatasetReference, GetCaptureTotalsAnswer
from actstore_storage.bucket import Bucket
from actstore_storage.errors import ActstoreError
from actstore_storage.format.keys import checkpoint_key
from actstore_storage.runs.opening import open_run
from actstore_worker.capture.limits import MergeLimits
from actstore_worker.capture.merging import Merging
from actstore_worker.capture.plan import PlanSettings, plan_capture
from actstore_worker.capture.shards.tasks import ShardTask
from actstore_worker.capture.shards.worker import TASKS, ShardReport
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.places import DatasetPlaces
from tests.coordinating import LIMITS, REQUEST, SHARDS, ThreadWorker, ThreadWriter, bucket, coordinator, lab, run, watch
from tests.waiting import PATIENCE_SECONDS

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


@pytest.mark.parametrize(("speeds", "together"), [([1e9], 1e9), ([3e9, 1e9], 6e9), ([None], None), ([LOST], None)])
def test_a_duration_is_estimated_from_half_the_speed_of_as_many_workers_as_there_may_be(
    speeds: Sequence[float | Exception | None], together: float | None, lab: Path, bucket: Bucket
) -> None:
    plan = plan_capture(REQUEST, ModelCatalog((lab / "models",)), PlanSettings(DatasetPlaces((lab / "data",))))
    work = plan.flops_per_token * plan.record.tokens_total

    async def seconds() -> float:
        workers = (Rated(bucket, speed) for speed in speeds)
        captures = coordinator(lab, bucket, *workers, limits=replace(LIMITS, answer_seconds=0.05))
        return (await captures.estimate(REQUEST)).seconds

    assert run(seconds()) == pytest.approx(work / (together / 2) if together else 0.0)


def test_an_estimate_counts_documents_that_begin_with_a_bos_of_their_own(lab: Path, bucket: Bucket) -> None:
    texts = ("<bos> the cat", "the dog", "<bos> a b c")
    (lab / "data" / "begun.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = run(
        coordinator(lab, bucket, ThreadWorker(bucket)).estimate(
            replace(REQUEST, dataset=DatasetReference("begun.jsonl"))
        )
    )
    assert (found.documents, found.documents_with_bos, found.dataset_files) == (3, 2, DatasetFiles(read=1))


class Deaf(ThreadWorker):
    """Knows nothing of an interrupt, or dies of it."""

    def __init__(self, bucket: Bucket, gate: asyncio.Event, dies: bool) -> None:
        super().__init__(bucket)
        self._gate, self._dies = gate, dies
        self.begun = 0

    async def capture(self, task: ShardTask) -> ShardReport:
        self.begun += 1
        await self._gate.wait()
        return await super().capture(task)

    async def interrupt(self, attempt: str) -> None:
        if self._dies:
            raise LOST
        await asyncio.Event().wait()


@pytest.mark.parametrize("dies", [False, True])
def test_a_worker_that_does_not_hear_is_no_obstacle_to_cancelling(
    dies: bool, lab: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has in hand it finishes; that stays and is folded, but nobody is told that the capture goes on."""
    monkeypatch.setattr("actstore_storage.upkeep.folding.BLOCKS", (TASKS,))

    async def work() -> tuple[CaptureProgress, CaptureProgress]:
        gate = asyncio.Event()
        worker = Deaf(bucket, gate, dies)
        captures = coordinator(lab, bucket, worker)
        await captures.submit(REQUEST)
        while worker.begun < TASKS:
            await asyncio.sleep(0)
        cancelled = await captures.cancel("run")
        gate.set()
        while not bucket.exists(checkpoint_key("run", range(TASKS))):
            await asyncio.sleep(0.01)
        return cancelled, (await captures.progress_after("run", -1))[1]

    cancelled, end = run(work())
    assert (cancelled.state, end.state) == ("cancelled", "cancelled")
    assert end.elapsed_seconds == cancelled.elapsed_seconds
    assert len(open_run(bucket, "run").shards) == TASKS


def test_a_shard_is_given_up_after_so_many_workers_and_each_of_them_is_replaced(lab: Path, bucket: Bucket) -> None:
    """One that takes its place gets no shard before it is ready."""
    tried: Counter[int] = Counter()
    asked: list[int] = []

    class Dying(ThreadWorker):
        async def ready(self) -> str:
            asked.append(1)
            if len(asked) % 3:
                raise LOST
            return "cpu"

    def die(task: ShardTask) -> None:
        tried[task.shard] += 1
        if task.shard == 4:
            raise LOST

    async def work() -> CaptureProgress:
        limits = replace(LIMITS, losses_per_shard=5, attempts_per_shard=1, pause_seconds=0.01)
        captures = coordinator(lab, bucket, Dying(bucket, die), limits=limits)
        return (await watch(captures, await captures.submit(REQUEST)))[-1]

    last = run(work())
    assert (last.state, [told.shard for told in last.failed_shards]) == ("failed", [4])
    assert tried == Counter(range(SHARDS)) + Counter({4: 4})
    # The first worker and those that took the places of five; nobody asks one that did not die.
    assert 3 * 5 <= len(asked) <= 3 * 6


@pytest.mark.parametrize(
    "reason", ["STORE_FULL", "RUN_MISMATCH", "MODEL_NOT_FOUND", "UNAUTHENTICATED", "LIMIT_EXCEEDED"]
)
def test_what_is_no_shards_own_doing_ends_the_capture(reason: str, lab: Path, bucket: Bucket) -> None:
    tried: Counter[int] = Counter()

    def fail(task: ShardTask) -> None:
        tried[task.shard] += 1
        if task.shard == 0:
            raise ActstoreError("not here", reason=reason)

    async def work() -> CaptureProgress:
        limits = replace(LIMITS, attempts_per_shard=1)
        captures = coordinator(lab, bucket, ThreadWorker(bucket, fail), limits=limits)
        return (await watch(captures, await captures.submit(replace(REQUEST, sequences_per_shard=1))))[-1]

    last = run(work())
    assert (last.state, last.failure.reason if last.failure else "") == ("failed", reason)
    assert len(tried) < last.shards_total


def test_a_capture_that_two_shards_end_at_once_has_ended_once(lab: Path, bucket: Bucket) -> None:
    together = threading.Barrier(TASKS)

    def fail(task: ShardTask) -> None:
        together.wait()
        raise ActstoreError("no space", reason="STORE_FULL")

    async def work() -> GetCaptureTotalsAnswer:
        before = asyncio.all_tasks()
        captures = coordinator(lab, bucket, ThreadWorker(bucket, fail))
        await watch(captures, await captures.submit(REQUEST))
        after = asyncio.all_tasks() - before
        await asyncio.gather(*(task for task in after if task.get_name() != "capture-worker"))
        return await captures.totals()

    assert replace(run(work()), queues=()) == GetCaptureTotalsAnswer(captures_failed=1)


def test_shards_that_wait_to_be_tried_again_keep_their_places(lab: Path, bucket: Bucket) -> None:
    """And wait for as long as was said. What fails every shard does not try them all at once."""
    tried: list[int] = []
    times: dict[int, list[float]] = defaultdict(list)

    def fail(task: ShardTask) -> None:
        tried.append(task.shard)
        times[task.shard].append(time.monotonic())
        raise RuntimeError

    async def work() -> CaptureProgress:
        captures = coordinator(lab, bucket, ThreadWorker(bucket, fail), limits=replace(LIMITS, retry_seconds=0.1))
        return (await watch(captures, await captures.submit(REQUEST)))[-1]

    last = run(work())
    assert {told.shard: told.failure.details for told in last.failed_shards} == {
        shard: {"shard": str(shard)} for shard in range(SHARDS)
    }
    begun: Counter[int] = Counter()
    for shard in tried:
        begun[shard] += 1
        # Those that were tried and are not given up, and this one, which may be now.
        assert sum(tries < LIMITS.attempts_per_shard or number == shard for number, tries in begun.items()) <= TASKS
    for of_shard in times.values():
        assert min(later - before for before, later in pairwise(of_shard)) >= 0.1


def test_a_store_that_is_away_is_not_asked_without_a_pause(lab: Path, bucket: Bucket) -> None:
    times: list[float] = []

    def fail(task: ShardTask) -> None:
        if task.shard == 0 and len(times) < 4:
            times.append(time.monotonic())
            raise ActstoreError("not there", reason="STORE_UNREACHABLE")

    async def work() -> CaptureProgress:
        limits = replace(LIMITS, pause_seconds=0.1, retry_seconds=0.001)
        captures = coordinator(lab, bucket, ThreadWorker(bucket, fail), limits=limits)
        return (await watch(captures, await captures.submit(REQUEST)))[-1]

    assert run(work()).state == "complete"
    assert min(later - before for before, later in pairwise(times)) >= 0.1


def test_who_cancels_one_run_interrupts_no_other(lab: Path, bucket: Bucket) -> None:
    runs: dict[str, str] = {}
    interrupted: list[str] = []

    class Noting(Deaf):
        async def capture(self, task: ShardTask) -> ShardReport:
            runs[task.attempt] = task.record.run
            return await super().capture(task)

        async def interrupt(self, attempt: str) -> None:
            interrupted.append(attempt)

    async def work() -> CaptureProgress:
        gate = asyncio.Event()
        captures = coordinator(lab, bucket, *(Noting(bucket, gate, dies=False) for _ in range(2)))
        for name in ("a", "b"):
            await captures.submit(replace(REQUEST, run=name, sequences_per_shard=12))  # two shards
        while len(runs) < 4:
            await asyncio.sleep(0.01)
        assert (await captures.totals()).captures_running == 2
        await captures.cancel("a")
        assert (await captures.totals()).captures_running == 1
        gate.set()
        return (await watch(captures, "b"))[-1]

    assert run(work()).state == "complete"
    assert sorted(interrupted) == sorted(attempt for attempt, name in runs.items() if name == "a")


def test_a_shard_that_comes_in_after_the_end_of_a_pause_does_not_revive_its_capture(lab: Path, bucket: Bucket) -> None:
    class Half(Deaf):
        async def capture(self, task: ShardTask) -> ShardReport:
            if task.shard == 0:
                raise ActstoreError("not there", reason="STORE_UNREACHABLE")
            return await super().capture(task)

    async def work() -> CaptureProgress:
        gate = asyncio.Event()
        captures = coordinator(lab, bucket, Half(bucket, gate, dies=True))
        await captures.submit(REQUEST)
        while (await captures.progress_after("run", -1))[1].state != "paused":
            await asyncio.sleep(0.01)
        await captures.cancel("run")
        gate.set()
        while (end := (await captures.progress_after("run", -1))[1]).shards_committed < 1:
            await asyncio.sleep(0.01)
        return end

    end = run(work())
    assert (end.state, end.failure) == ("cancelled", None)


def test_who_asks_for_progress_waits_only_for_what_may_come(lab: Path, bucket: Bucket) -> None:
    """Neither where there is something newer, nor after the end; here there is no heartbeat to wait for."""

    async def work() -> None:
        gate = asyncio.Event()
        limits = replace(LIMITS, heartbeat_seconds=10 * PATIENCE_SECONDS)
        captures = coordinator(lab, bucket, Deaf(bucket, gate, dies=True), limits=limits)
        await captures.submit(REQUEST)
        _, first = await captures.progress_after("run", -1)
        assert first.state == "running"
        gate.set()
        await watch(captures, "run")
        version, last = await captures.progress_after("run", -1)
        assert await captures.progress_after("run", version) == (version, last)

    run(work())


def test_commits_are_folded_and_merged_while_others_are_still_to_come(
    lab: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actstore_storage.upkeep.folding.BLOCKS", (2, 4))

    async def work() -> None:
        gate = asyncio.Event()

        class Late(ThreadWorker):
            async def capture(self, task: ShardTask) -> ShardReport:
                if task.shard >= 4:  # or the first four commits were of other shards, and not folded into this block
                    await gate.wait()
                return await super().capture(task)

        class Noting(Merging):
            async def merge(self, run: str) -> None:
                merged.append(run)

        merged: list[str] = []
        noting = Noting(bucket, ThreadWriter(bucket), MergeLimits())
        captures = coordinator(lab, bucket, Late(bucket), limits=replace(LIMITS, fold_shards=2), merging=noting)
        await captures.submit(REQUEST)
        while not bucket.exists(checkpoint_key("run", range(4))) or len(merged) < 2:
            await asyncio.sleep(0.01)
        assert (await captures.progress_after("run", -1))[1].state == "running"
        gate.set()
        await watch(captures, "run")

    run(work())
    assert [found.shards for found in open_run(bucket, "run").commits.checkpoints] == [range(4), range(4, 6)]


def test_a_place_is_taken_as_soon_as_it_is_free(lab: Path, bucket: Bucket) -> None:
    """While another shard takes long, and there is no heartbeat to wait for."""

    async def work() -> None:
        gate = asyncio.Event()

        class Long(ThreadWorker):
            async def capture(self, task: ShardTask) -> ShardReport:
                if task.shard == 0:
                    await gate.wait()
                return await super().capture(task)

        captures = coordinator(
            lab, bucket, Long(bucket), limits=replace(LIMITS, heartbeat_seconds=10 * PATIENCE_SECONDS)
        )
        version, progress = await captures.progress_after(await captures.submit(REQUEST), -1)
        while progress.shards_committed < SHARDS - 1:
            version, progress = await captures.progress_after("run", version)
        gate.set()
        await watch(captures, "run")

    run(work())


def test_a_capture_that_is_cancelled_while_it_waits_for_a_worker_leaves_it_to_others(lab: Path, bucket: Bucket) -> None:
    async def work() -> int:
        gate, begun = asyncio.Event(), []

        class Noting(Deaf):
            async def capture(self, task: ShardTask) -> ShardReport:
                begun.append(task.shard)
                return await super().capture(task)

        worker = Noting(bucket, gate, dies=True)
        captures = coordinator(lab, bucket, worker)
        await captures.submit(replace(REQUEST, run="a"))
        while len(begun) < TASKS:
            await asyncio.sleep(0)
        await captures.submit(replace(REQUEST, run="b"))
        await asyncio.sleep(0)  # in which it begins to wait
        await captures.cancel("b")
        gate.set()
        await watch(captures, "a")
        worker.most_running = 0
        await watch(captures, await captures.submit(replace(REQUEST, run="c")))
        return worker.most_running

    assert run(work()) == TASKS


def test_totals_are_of_what_was_won(lab: Path, bucket: Bucket) -> None:
    async def work() -> GetCaptureTotalsAnswer:
        captures = coordinator(lab, bucket, ThreadWorker(bucket))
        for name in ("a", "b"):
            await watch(captures, await captures.submit(replace(REQUEST, run=name)))
        await watch(captures, await captures.submit(replace(REQUEST, run="a")))  # again: nothing is left to do
        return await captures.totals()

    totals = run(work())
    found = [open_run(bucket, name) for name in ("a", "b")]
    stored = sum(stored.bytes for one in found for commit in one.commits for stored in commit.objects.values())
    tokens = sum(one.tokens_committed for one in found)
    [used] = totals.principals
    assert used.principal == "default"
    assert [queue.captures_started for queue in totals.queues] == [3, 0]
    counted = replace(totals, queues=(), principals=())
    assert counted == GetCaptureTotalsAnswer(0, 3, 0, 0, 2 * SHARDS, tokens, stored)
