"""The queue of captures: who waits and where, who gets the workers, what is refused, and what a restart keeps."""

import asyncio
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actstore_api.logs.traces import carried, received
from actstore_api.records.capture import CaptureProgress
from actstore_storage.bucket import Bucket
from actstore_storage.errors import ActstoreError, BadRequest, NotThere
from actstore_storage.format.records import canonical_json
from actstore_storage.runs.opening import list_runs, open_run
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.wanted import Queued, queued_place, read_wanted, seal_queued
from actstore_storage.upkeep.fsck import check_runs
from actstore_worker.caller import Caller
from actstore_worker.capture.coordinator import Coordinator
from actstore_worker.capture.limits import CoordinatorLimits
from actstore_worker.capture.preparing import Preparing, sealed_request
from actstore_worker.capture.shards.report import ShardReport
from actstore_worker.capture.shards.tasks import ShardTask
from actstore_worker.models.used import Used
from tests.coordinating import LIMITS, REQUEST, SHARDS, ThreadWorker, bucket, coordinator, lab, run, watch
from tests.made_models.small_models import change_config
from tests.waiting import PATIENCE_SECONDS

__all__ = ["bucket", "lab"]

# Every capture is bulk, and a turn is one shard, of 84 tokens and a layer or two.
BULK = replace(LIMITS, interactive_token_layers=0, quantum_token_layers=100.0)
ONE = replace(BULK, captures=1)


class Gate:
    """Holds every shard until it is opened, and notes which ones began, by run."""

    def __init__(self) -> None:
        self.open, self.began = threading.Event(), list[str]()

    def __call__(self, task: ShardTask) -> None:
        assert self.open.wait(PATIENCE_SECONDS)
        self.began.append(task.record.run)


def gated(work: Callable[[Gate], Coroutine[Any, Any, Any]]) -> Any:
    """Runs the work with a gate that is open at its end, however it ends, so that no thread waits for it."""
    gate = Gate()

    async def then_open() -> Any:
        try:
            return await work(gate)
        finally:
            gate.open.set()

    return run(then_open())


async def told(captures: Coordinator, name: str) -> CaptureProgress:
    return (await captures.progress_after(name, -1))[1]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not holds():
            await asyncio.sleep(0.01)


def test_a_capture_without_a_place_waits_and_says_where(lab: Path, bucket: Bucket) -> None:
    async def work(gate: Gate) -> None:
        captures = coordinator(lab, bucket, ThreadWorker(bucket, gate), limits=ONE)
        await captures.submit(REQUEST, Caller("ann"))
        for name, principal in (("a2", "ann"), ("a3", "ann"), ("b1", "bob")):
            await captures.submit(replace(REQUEST, run=name), Caller(principal))
        waiting = {name: await told(captures, name) for name in ("a2", "a3", "b1")}
        places = {name: (one.queue.position, one.queue.captures_ahead) for name, one in waiting.items() if one.queue}
        # The first of each principal comes before the next of anybody.
        assert places == {"b1": (1, 0), "a2": (2, 1), "a3": (3, 2)}
        assert {(one.state, one.shards_committed, one.shards_total) for one in waiting.values()} == {
            ("running", 0, SHARDS)
        }
        assert (await told(captures, "run")).queue is None
        assert {one.queue.expected_start_seconds for one in waiting.values() if one.queue} == {None}  # no speed yet
        totals = await captures.totals()
        bulk = next(queue for queue in totals.queues if queue.capture_class == "bulk")
        assert (totals.captures_running, bulk.captures_queued, bulk.captures_started) == (1, 3, 1)
        assert bulk.oldest_seconds > 0
        gate.open.set()
        for name in ("run", "a2", "a3", "b1"):
            assert (await watch(captures, name))[-1].state == "complete"
        assert list(dict.fromkeys(gate.began)) == ["run", "b1", "a2", "a3"]
        bulk = next(queue for queue in (await captures.totals()).queues if queue.capture_class == "bulk")
        assert (bulk.captures_queued, bulk.oldest_seconds, bulk.captures_started) == (0, 0, 4)
        assert bulk.waited_seconds > 0

    gated(work)
    assert bucket.keys("captures") == []


def test_the_start_is_expected_from_the_measured_speed(lab: Path, bucket: Bucket) -> None:
    async def work(gate: Gate) -> None:
        first = [True]
        worker = ThreadWorker(bucket, lambda task: None if first[0] else gate(task))
        captures = coordinator(lab, bucket, worker, limits=ONE)
        await watch(captures, await captures.submit(REQUEST))
        first[0] = False
        await captures.submit(replace(REQUEST, run="a"))
        for name in ("b", "c"):
            await captures.submit(replace(REQUEST, run=name))
        places = [(await told(captures, name)).queue for name in ("b", "c")]
        starts = [place.expected_start_seconds for place in places if place is not None]
        assert all(start is not None and start > 0 for start in starts)
        gate.open.set()
        await watch(captures, "c")

    gated(work)


def test_principals_share_the_workers_shard_by_shard(lab: Path, bucket: Bucket) -> None:
    """One has three captures and came first; the other one's only capture is not behind them."""

    async def work(gate: Gate) -> list[str]:
        captures = coordinator(lab, bucket, ThreadWorker(bucket, gate), limits=BULK)
        for name in ("a1", "a2", "a3"):
            await captures.submit(replace(REQUEST, run=name), Caller("ann"))
        await captures.submit(replace(REQUEST, run="b1"), Caller("bob"))
        await until(lambda: captures.pool.places > 0)
        gate.open.set()
        for name in ("a1", "a2", "a3", "b1"):
            await watch(captures, name)
        return gate.began

    began = gated(work)
    assert Counter(began) == dict.fromkeys(("a1", "a2", "a3", "b1"), SHARDS)
    ends = len(began) - began[::-1].index("b1")
    # Two shards of ann had begun before bob came; from then on, each has every other one, but for two at a time.
    assert ends <= 2 * SHARDS + 4
    assert began[-SHARDS:].count("a3") == SHARDS  # ann's own come in order


def test_interactive_captures_start_though_bulk_ones_have_all_places(lab: Path, bucket: Bucket) -> None:
    async def work(gate: Gate) -> list[str]:
        limits = replace(ONE, interactive_token_layers=600.0, bulk_share=0.25)
        captures = coordinator(lab, bucket, ThreadWorker(bucket, gate), limits=limits)
        await captures.submit(REQUEST, Caller("ann"))
        small = replace(REQUEST, run="small", dataset=replace(REQUEST.dataset, max_documents=8))
        await captures.submit(small, Caller("ann"))
        assert (await told(captures, "small")).queue is None
        gate.open.set()
        for name in ("run", "small"):
            await watch(captures, name)
        return gate.began

    began = gated(work)
    assert max(index for index, name in enumerate(began) if name == "small") <= 5  # of eight shards


def test_a_queue_that_is_full_refuses_with_both_numbers(lab: Path, bucket: Bucket) -> None:
    async def work(gate: Gate) -> None:
        limits = replace(ONE, queued_captures=3, queued_per_principal=2)
        captures = coordinator(lab, bucket, ThreadWorker(bucket, gate), limits=limits)
        for name in ("run", "a1", "a2"):
            await captures.submit(replace(REQUEST, run=name), Caller("ann"))
        with pytest.raises(ActstoreError, match="2 captures of yours wait in the queue, and at most 2 may") as refusal:
            await captures.submit(replace(REQUEST, run="a3"), Caller("ann"))
        assert (refusal.value.reason, refusal.value.details["field"]) == ("LIMIT_EXCEEDED", "queued_per_principal")
        assert refusal.value.details["value"] == "3"
        await captures.submit(replace(REQUEST, run="b1"), Caller("bob"))
        with pytest.raises(ActstoreError, match="3 captures wait in the queue, and at most 3 may") as refusal:
            await captures.submit(replace(REQUEST, run="c1"), Caller("cid"))
        assert (refusal.value.reason, refusal.value.details["field"]) == ("LIMIT_EXCEEDED", "queued_captures")
        assert list_runs(bucket) == ["a1", "a2", "b1", "run"]
        assert bucket.keys("captures") == [f"captures/{name}.json" for name in ("a1", "a2", "b1", "run")]
        with pytest.raises(NotThere):
            await captures.cancel("a3")
        assert await captures.submit(replace(REQUEST, run="a2"), Caller("ann")) == "a2"  # it waits already
        gate.open.set()
        await watch(captures, "a2")

    gated(work)


def test_of_captures_that_come_at_once_no_more_are_accepted_than_there_is_room_for(
    lab: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are accepted begin only once all others were refused."""
    names, honest, refused_all = [f"run-{number}" for number in range(5)], Preparing.begin, threading.Event()

    def begin(*arguments: Any) -> Snapshot:
        assert refused_all.wait(PATIENCE_SECONDS)
        return honest(*arguments)

    monkeypatch.setattr(Preparing, "begin", begin)

    async def work() -> list[object]:
        captures = coordinator(lab, bucket, ThreadWorker(bucket), limits=replace(ONE, queued_captures=1))
        asked = [asyncio.create_task(captures.submit(replace(REQUEST, run=name))) for name in names]
        await until(lambda: sum(one.done() for one in asked) == len(names) - 2)
        refused_all.set()
        found = await asyncio.gather(*asked, return_exceptions=True)
        begun = [name for name in found if isinstance(name, str)]
        assert list_runs(bucket) == sorted(begun)
        for name in begun:
            await watch(captures, name)
        assert await captures.resume()
        assert list_runs(bucket) == sorted(begun)
        return found

    found = run(work())
    refused = [error for error in found if isinstance(error, ActstoreError)]
    assert [error.reason for error in refused] == ["LIMIT_EXCEEDED"] * (len(names) - 2)
    assert bucket.keys("captures") == []


def test_a_capture_that_waits_can_be_cancelled(lab: Path, bucket: Bucket) -> None:
    async def work(gate: Gate) -> None:
        captures = coordinator(lab, bucket, ThreadWorker(bucket, gate), limits=ONE)
        for name in ("run", "a", "b"):
            await captures.submit(replace(REQUEST, run=name))
        cancelled = await captures.cancel("a")
        assert (cancelled.state, cancelled.queue) == ("cancelled", None)
        place = (await told(captures, "b")).queue
        assert place is not None
        assert (place.position, place.captures_ahead) == (1, 1)
        assert bucket.keys("captures") == ["captures/b.json", "captures/run.json"]
        gate.open.set()
        await watch(captures, "b")
        assert "a" not in gate.began

    gated(work)
    assert tuple(open_run(bucket, "a").commits) == ()


def test_what_waits_is_told_as_places_change(lab: Path, bucket: Bucket) -> None:
    async def work() -> list[int]:
        captures = coordinator(lab, bucket, ThreadWorker(bucket), limits=ONE)
        for name in ("a", "b", "c", "d"):
            await captures.submit(replace(REQUEST, run=name))
        return [progress.queue.position for progress in await watch(captures, "d") if progress.queue is not None]

    positions = run(work())
    assert positions[0] == 3
    assert positions == sorted(positions, reverse=True)


def test_the_queue_survives_its_coordinator(lab: Path, bucket: Bucket) -> None:
    """Order, principals and classes; nothing is planned again before its turn."""
    submitted = (("run", "ann"), ("z", "ann"), ("m", "ann"), ("b", "bob"), ("a", "bob"))

    async def first() -> dict[str, CaptureProgress]:
        captures = coordinator(lab, bucket, ThreadWorker(bucket, gate), limits=ONE)
        for name, principal in submitted:
            await captures.submit(replace(REQUEST, run=name), Caller(principal))
        found = {name: await told(captures, name) for name, _ in submitted}
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        gate.open.set()
        return found

    planned: list[str] = []

    async def second() -> tuple[dict[str, CaptureProgress], list[str]]:
        again = Gate()
        captures = coordinator(lab, bucket, ThreadWorker(bucket, again), limits=ONE)
        honest = captures._preparer.plan
        captures._preparer = Planned(captures._preparer, planned, honest)
        assert await captures.resume()
        found = {name: await told(captures, name) for name, _ in submitted}
        assert planned in ([], ["run"])
        again.open.set()
        for name, _ in submitted:
            assert (await watch(captures, name))[-1].state == "complete"
        return found, again.began

    gate = Gate()
    before = run(first())
    assert check_runs(bucket).sound
    after, began = run(second())
    assert {name: one.queue for name, one in after.items()} == {name: one.queue for name, one in before.items()}
    assert list(dict.fromkeys(began)) == ["run", "b", "z", "a", "m"] == planned
    assert bucket.keys("captures") == []


class Planned:
    """A preparer that notes what is planned."""

    def __init__(self, inner: Any, planned: list[str], plan: Callable[..., Any]) -> None:
        self._inner, self._planned, self._plan = inner, planned, plan

    def plan(self, request: Any, stop: threading.Event) -> Any:
        self._planned.append(request.run)
        return self._plan(request, stop)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_a_request_says_who_asked_when_and_of_which_class(lab: Path, bucket: Bucket) -> None:
    async def work(gate: Gate) -> None:
        captures = coordinator(
            lab, bucket, ThreadWorker(bucket, gate), limits=replace(ONE, interactive_token_layers=1e9)
        )
        for name in ("run", "b"):
            await captures.submit(replace(REQUEST, run=name), Caller("ann"))
        places = []
        for key in bucket.keys("captures"):
            request, none = read_wanted(bucket.get(key), key, dict)
            assert none == Queued()  # a version without a queue reads requests, too
            places.append(queued_place(bucket, request["run"]))
        assert {(place.principal, place.capture_class) for place in places} == {("ann", "interactive")}
        b, first = places
        assert 0 < first.submitted_seconds <= b.submitted_seconds
        assert 0 == first.turn < b.turn
        assert [place.traceparent for place in places] == ["", ""]
        gate.open.set()
        await watch(captures, "b")

    gated(work)


def test_shards_belong_to_the_span_of_who_asked_also_after_the_coordinator(lab: Path, bucket: Bucket) -> None:
    """The second coordinator knows it from the bucket alone, and each attempt carries it to its worker."""
    parent = f"00-{'a1' * 16}-{'b2' * 8}-01"
    carried_along = []

    class Asked(ThreadWorker):
        async def capture(self, task: ShardTask) -> ShardReport:
            carried_along.append(carried().get("traceparent"))
            return await super().capture(task)

    async def ask(gate: Gate) -> None:
        captures = coordinator(lab, bucket, ThreadWorker(bucket, gate))
        with received("coordinator/StartCapture", {"traceparent": parent}):
            await asyncio.create_task(captures.submit(REQUEST))

    async def go_on() -> None:
        captures = coordinator(lab, bucket, Asked(bucket))
        assert await captures.resume()
        await watch(captures, "run")

    gated(ask)
    assert queued_place(bucket, "run") == replace(queued_place(bucket, "run") or Queued(), traceparent=parent)
    run(go_on())
    assert carried_along
    assert set(carried_along) == {parent}


@pytest.mark.parametrize("said", [b'"principal":"ann"', b'"capture_class":"huge"', b'"later":1'])
def test_a_damaged_place_is_found_and_is_no_obstacle(said: bytes, lab: Path, bucket: Bucket) -> None:
    place, good = "captures-queued/run.json", seal_queued("run", Queued("bob", "bulk", 5.0))
    bucket.put("captures/run.json", sealed_request(REQUEST))
    bucket.put(place, good)
    assert check_runs(bucket).sound
    bucket.put(place, good.replace(b'"principal":"bob"', said))
    [finding] = check_runs(bucket).findings
    assert (finding.kind, finding.key) == ("damaged", place)
    bucket.put(place, seal_queued("other", Queued()))
    [finding] = check_runs(bucket).findings
    assert "the place of run other" in finding.what

    async def work() -> None:
        captures = coordinator(lab, bucket, ThreadWorker(bucket))
        assert await captures.resume()
        assert (await watch(captures, await captures.submit(REQUEST)))[-1].state == "complete"

    run(work())


def test_a_place_whose_capture_has_ended_is_removed(lab: Path, bucket: Bucket) -> None:
    async def work() -> None:
        captures = coordinator(lab, bucket, ThreadWorker(bucket))
        await watch(captures, await captures.submit(REQUEST, Caller("ann")))

    run(work())
    assert not [*bucket.keys("captures"), *bucket.keys("captures-queued")]
    bucket.put("captures-queued/left.json", seal_queued("left", Queued("ann")))
    place = Path(bucket.address) / "captures-queued/left.json"
    os.utime(place, (time.time() + 3600,) * 2)  # new: its capture is being submitted, and the request comes next
    assert not check_runs(bucket, remove_orphans=True).findings
    os.utime(place, (1, 1))
    [finding] = check_runs(bucket).findings
    assert (finding.kind, finding.key) == ("orphan", "captures-queued/left.json")
    check_runs(bucket, remove_orphans=True)
    assert check_runs(bucket).sound
    assert not bucket.keys("captures-queued")


def test_a_request_of_an_earlier_version_comes_first(lab: Path, bucket: Bucket) -> None:
    async def work(gate: Gate) -> None:
        first = coordinator(lab, bucket, ThreadWorker(bucket), limits=ONE)
        preparing = first._preparer
        for name, place in (("a", Queued("ann", "bulk", 5.0)), ("old", Queued())):
            request = replace(REQUEST, run=name)
            preparing.begin(preparing.plan(request), request, place)
        members, _ = read_wanted(bucket.get("captures/old.json"), "captures/old.json", dict)
        bucket.put("captures/old.json", canonical_json(members))  # as before format version 4
        bucket.delete("captures-queued/old.json")
        captures = coordinator(lab, bucket, ThreadWorker(bucket, gate), limits=ONE)
        assert await captures.resume()
        gate.open.set()
        for name in ("a", "old"):
            await watch(captures, name)
        assert list(dict.fromkeys(gate.began)) == ["old", "a"]

    gated(work)


def test_what_waited_and_cannot_be_planned_any_more_fails_and_stays_requested(
    lab: Path, bucket: Bucket, tmp_path_factory: pytest.TempPathFactory
) -> None:
    changed = Path(shutil.copytree(lab, tmp_path_factory.mktemp("changed") / "lab"))

    async def work(gate: Gate) -> CaptureProgress:
        captures = coordinator(changed, bucket, ThreadWorker(bucket, gate), limits=ONE)
        for name in ("run", "b"):
            await captures.submit(replace(REQUEST, run=name))
        await captures.cancel("run")
        await until(lambda: captures._captures.running == 1)
        gate.open.set()
        await watch(captures, "b")
        await captures.submit(replace(REQUEST, run="c"))
        gate.open.clear()
        await captures.submit(replace(REQUEST, run="d"))
        change_config(changed / "models" / "tiny", layer_norm_epsilon=0.5)
        await captures.cancel("c")
        gate.open.set()
        return (await watch(captures, "d"))[-1]

    end = gated(work)
    assert end.state == "failed"
    assert end.failure is not None
    assert "layer_norm_epsilon" in end.failure.message
    assert bucket.keys("captures") == ["captures/d.json"]

    async def later() -> None:
        captures = coordinator(lab, bucket, ThreadWorker(bucket))
        assert await captures.resume()
        assert (await watch(captures, "d"))[-1].state == "complete"

    run(later())


def test_who_is_beyond_a_quota_of_use_starts_no_capture(lab: Path, bucket: Bucket) -> None:
    async def work() -> None:
        captures = coordinator(lab, bucket, ThreadWorker(bucket), limits=CoordinatorLimits(tokens_a_minute=1))
        first = await captures.submit(REQUEST, Caller("ann"))
        await watch(captures, first)
        assert captures.used_by.principals["ann"].tokens == open_run(bucket, first).record.tokens_total
        captures.used_live("bob", Used(10, 2.5))
        assert captures.activity.live_seconds == 2.5
        for name in ("ann", "bob"):
            with pytest.raises(BadRequest, match="of tokens_a_minute, which is 1"):
                await captures.submit(replace(REQUEST, run="more"), Caller(name))
            with pytest.raises(BadRequest, match="of tokens_a_minute, which is 1"):
                captures.admit(name)
        await watch(captures, await captures.submit(replace(REQUEST, run="other"), Caller("cid")))
        assert captures.quota_refusals == {"tokens_a_minute": 4, "tokens_a_day": 0}
        totals = await captures.totals()
        assert {one.principal for one in totals.principals} == {"ann", "bob", "cid"}

    run(work())


def test_tokens_of_a_day_are_refused_beyond_the_quota_and_given_back(lab: Path, bucket: Bucket) -> None:
    tokens = 21 * (4 * SHARDS - 1)

    async def work(gate: Gate) -> None:
        captures = coordinator(lab, bucket, ThreadWorker(bucket, gate), limits=replace(ONE, tokens_a_day=tokens + 10))
        await captures.submit(REQUEST, Caller("ann"))
        with pytest.raises(ActstoreError, match=f"{tokens} tokens; ann may capture {tokens + 10} a day") as refusal:
            await captures.submit(replace(REQUEST, run="a"), Caller("ann"))
        assert (refusal.value.reason, refusal.value.details["value"]) == ("LIMIT_EXCEEDED", str(tokens))
        assert bucket.keys("captures") == ["captures/run.json"]
        await captures.submit(replace(REQUEST, run="b"), Caller("bob"))
        await captures.cancel("run")  # which captured nothing
        await captures.submit(replace(REQUEST, run="a"), Caller("ann"))
        gate.open.set()
        for name in ("a", "b"):
            await watch(captures, name)
        await watch(captures, await captures.submit(replace(REQUEST, run="a"), Caller("ann")))  # nothing is missing

    gated(work)


def test_seconds_of_a_device_are_counted_by_principal(lab: Path, bucket: Bucket) -> None:
    async def work() -> dict[str, float]:
        captures = coordinator(lab, bucket, ThreadWorker(bucket), limits=replace(LIMITS, principals_counted=2))
        for name in ("ann", "bob", "cid", "dan"):
            await watch(captures, await captures.submit(replace(REQUEST, run=name), Caller(name)))
        return {each.principal: each.device_seconds for each in (await captures.totals()).principals}

    found = run(work())
    assert list(found) == ["ann", "bob", "other"]
    assert all(seconds > 0 for seconds in found.values())
