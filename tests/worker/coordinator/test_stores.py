"""The coordinator where the store fails at what is no shard: what is wanted, how a run begins, folds and ends."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actstore_api.records.capture import CaptureProgress
from actstore_api.records.terms import Failure, ModelReference
from actstore_storage.bucket import Bucket
from actstore_storage.errors import StoreUnreachable
from actstore_storage.runs.opening import list_runs, open_run
from actstore_worker.capture.plan import PlanSettings, plan_capture
from actstore_worker.capture.preparing import Preparing, sealed_request
from actstore_worker.capture.queueing import progress
from actstore_worker.capture.queueing.progress import CaptureState
from actstore_worker.capture.shards.report import TASKS, ShardReport
from actstore_worker.capture.shards.tasks import ShardTask
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.places import DatasetPlaces
from tests.coordinating import LIMITS, REQUEST, ThreadWorker, bucket, coordinator, lab, run, watch
from tests.waiting import PATIENCE_SECONDS

__all__ = ["bucket", "lab"]


def failing(monkeypatch: pytest.MonkeyPatch, call: str, fails: Callable[..., bool]) -> None:
    """A store that is not there for one call of a coordinator, as no real one does at a word."""
    honest = getattr(Preparing, call)

    def asked(*arguments: Any) -> Any:
        if fails(*arguments):
            raise StoreUnreachable(f"no {call}")
        return honest(*arguments)

    monkeypatch.setattr(Preparing, call, asked)


def want(bucket: Bucket, *names: str) -> None:
    for name in names:
        bucket.put(f"captures/{name}.json", sealed_request(replace(REQUEST, run=name)))


def test_what_is_wanted_is_asked_for_again_while_it_cannot_be_read(
    lab: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = [True]
    failing(monkeypatch, "wanted", lambda *_: away[0])
    want(bucket, "run")

    async def work() -> None:
        captures = coordinator(lab, bucket, ThreadWorker(bucket))
        assert not await captures.resume()
        away[0] = False
        assert await captures.resume()
        assert (await watch(captures, "run"))[-1].state == "complete"

    run(work())


def test_a_run_that_the_store_does_not_let_begin_is_asked_for_again_and_holds_up_no_other(
    lab: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it and after it in the order of names. One that is wrong in itself is not asked for again."""
    away = [True]
    failing(monkeypatch, "begin", lambda _self, plan, *_: away[0] and plan.record.run == "b")
    want(bucket, "a", "b", "c")
    wrong = replace(REQUEST, run="wrong", model=ModelReference("nobody"))
    bucket.put("captures/wrong.json", sealed_request(wrong))

    async def work() -> None:
        captures = coordinator(lab, bucket, ThreadWorker(bucket))
        assert not await captures.resume()
        for name in ("a", "c"):
            assert (await watch(captures, name))[-1].state == "complete"
        assert list_runs(bucket) == ["a", "c"]
        away[0] = False
        assert await captures.resume()
        assert (await watch(captures, "b"))[-1].state == "complete"

    run(work())
    assert bucket.keys("captures") == ["captures/wrong.json"]


def test_a_run_whose_commits_cannot_be_folded_is_complete(
    lab: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "fold", lambda *_: True)

    async def work() -> CaptureProgress:
        captures = coordinator(lab, bucket, ThreadWorker(bucket), limits=replace(LIMITS, fold_shards=2))
        return (await watch(captures, await captures.submit(REQUEST)))[-1]

    assert run(work()).state == "complete"
    assert open_run(bucket, "run").complete
    assert bucket.keys("captures") == []


def test_a_run_that_stays_wanted_is_complete_all_the_same_and_the_next_coordinator_lets_it_go(
    lab: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    away, captured = [True], []
    failing(monkeypatch, "unwant", lambda *_: away[0])

    async def work() -> None:
        first = coordinator(lab, bucket, ThreadWorker(bucket))
        assert (await watch(first, await first.submit(REQUEST)))[-1].state == "complete"
        assert bucket.keys("captures") == ["captures/run.json"]
        assert await first.resume()
        assert await first.totals() == replace(await first.totals(), captures_running=0, captures_complete=1)
        away[0] = False
        second = coordinator(lab, bucket, ThreadWorker(bucket, captured.append))
        assert await second.resume()
        assert (await watch(second, "run"))[-1].state == "complete"

    run(work())
    assert captured == bucket.keys("captures") == []


def test_a_run_that_stays_wanted_is_let_go_once_the_store_lets_it(
    lab: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    failing(monkeypatch, "unwant", lambda _, name: asked.append(name) or len(asked) < 3)

    async def work() -> None:
        captures = coordinator(lab, bucket, ThreadWorker(bucket), limits=replace(LIMITS, pause_seconds=0.01))
        assert (await watch(captures, await captures.submit(REQUEST)))[-1].state == "complete"
        while bucket.keys("captures"):
            await asyncio.sleep(0.01)

    run(work())
    assert asked == ["run"] * 3


def test_a_run_that_is_asked_for_again_is_not_let_go_for_its_end_before(
    lab: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = [True]
    failing(monkeypatch, "unwant", lambda *_: away[0])

    async def work() -> None:
        gate = asyncio.Event()

        class Slow(ThreadWorker):
            async def capture(self, task: ShardTask) -> ShardReport:
                await gate.wait()
                return await super().capture(task)

        captures = coordinator(lab, bucket, Slow(bucket), limits=replace(LIMITS, pause_seconds=0.05))
        await captures.submit(REQUEST)
        assert (await captures.cancel("run")).state == "cancelled"
        await captures.submit(REQUEST)
        away[0] = False
        await asyncio.sleep(0.2)  # in which the request would be removed
        assert bucket.keys("captures") == ["captures/run.json"]
        gate.set()
        assert (await watch(captures, "run"))[-1].state == "complete"

    run(work())
    assert bucket.keys("captures") == []


def broken(monkeypatch: pytest.MonkeyPatch, call: str, run: str) -> None:
    """A fault of the program, as no known one is left to cause it."""
    honest = getattr(Preparing, call)

    def asked(preparing: Preparing, name: str) -> Any:
        if name == run:
            raise RuntimeError(f"no {call}")
        return honest(preparing, name)

    monkeypatch.setattr(Preparing, call, asked)


def test_a_capture_that_a_fault_stops_has_failed_and_stays_requested(
    lab: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken(monkeypatch, "fold", "run")

    async def work() -> CaptureProgress:
        captures = coordinator(lab, bucket, ThreadWorker(bucket))
        return (await watch(captures, await captures.submit(REQUEST)))[-1]

    ended = run(work())
    assert (ended.state, ended.failure and ended.failure.reason) == ("failed", "INTERNAL")
    assert bucket.keys("captures") == ["captures/run.json"]
    assert "the capture of run cannot go on" in caplog.text
    assert "RuntimeError: no fold" in caplog.text


def test_a_fault_of_one_requested_capture_keeps_no_other_from_going_on(
    lab: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken(monkeypatch, "opened", "a")
    want(bucket, "a", "b")

    async def work() -> None:
        captures = coordinator(lab, bucket, ThreadWorker(bucket))
        assert await captures.resume()
        assert (await watch(captures, "b"))[-1].state == "complete"

    run(work())
    assert bucket.keys("captures") == ["captures/a.json"]
    assert "the requested capture of run a cannot be resumed" in caplog.text


def test_who_cancels_gets_no_more_shards_while_the_store_is_slow_to_let_the_run_go(
    lab: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, let_go, tried = Preparing.unwant, threading.Event(), []

    def unwant(*arguments: Any) -> None:
        assert let_go.wait(PATIENCE_SECONDS)
        honest(*arguments)

    monkeypatch.setattr(Preparing, "unwant", unwant)

    async def work() -> CaptureProgress:
        gate = asyncio.Event()

        class Slow(ThreadWorker):
            async def capture(self, task: ShardTask) -> ShardReport:
                tried.append(task.shard)
                await gate.wait()
                return await super().capture(task)

        captures = coordinator(lab, bucket, Slow(bucket))
        version, _ = await captures.progress_after(await captures.submit(REQUEST), -1)
        while len(tried) < TASKS:
            await asyncio.sleep(0)
        cancelling = asyncio.create_task(captures.cancel("run"))
        await asyncio.sleep(0)  # in which it begins
        gate.set()
        committed = 0
        while committed < TASKS:
            version, progress = await captures.progress_after("run", version)
            committed = progress.shards_committed
        let_go.set()
        return await cancelling

    assert run(work()).state == "cancelled"
    assert tried == list(range(TASKS))


def test_a_capture_pauses_as_often_as_the_store_goes_away(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time for so long anew, and who watches is told when it begins, why, and when it is over."""
    clock = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    capture = state(lab, started=clock[0])
    away, refused = Failure("STORE_UNREACHABLE", "not there", {}), Failure("STORE_CREDENTIALS", "not you", {})
    told = [capture.version]
    for _ in range(2):
        assert capture.pause(away) == 0
        told.append(capture.version)
        clock[0] += 7
        assert capture.pause(refused) == 7
        assert (capture.progress().state, capture.progress().failure) == ("paused", away)
        capture.go_on()
        told.append(capture.version)
        assert (capture.progress().state, capture.progress().failure) == ("running", None)
    capture.go_on()  # as at each shard
    assert [capture.version, *told] == [4, 0, 1, 2, 3, 4]
    assert capture.progress().elapsed_seconds == 14


def test_of_many_shards_that_fail_the_first_hundred_are_told(lab: Path) -> None:
    """By number, in whatever order they failed."""
    capture, failure = state(lab), Failure("INTERNAL", "no", {})
    for shard in reversed(range(102)):
        capture.fail_shard(shard, failure)
    assert [told.shard for told in capture.progress().failed_shards] == list(range(100))
    assert capture.progress().failure is None  # of the capture: others go on
    assert capture.version == 102


def state(lab: Path, started: float = 0.0) -> CaptureState:
    """Of a capture whose shards are all under way."""
    places = ModelCatalog((lab / "models",)), PlanSettings(DatasetPlaces((lab / "data",)))
    return CaptureState(plan_capture(REQUEST, *places).record, deque(), 0, 0, started=started)
