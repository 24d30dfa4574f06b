"""What questions wait for while there is no model replica, and when they are refused; Ray is a stand-in."""

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from actstore_storage.errors import ActstoreError
from actstore_worker.cluster.placement import arrivals, resources
from actstore_worker.cluster.placement.arrivals import Arrivals
from actstore_worker.cluster.placement.capture_workers import _CaptureActor
from actstore_worker.settings import RayLimits, WorkerSettings
from tests.waiting import PATIENCE_SECONDS


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, PATIENCE_SECONDS))


def settings(device: Any, gpus_max: int | None = None, start_seconds: float = 2 * PATIENCE_SECONDS) -> WorkerSettings:
    limits = RayLimits(gpus_max=gpus_max, replica_start_seconds=start_seconds)
    return WorkerSettings("/store", "token", device=device, ray=limits)


@pytest.fixture(autouse=True)
def gpus(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """GPUs that the cluster has now."""
    found: dict[str, float] = {}
    monkeypatch.setattr(resources.ray, "cluster_resources", lambda: found)
    monkeypatch.setattr(arrivals, "LOOK_SECONDS", 0.01)
    return found


@pytest.mark.parametrize(
    ("asked", "there", "waits"),
    [
        (settings("cpu"), 0, "a model replica"),
        (settings("auto"), 0, "a model replica"),
        (settings("cuda"), 1, "a model replica"),
        (settings("cuda", 8), 0, "a node with a GPU"),
        (settings("auto", 8), 0, "a node with a GPU"),
    ],
)
def test_a_question_says_what_it_waits_for_until_a_replica_is_there(
    asked: WorkerSettings, there: int, waits: str, gpus: dict[str, float]
) -> None:
    gpus["GPU"] = there
    counts = iter([0, 0, 1])

    async def work() -> list[str]:
        answering = asyncio.get_running_loop().create_future()
        return [told async for told in Arrivals(asked, lambda: next(counts)).awaited(answering)]

    assert run(work()) == [waits, waits]


def test_questions_that_are_answered_at_once_look_for_nothing() -> None:
    async def work() -> list[str]:
        answering = asyncio.get_running_loop().create_future()
        answering.set_result(1)
        return [told async for told in Arrivals(settings("cuda"), lambda: 1 // 0).awaited(answering)]

    assert run(work()) == []


@pytest.mark.parametrize(
    ("asked", "why", "again"),
    [
        (settings("cuda"), "no node with a GPU now, and none is expected: answers", None),
        (settings("cuda", 8, 0.001), "was asked for 0 s ago, and has not come. Try again in 60 s; answers", "60.0"),
    ],
)
def test_a_question_is_refused_if_no_replica_may_come_or_none_came_in_time(
    asked: WorkerSettings, why: str, again: str | None
) -> None:
    async def work() -> None:
        answering = asyncio.get_running_loop().create_future()
        async for _ in Arrivals(asked, lambda: 0).awaited(answering):
            pass

    with pytest.raises(ActstoreError, match=why) as refused:
        run(work())
    assert (refused.value.reason, refused.value.details.get("retry_seconds")) == ("WORKERS_UNAVAILABLE", again)


def test_one_look_serves_all_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "LOOK_SECONDS", 0.05)
    looks: list[int] = []

    def count() -> int:
        looks.append(1)
        return int(len(looks) > 2)

    async def work() -> None:
        found = Arrivals(settings("cpu"), count)

        async def wait() -> list[str]:
            return [told async for told in found.awaited(asyncio.get_running_loop().create_future())]

        await asyncio.gather(*(wait() for _ in range(50)))

    run(work())
    assert len(looks) <= 5


def test_the_number_of_replicas_is_that_of_the_last_look_and_holds_if_serve_does_not_answer() -> None:
    said = [3, 2]  # An empty list raises.

    async def work() -> list[int]:
        found, seen = Arrivals(settings("cpu"), said.pop), []
        for _ in range(4):
            seen.append(found.running)
            assert found._looking is not None
            await found._looking
            await asyncio.sleep(2 * arrivals.LOOK_SECONDS)
        return seen

    assert run(work()) == [0, 2, 3, 3]


def test_a_question_goes_on_waiting_while_serve_does_not_answer() -> None:
    looks: list[int] = []

    def count() -> int:
        looks.append(1)
        return 1 // (len(looks) == 3)

    async def work() -> list[str]:
        answering = asyncio.get_running_loop().create_future()
        return [told async for told in Arrivals(settings("cpu"), count).awaited(answering)]

    assert run(work()) == ["a model replica"] * 2


def test_no_call_to_a_capture_worker_lets_an_error_out() -> None:
    """Ray would write its text, which may have what a caller sent."""
    actor = _CaptureActor.__new__(_CaptureActor)

    def fail(*_: Any) -> float:
        raise KeyError("planted prompt")

    actor._worker = cast(Any, SimpleNamespace(capture=fail, flops=fail, interrupt=fail))
    found: list[Any] = [actor.capture({}, cast(Any, None)), actor.flops({}), actor.interrupt({}, "attempt")]
    assert [(one.error.reason, "planted" in str(one.error)) for one in found] == [("INTERNAL", False)] * 3
