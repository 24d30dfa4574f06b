"""Merges of indexes beside captures: what is due is done, a few parts at a time; faults leave nothing readers see."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from actstore_storage.bucket import Bucket
from actstore_storage.errors import StoreError, StoreUnreachable
from actstore_storage.features.segments import chosen_segments, listed_segments
from actstore_storage.features.statistics import top_examples
from actstore_storage.format.keys import wanted_key
from actstore_storage.runs.opening import open_run
from actstore_storage.upkeep import merging as index_merge
from actstore_storage.upkeep.fsck import check_runs
from actstore_storage.upkeep.merging import Merge, runs_to_merge
from actstore_storage.upkeep.removal import remove_run
from actstore_worker.capture.limits import MergeLimits
from actstore_worker.capture.merging import Merging, write_part
from tests.coordinating import REQUEST, SHARDS, ThreadWorker, ThreadWriter, bucket, coordinator, lab, run, watch
from tests.made_models.small_models import save_sae
from tests.run_state import merge_index
from tests.storage.feature_twins import assert_every_answer, read_back
from tests.storage.random_run import SAE, RandomRun, make_run, slow_top_examples, write_run, write_shard
from tests.waiting import PATIENCE_SECONDS

__all__ = ["bucket", "lab"]

RUN = make_run(2, sequences=24, sequences_per_shard=3)
EVERYTHING = range(8)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several parts a merge, and segments of two shards, of four and of eight."""
    monkeypatch.setattr(index_merge, "FAN_IN", 2)
    small = index_merge.plan_merges
    monkeypatch.setattr("actstore_worker.capture.merging.plan_merges", lambda *given: small(*given, part_rows=100))


def nothing(merge: Merge, number: int) -> None:
    """Before each part."""


def merging(bucket: Bucket, before: Callable[[Merge, int], object] = nothing, **limits: int) -> Merging:
    return Merging(bucket, ThreadWriter(bucket, before), MergeLimits(**limits))


def answer(bucket: Bucket, feature: int = 4) -> list[dict]:
    return top_examples(open_run(bucket, "run"), SAE, feature, k=9).to_pylist()


def expected(run: RandomRun = RUN, feature: int = 4) -> list[dict]:
    return slow_top_examples(run, feature, 9, 12, 6, frozenset({"bos"}))


def test_a_complete_run_becomes_one_segment(bucket: Bucket) -> None:
    write_run(bucket, RUN)
    writer = ThreadWriter(bucket)
    run(Merging(bucket, writer, MergeLimits(parts=2)).merge("run"))
    [segment] = chosen_segments(open_run(bucket, "run"), SAE)
    assert (segment.shards, writer.most_running) == (EVERYTHING, 2)
    assert len(segment.parts) > 2
    assert answer(bucket) == expected()
    verdict = check_runs(bucket)
    assert verdict.sound
    assert not verdict.findings


def test_a_capture_is_merged_and_its_end_does_not_wait(lab: Path, bucket: Bucket) -> None:
    """No part is written before a watcher has seen the end."""
    save_sae(lab / "models" / "small-sae", "topk", d_in=24, d_sae=32)
    ended = threading.Event()

    async def work() -> None:
        merges = merging(bucket, lambda merge, number: ended.wait(PATIENCE_SECONDS))
        captures = coordinator(lab, bucket, ThreadWorker(bucket), merging=merges)
        seen = await watch(captures, await captures.submit(replace(REQUEST, saes=("small-sae",))))
        assert seen[-1].state == "complete"
        assert listed_segments(bucket, "run", "small-sae") == []
        ended.set()
        while not listed_segments(bucket, "run", "small-sae"):
            await asyncio.sleep(0.01)

    run(work())
    assert listed_segments(bucket, "run", "small-sae") == [range(SHARDS)]
    seen = open_run(bucket, "run")
    assert_every_answer(seen, read_back(seen, "small-sae"), (3,), "small-sae")


def test_merges_follow_the_commits(bucket: Bucket) -> None:
    write_run(bucket, RUN, shards=())

    async def work() -> None:
        merges = merging(bucket)
        for shard in (2, 3, 0, 1, 4, 5, 6, 7):
            write_shard(bucket, RUN, shard, "attempt")
            await merges.merge("run")

    run(work())
    blocks = {range(2, 4), range(2), range(4), range(4, 6), EVERYTHING}
    assert set(listed_segments(bucket, "run", SAE)) == blocks
    assert answer(bucket) == expected()


def test_a_run_asked_for_while_at_work_is_looked_at_once_more(bucket: Bucket) -> None:
    """The second request returns at once; what it was asked for is done by the first."""
    write_run(bucket, RUN, shards=(0, 1))
    begun, go_on = threading.Event(), threading.Event()

    def wait(merge: Merge, number: int) -> None:
        begun.set()
        go_on.wait(PATIENCE_SECONDS)

    async def work() -> None:
        merges = merging(bucket, wait)
        first = asyncio.create_task(merges.merge("run"))
        await asyncio.to_thread(begun.wait, PATIENCE_SECONDS)
        for shard in (2, 3):
            write_shard(bucket, RUN, shard, "attempt")
        await merges.merge("run")
        assert listed_segments(bucket, "run", SAE) == []
        go_on.set()
        await first

    run(work())
    assert range(4) in listed_segments(bucket, "run", SAE)


def test_two_coordinators_leave_one_segment(bucket: Bucket) -> None:
    write_run(bucket, RUN)
    both = threading.Barrier(2)

    def meet(merge: Merge, number: int) -> None:
        if number == 0:
            both.wait(PATIENCE_SECONDS)

    async def work() -> None:
        await asyncio.gather(*(merging(bucket, meet, parts=1).merge("run") for _ in range(2)))

    run(work())
    assert listed_segments(bucket, "run", SAE) == [EVERYTHING]
    assert not check_runs(bucket).findings
    assert answer(bucket) == expected()


@pytest.mark.parametrize(
    "fault", [StoreUnreachable("away"), StoreError("full", reason="STORE_FULL"), ValueError("odd")]
)
def test_a_failed_part_gives_the_merge_up_and_leaves_nothing(bucket: Bucket, fault: Exception) -> None:
    write_run(bucket, RUN)
    begun: list[int] = []

    def fail(merge: Merge, number: int) -> None:
        begun.append(number)
        if number == 1:
            raise fault

    merges = merging(bucket, fail, parts=1)
    run(merges.merge("run"))
    assert begun == [0, 1]
    assert bucket.keys("runs/run/index") == []
    assert answer(bucket) == expected()
    run(merging(bucket).merge("run"))
    assert listed_segments(bucket, "run", SAE) == [EVERYTHING]


def test_a_crash_leaves_orphans_that_fsck_finds_and_removes_once_nothing_is_due(bucket: Bucket) -> None:
    """Parts and no manifest: readers see nothing of them, and fsck cannot tell them from a merge under way."""
    write_run(bucket, RUN)

    async def crash() -> None:
        reached, gone = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def stop(merge: Merge, number: int) -> None:
            if number == 2:
                loop.call_soon_threadsafe(reached.set)
                gone.wait(PATIENCE_SECONDS)
                raise StoreUnreachable("away")

        task = asyncio.create_task(merging(bucket, stop, parts=1).merge("run"))
        await reached.wait()
        task.cancel()  # first, or the part's failure would be heard of, and the merge given up in order
        gone.set()

    run(crash())
    left = bucket.keys("runs/run/index")
    assert len(left) == 2
    assert answer(bucket) == expected()
    verdict = check_runs(bucket, remove_orphans=True)
    assert verdict.sound
    assert [(found.kind, found.key) for found in verdict.findings] == [("orphan", key) for key in left]
    assert "still being merged" in verdict.findings[0].what
    run(merging(bucket).merge("run"))
    verdict = check_runs(bucket, remove_orphans=True)
    assert [(found.kind, found.key) for found in verdict.findings] == [("removed", key) for key in left]
    assert not check_runs(bucket).findings
    assert answer(bucket) == expected()


def test_segments_that_a_larger_one_holds_are_orphans(bucket: Bucket) -> None:
    write_run(bucket, RUN, shards=(0, 1, 4, 5))
    run(merging(bucket).merge("run"))
    assert set(listed_segments(bucket, "run", SAE)) == {range(2), range(4, 6)}
    assert not check_runs(bucket).findings
    for shard in (2, 3, 6, 7):
        write_shard(bucket, RUN, shard, "attempt")
    run(merging(bucket).merge("run"))
    findings = check_runs(bucket, remove_orphans=True).findings
    assert {found.kind for found in findings} == {"removed"}
    assert [found.key.endswith(".json") for found in findings[:2]] == [True, True]
    assert listed_segments(bucket, "run", SAE) == [EVERYTHING]
    assert not check_runs(bucket).findings
    assert answer(bucket) == expected()


@pytest.mark.parametrize(("most", "segments"), [(7, 4 + 2 + 1), (8, 1)])
def test_more_shards_than_one_merge_takes_are_merged_in_blocks_first(
    most: int, segments: int, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_merge, "LAST_FAN_IN", most)
    write_run(bucket, RUN)
    run(merging(bucket).merge("run"))
    assert len(listed_segments(bucket, "run", SAE)) == segments
    assert answer(bucket) == expected()


def test_a_coordinator_that_starts_finishes_merges(bucket: Bucket) -> None:
    """Of complete runs that nobody captures; as many as the limit says."""
    for name in ("a", "b", "c", "wanted"):
        write_run(bucket, RandomRun(replace(RUN.record, run=name), *list(vars(RUN).values())[1:]))
    write_run(bucket, RandomRun(replace(RUN.record, run="part"), *list(vars(RUN).values())[1:]), shards=(0, 1))
    bucket.put(wanted_key("wanted"), b"{}")
    bucket.put("runs/damaged/run.json", b"no record")
    merge_index(bucket, "a", SAE, "by-hand")
    assert runs_to_merge(bucket, 10) == ["b", "c"]
    run(merging(bucket, runs_resumed=1).resume())
    assert runs_to_merge(bucket, 10) == ["c"]
    run(merging(bucket).resume())
    assert runs_to_merge(bucket, 10) == []
    assert [len(listed_segments(bucket, name, SAE)) for name in ("a", "b", "c", "wanted", "part")] == [1, 1, 1, 0, 0]


def test_a_run_that_is_removed_meanwhile(bucket: Bucket) -> None:
    write_run(bucket, RUN)

    def remove(merge: Merge, number: int) -> None:
        if number == 1:
            remove_run(bucket, "run")

    run(merging(bucket, remove, parts=1).merge("run"))
    assert bucket.keys("runs/run") == []


def test_a_part_is_written_by_who_knows_the_address_alone(tmp_path: Path, bucket: Bucket) -> None:
    write_run(bucket, RUN)
    [merge] = index_merge.plan_merges(open_run(bucket, "run"), SAE, "attempt", part_rows=10_000)
    [(first, end)] = merge.features
    part = write_part(bucket.address, None, merge, 0)
    assert (part.first_feature, part.end_feature, part.object.rows) == (first, end, int((RUN.features > 0).sum()))
