"""The coordinator: every shard once, progress, cancellation, limits."""

import asyncio
import shutil
import threading
from collections import Counter
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from actstore_api.records.capture import CaptureProgress, CaptureSpecification, DatasetFiles, DatasetReference
from actstore_api.records.terms import ModelReference
from actstore_storage.bucket import Bucket
from actstore_storage.errors import ActstoreError, Conflict, CorruptObject, StoreError
from actstore_storage.format.keys import checkpoint_key, checkpoint_sketches_key
from actstore_storage.rows.reading import dense_matrix, read_activations, read_tokens
from actstore_storage.runs.opening import create_run, open_run
from actstore_storage.runs.shard_writer import ShardWriter
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.upkeep.fsck import check_runs
from actstore_worker.capture.plan import PlanSettings
from actstore_worker.capture.preparing import Preparing
from actstore_worker.capture.shards.tasks import ShardTask
from actstore_worker.capture.shards.worker import TASKS, ShardReport
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.places import DatasetPlaces
from tests.coordinating import LIMITS, REQUEST, SHARDS, ThreadWorker, bucket, commits, coordinator, lab, run, watch
from tests.made_models.random_models import save_model
from tests.made_models.small_models import change_config
from tests.run_state import committed_shards
from tests.waiting import PATIENCE_SECONDS

__all__ = ["bucket", "lab"]


def test_every_shard_is_captured_once_and_shared_among_workers(lab: Path, bucket: Bucket) -> None:
    shards: Counter[int] = Counter()
    workers = [ThreadWorker(bucket, lambda task: shards.update([task.shard])) for _ in range(2)]

    async def work() -> list[CaptureProgress]:
        captures = coordinator(lab, bucket, *workers)
        return await watch(captures, await captures.submit(REQUEST))

    seen = run(work())
    assert shards == Counter(range(SHARDS))
    assert [worker.most_running for worker in workers] == [TASKS, TASKS]
    assert [progress.shards_committed for progress in seen] == sorted(progress.shards_committed for progress in seen)
    snapshot = open_run(bucket, "run")
    assert snapshot.complete
    assert seen[-1] == CaptureProgress(
        "run",
        "complete",
        SHARDS,
        SHARDS,
        snapshot.tokens_committed,
        snapshot.record.tokens_total,
        seen[-1].elapsed_seconds,
        None,
        dataset_files=DatasetFiles(read=1),
    )
    assert seen[-1].tokens_committed == seen[-1].tokens_total == 21 * (4 * SHARDS - 1)


def test_a_new_coordinator_does_only_what_the_bucket_lacks(lab: Path, bucket: Bucket) -> None:
    """What the first one knew died with it; the bucket tells the second."""
    done_by_second: list[int] = []
    cancelled = threading.Event()

    def wait(task: ShardTask) -> None:  # or all shards may be there before the first coordinator hears of two
        assert task.shard < 2 or cancelled.wait(PATIENCE_SECONDS)

    async def first() -> None:
        captures = coordinator(lab, bucket, ThreadWorker(bucket, wait))
        name, version, progress = await captures.submit(REQUEST), -1, None
        while progress is None or progress.shards_committed < 2:
            version, progress = await captures.progress_after(name, version)
            assert progress.state == "running"
        await captures.cancel(name)
        cancelled.set()

    async def second() -> list[CaptureProgress]:
        captures = coordinator(lab, bucket, ThreadWorker(bucket, lambda task: done_by_second.append(task.shard)))
        return await watch(captures, await captures.submit(REQUEST))

    run(first())
    there = committed_shards(bucket, "run")
    assert 2 <= len(there) < SHARDS
    first_commits = commits(bucket)
    seen = run(second())
    assert sorted(done_by_second) == sorted(set(range(SHARDS)) - there)
    assert seen[0].shards_committed >= len(there)
    assert seen[-1].state == "complete"
    assert tuple(commit for commit in commits(bucket) if commit.shard in there) == first_commits


def test_a_commit_says_which_version_captured_it_not_which_began_the_run(
    lab: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr("actstore_worker.capture.plan.code_version", lambda: "older")
        settings = PlanSettings(DatasetPlaces((lab / "data",)))
        preparing = Preparing(bucket, ModelCatalog((lab / "models",)), settings)
        preparing.begin(preparing.plan(REQUEST), REQUEST)

    async def work() -> None:
        captures = coordinator(lab, bucket, ThreadWorker(bucket))
        await watch(captures, await captures.submit(REQUEST))

    run(work())
    found = open_run(bucket, "run")
    assert found.record.code_version == "older"
    now = "{} (torch {}, transformers {})".format(*map(version, ("actstore", "torch", "transformers")))
    assert {commit.code_version for commit in found.commits} == {now}
    assert found.provenance().code_version == now


def test_a_changed_configuration_is_another_run(lab: Path, bucket: Bucket, tmp_path: Path) -> None:
    """Of the same weights. Under its name it is refused, with what was changed; without one it has its own name."""
    changed = Path(shutil.copytree(lab, tmp_path / "changed"))

    async def capture(place: Path, request: CaptureSpecification) -> str:
        captures = coordinator(place, bucket, ThreadWorker(bucket))
        name = await captures.submit(request)
        await watch(captures, name)
        return name

    run(capture(lab, REQUEST))
    unnamed = run(capture(lab, replace(REQUEST, run="")))
    change_config(changed / "models" / "tiny", layer_norm_epsilon=0.5)
    with pytest.raises(Conflict, match=r"config\.layer_norm_epsilon was 1e-05, and is 0\.5"):
        run(capture(changed, REQUEST))
    other = run(capture(changed, replace(REQUEST, run="")))
    assert other != unnamed
    first, second = (open_run(bucket, name) for name in (unnamed, other))
    assert first.provenance().weights_sha256 == second.provenance().weights_sha256
    assert first.provenance().config_sha256 != second.provenance().config_sha256
    rows = [dense_of(found) for found in (first, second)]
    assert not np.allclose(*rows, atol=0.1)
    assert run(capture(lab, replace(REQUEST, run=""))) == unnamed


def dense_of(snapshot: Snapshot) -> np.ndarray:
    table = pa.Table.from_batches(list(read_activations(snapshot, "resid_post.0")))
    return dense_matrix(table["activation"], "float32", snapshot.record.d_model)


def test_a_run_that_an_older_version_began_is_finished_as_it_was_begun(lab: Path, bucket: Bucket) -> None:
    """It says nothing of the configuration, so nothing is known to be different."""
    preparing = Preparing(bucket, ModelCatalog((lab / "models",)), PlanSettings(DatasetPlaces((lab / "data",))))
    record = preparing.plan(REQUEST).record
    asked = replace(record.specification, config_sha256="", attention_implementation="")
    older = {"model_config": {}, "document_sources": False, "format_version": 2}
    create_run(bucket, replace(record, specification=asked, specification_sha256=asked.sha256, **older))

    async def work() -> list[CaptureProgress]:
        captures = coordinator(lab, bucket, ThreadWorker(bucket))
        return await watch(captures, await captures.submit(REQUEST))

    assert run(work())[-1].state == "complete"
    found = open_run(bucket, "run")
    assert (found.complete, found.provenance().config_sha256, found.record.format_version) == (True, "", 2)
    assert all(row["source"] is None for batch in read_tokens(found) for row in batch.to_pylist())
    assert check_runs(bucket).findings == ()


def test_a_model_that_is_changed_under_a_running_capture_fails_its_shards(
    lab: Path, bucket: Bucket, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(lab, tmp_path / "changed"))

    async def work() -> list[CaptureProgress]:
        captures = coordinator(changed, bucket, ThreadWorker(bucket))
        name = await captures.submit(REQUEST)
        change_config(changed / "models" / "tiny", layer_norm_epsilon=0.5)
        return await watch(captures, name)

    end = run(work())[-1]
    assert (end.state, end.failure.reason) == ("failed", "RUN_MISMATCH")


def test_capturing_a_complete_run_again_makes_what_checkpoints_lack(lab: Path, bucket: Bucket) -> None:
    """As fsck, and answers without their sketches, tell people to do."""
    shards: Counter[int] = Counter()

    async def capture() -> None:
        captures = coordinator(lab, bucket, ThreadWorker(bucket, lambda task: shards.update([task.shard])))
        await watch(captures, await captures.submit(REQUEST))

    run(capture())
    keys = [name("run", range(SHARDS)) for name in (checkpoint_key, checkpoint_sketches_key)]
    for gone in (keys[1:], keys[:1], keys):
        for key in gone:
            bucket.delete(key)
        run(capture())
        assert all(bucket.exists(key) for key in keys)
        assert check_runs(bucket).findings == ()
    assert shards == Counter(range(SHARDS))


def test_submitting_a_running_capture_again_joins_it(lab: Path, bucket: Bucket) -> None:
    shards: Counter[int] = Counter()

    async def work() -> list[str]:
        captures = coordinator(lab, bucket, ThreadWorker(bucket, lambda task: shards.update([task.shard])))
        names = await asyncio.gather(*(captures.submit(REQUEST) for _ in range(3)))
        await watch(captures, "run")
        return names

    assert run(work()) == ["run"] * 3
    assert shards == Counter(range(SHARDS))


def test_a_shard_that_fails_is_tried_again(lab: Path, bucket: Bucket) -> None:
    tried: Counter[int] = Counter()

    def fail_twice(task: ShardTask) -> None:
        tried[task.shard] += 1
        if task.shard in (1, 4) and tried[task.shard] <= 2:
            raise StoreError("no space", reason="STORE_FULL")

    async def work() -> CaptureProgress:
        captures = coordinator(lab, bucket, ThreadWorker(bucket, fail_twice), ThreadWorker(bucket, fail_twice))
        return (await watch(captures, await captures.submit(REQUEST)))[-1]

    assert run(work()).state == "complete"
    assert tried == Counter({0: 1, 1: 3, 2: 1, 3: 1, 4: 3, 5: 1})


def test_a_shard_that_always_fails_fails_the_capture_and_no_other_shard(lab: Path, bucket: Bucket) -> None:
    tried: Counter[int] = Counter()

    def fail(task: ShardTask) -> None:
        tried[task.shard] += 1
        if task.shard == 2:
            raise CorruptObject("its text is damaged", field="object", value="x")

    async def work() -> tuple[list[CaptureProgress], Any]:
        captures = coordinator(lab, bucket, ThreadWorker(bucket, fail))
        seen = await watch(captures, await captures.submit(REQUEST))
        return seen, await captures.totals()

    seen, totals = run(work())
    assert tried[2] == LIMITS.attempts_per_shard
    last = seen[-1]
    assert (last.state, last.shards_committed) == ("failed", SHARDS - 1)
    assert last.failure is not None
    assert (last.failure.reason, last.failure.message) == ("OBJECT_CORRUPT", "its text is damaged")
    assert last.failure.details == {"field": "object", "value": "x"}
    assert all(progress.failure is None for progress in seen[:-1])
    assert committed_shards(bucket, "run") == set(range(SHARDS)) - {2}
    assert (totals.captures_failed, totals.captures_complete, totals.captures_running) == (1, 0, 0)


def test_what_would_fail_every_shard_ends_the_capture_at_the_first(lab: Path, bucket: Bucket) -> None:
    tried: Counter[int] = Counter()

    def fail(task: ShardTask) -> None:
        tried[task.shard] += 1
        raise StoreError("the disk is full", reason="STORE_FULL", field="store", value="/data")

    async def work() -> CaptureProgress:
        captures = coordinator(lab, bucket, ThreadWorker(bucket, fail))
        return (await watch(captures, await captures.submit(REQUEST)))[-1]

    last = run(work())
    assert (last.state, last.shards_committed) == ("failed", 0)
    assert last.failure is not None
    assert last.failure.reason == "STORE_FULL"
    assert len(tried) <= TASKS < SHARDS


def test_a_fault_tells_no_more_than_that_it_happened(lab: Path, bucket: Bucket) -> None:
    def fault(task: ShardTask) -> None:
        raise RuntimeError("secret-key is in here")

    async def work() -> CaptureProgress:
        captures = coordinator(lab, bucket, ThreadWorker(bucket, fault))
        return (await watch(captures, await captures.submit(REQUEST)))[-1]

    failure = run(work()).failure
    assert failure is not None
    assert failure.reason == "INTERNAL"
    assert "secret" not in failure.message + str(failure.details)


def test_a_failed_capture_is_finished_by_the_same_request(lab: Path, bucket: Bucket) -> None:
    broken = [True]

    def fail(task: ShardTask) -> None:
        if broken[0] and task.shard == 0:
            raise StoreError("not now")

    async def work() -> tuple[CaptureProgress, CaptureProgress]:
        captures = coordinator(lab, bucket, ThreadWorker(bucket, fail))
        first = (await watch(captures, await captures.submit(REQUEST)))[-1]
        broken[0] = False
        return first, (await watch(captures, await captures.submit(REQUEST)))[-1]

    first, second = run(work())
    assert (first.state, second.state) == ("failed", "complete")
    assert open_run(bucket, "run").complete


def test_cancel_interrupts_the_shard_under_way_and_leaves_nothing_of_it(
    lab: Path, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sequence a batch and one shard: the interrupt comes after the first batch, which waits for it."""
    request = replace(REQUEST, sequences_per_shard=1000, sequences_per_batch=1)
    add, interrupted = ShardWriter.add, threading.Event()

    class Interrupted(ThreadWorker):
        async def interrupt(self, attempt: str) -> None:
            await super().interrupt(attempt)
            interrupted.set()

    async def work() -> tuple[CaptureProgress, Any]:
        started = asyncio.Event()
        loop = asyncio.get_running_loop()

        def add_and_wait(*batch: Any) -> None:
            add(*batch)
            loop.call_soon_threadsafe(started.set)
            assert interrupted.wait(PATIENCE_SECONDS)

        monkeypatch.setattr(ShardWriter, "add", add_and_wait)
        worker = Interrupted(bucket)
        captures = coordinator(lab, bucket, worker)
        name = await captures.submit(request)
        await started.wait()
        progress = await captures.cancel(name)
        while worker.running:
            await asyncio.sleep(0.01)
        return progress, await captures.totals()

    progress, totals = run(work())
    assert progress.state == "cancelled"
    assert (totals.captures_cancelled, totals.shards_committed) == (1, 0)
    assert commits(bucket) == ()
    assert not list(tmp_path.rglob("*.parquet*")) or all("tokenizers" in str(p) for p in tmp_path.rglob("*.parquet*"))


def test_cancelling_what_has_ended_is_refused(lab: Path, bucket: Bucket) -> None:
    async def work() -> None:
        captures = coordinator(lab, bucket, ThreadWorker(bucket))
        await watch(captures, await captures.submit(REQUEST))
        with pytest.raises(ActstoreError, match="it is complete") as refusal:
            await captures.cancel("run")
        assert refusal.value.reason == "CAPTURE_NOT_FOUND"
        for call in (captures.cancel("nobody"), captures.progress_after("nobody", -1)):
            with pytest.raises(ActstoreError) as refusal:
                await call
            assert (refusal.value.reason, refusal.value.details["value"]) == ("CAPTURE_NOT_FOUND", "nobody")

    run(work())


def test_a_watch_hears_something_at_every_heartbeat(lab: Path, bucket: Bucket) -> None:
    """A shard that takes long, and a watcher who hears of the same version again all the same."""

    async def work() -> None:
        gate = asyncio.Event()
        loop = asyncio.get_running_loop()
        wait = lambda task: asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()  # noqa: E731
        captures = coordinator(lab, bucket, ThreadWorker(bucket, wait))
        name = await captures.submit(REQUEST)
        version, first = await captures.progress_after(name, -1)
        again, second = await asyncio.wait_for(captures.progress_after(name, version), PATIENCE_SECONDS)
        assert (version, first.shards_committed, first.state) == (again, second.shards_committed, second.state)
        assert second.elapsed_seconds >= first.elapsed_seconds + LIMITS.heartbeat_seconds
        gate.set()
        await watch(captures, name)

    run(work())


def test_nothing_is_written_for_a_run_whose_name_is_taken(lab: Path, bucket: Bucket) -> None:
    """While it is captured, and afterwards. Its model is named by revision, so that it would be registered apart."""
    save_model(lab / "models/tiny/revisions/later", "gpt2")
    taken = replace(REQUEST, model=ModelReference("tiny", "later"), dense_sites=())

    async def work() -> None:
        gate = asyncio.Event()
        loop = asyncio.get_running_loop()
        wait = lambda task: asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()  # noqa: E731
        captures = coordinator(lab, bucket, ThreadWorker(bucket, wait))
        await captures.submit(REQUEST)
        wanted = bucket.get("captures/run.json")
        with pytest.raises(Conflict, match="another specification"):
            await captures.submit(taken)
        assert bucket.get("captures/run.json") == wanted
        gate.set()
        await watch(captures, "run")
        with pytest.raises(Conflict, match="another specification"):
            await captures.submit(taken)

    run(work())
    assert bucket.keys("captures") == []
    assert bucket.keys("models") == ["models/tiny/model.json"]


def test_one_worker_keeps_runs_of_one_specification_apart(lab: Path, bucket: Bucket) -> None:
    async def work() -> None:
        captures = coordinator(lab, bucket, ThreadWorker(bucket))
        for name in ("a", "b"):
            seen = await watch(captures, await captures.submit(replace(REQUEST, run=name)))
            assert seen[-1].state == "complete"

    run(work())
    assert all(open_run(bucket, name).complete for name in ("a", "b"))


def test_old_captures_are_forgotten(lab: Path, bucket: Bucket) -> None:
    async def work() -> None:
        captures = coordinator(lab, bucket, ThreadWorker(bucket), limits=replace(LIMITS, finished_captures=2))
        for name in ("a", "b", "c"):
            await watch(captures, await captures.submit(replace(REQUEST, run=name)))
        await watch(captures, await captures.submit(replace(REQUEST, run="c")))  # again, and in its own place
        await captures.progress_after("b", -1)
        with pytest.raises(ActstoreError):
            await captures.progress_after("a", -1)

    run(work())


def test_errors_of_planning_come_from_submit(lab: Path, bucket: Bucket) -> None:
    async def work() -> None:
        captures = coordinator(lab, bucket, ThreadWorker(bucket))
        for change, reason in (
            ({"model": ModelReference("nobody")}, "MODEL_NOT_FOUND"),
            ({"dataset": DatasetReference("nothing")}, "DATASET_NOT_FOUND"),
            ({"saes": ("nobody",)}, "SAE_NOT_FOUND"),
            ({"dense_sites": ("nowhere",)}, "SITE_UNKNOWN"),
        ):
            with pytest.raises(ActstoreError) as refusal:
                await captures.submit(replace(REQUEST, **change))
            assert refusal.value.reason == reason
        await watch(captures, await captures.submit(REQUEST))
        with pytest.raises(ActstoreError) as refusal:
            await captures.submit(replace(REQUEST, dense_sites=()))
        assert refusal.value.reason == "RUN_EXISTS"

    run(work())


def test_two_coordinators_at_once_commit_every_shard_once(lab: Path, bucket: Bucket) -> None:
    """As when Ray believed one dead that was not: the bucket decides, and both end well."""

    async def work() -> list[CaptureProgress]:
        both = [coordinator(lab, bucket, ThreadWorker(bucket)) for _ in range(2)]
        names = await asyncio.gather(*(each.submit(REQUEST) for each in both))
        return [
            seen[-1] for seen in await asyncio.gather(*(watch(c, name) for c, name in zip(both, names, strict=True)))
        ]

    ends = run(work())
    assert [end.state for end in ends] == ["complete"] * 2
    assert {end.tokens_committed for end in ends} == {open_run(bucket, "run").tokens_committed}
    folders = {commit.objects["tokens"].key.split("/")[3] for commit in commits(bucket)}
    assert set(bucket.folders("runs/run/data")) == folders  # the losers cleaned up after themselves


def test_a_coordinator_that_loses_a_shard_goes_on_somewhere_else(lab: Path, bucket: Bucket) -> None:
    """Two that walk in the same order would do everything twice. One shard is long, so that the other one is ahead."""
    request, tasks = replace(REQUEST, sequences_per_shard=1), []

    class Behind(ThreadWorker):
        async def capture(self, task: ShardTask) -> ShardReport:
            tasks.append(task.shard)
            return await super().capture(task)

    async def work() -> None:
        gate = asyncio.Event()
        loop = asyncio.get_running_loop()
        wait = lambda task: asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()  # noqa: E731
        behind, ahead = coordinator(lab, bucket, Behind(bucket, wait)), coordinator(lab, bucket, ThreadWorker(bucket))
        await behind.submit(request)
        await watch(ahead, await ahead.submit(request))
        gate.set()
        assert (await watch(behind, "run"))[-1].state == "complete"
        won = [(await each.totals()).shards_committed for each in (behind, ahead)]
        assert won == [0, 4 * SHARDS - 1]

    run(work())
    assert sorted(tasks) == list(range(4 * SHARDS - 1))
    assert tasks[:TASKS] == list(range(TASKS))
    assert tasks != sorted(tasks)
