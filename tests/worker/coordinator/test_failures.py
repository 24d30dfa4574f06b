"""The coordinator where something fails: stores that go away, workers that die, shards that cannot be captured."""

import asyncio
import json
import threading
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from actstore_api.records.capture import CaptureProgress, DatasetReference, Positions
from actstore_api.records.terms import ModelReference
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.access import S3Access
from actstore_storage.bucket.local import LocalBucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import ActstoreError, BadRequest, CorruptObject, NotThere, StoreError, StoreUnreachable
from actstore_storage.format.records import seal
from actstore_storage.runs.opening import open_run
from actstore_storage.upkeep.fsck import check_runs
from actstore_worker.capture.plan import PlanSettings
from actstore_worker.capture.preparing import Preparing, sealed_request
from actstore_worker.capture.shards.overflow import OverflowRefused
from actstore_worker.capture.shards.report import TASKS
from actstore_worker.capture.shards.tasks import ShardTask
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.places import DatasetPlaces
from tests.coordinating import LIMITS, REQUEST, SHARDS, ThreadWorker, bucket, coordinator, lab, run, watch

__all__ = ["bucket", "lab"]


@pytest.mark.parametrize("reason", ["STORE_UNREACHABLE", "STORE_CREDENTIALS"])
def test_a_store_that_comes_back_pauses_the_capture(reason: str, lab: Path, bucket: Bucket) -> None:
    """However long it takes: the tries of a shard are not counted, and who watches is told why."""
    tried: Counter[int] = Counter()
    told = threading.Event()

    def fail(task: ShardTask) -> None:
        tried[task.shard] += 1
        away = not told.is_set() or tried[task.shard] <= 2 * LIMITS.attempts_per_shard
        if task.shard >= 3 and away:
            raise StoreError("not now", reason=reason, field="store", value="s3://bucket")

    async def work() -> list[CaptureProgress]:
        captures = coordinator(lab, bucket, ThreadWorker(bucket, fail), limits=replace(LIMITS, pause_seconds=0.01))
        name, seen, version = await captures.submit(REQUEST), [], -1
        while not seen or not seen[-1].ended:
            version, progress = await captures.progress_after(name, version)
            seen.append(progress)
            if progress.state == "paused":
                told.set()
        return seen

    seen = run(work())
    [paused] = {(one.state, one.failure.reason) for one in seen if one.failure is not None}
    assert paused == ("paused", reason)
    assert (seen[-2].state, seen[-2].shards_committed) == ("running", SHARDS)
    assert (seen[-1].state, seen[-1].shards_committed, seen[-1].failed_shards) == ("complete", SHARDS, ())


def test_patience_ends(lab: Path, bucket: Bucket) -> None:
    def fail(task: ShardTask) -> None:
        raise StoreError("not now", reason="STORE_UNREACHABLE")

    async def work() -> CaptureProgress:
        limits = replace(LIMITS, pause_seconds=0.01, patience_seconds=0.1)
        captures = coordinator(lab, bucket, ThreadWorker(bucket, fail), limits=limits)
        return (await watch(captures, await captures.submit(REQUEST)))[-1]

    last = run(work())
    assert last.state == "failed"
    assert last.failure is not None
    assert last.failure.reason == "STORE_UNREACHABLE"
    assert bucket.keys("captures") == []


def test_a_new_coordinator_finishes_what_is_wanted_by_itself(lab: Path, bucket: Bucket) -> None:
    """As after a crash of the first one: nobody submits anything again."""
    request = replace(REQUEST, run="", positions=Positions("stride", stride=2), sink_ratio=3.0)
    request = replace(request, dataset=DatasetReference("words.jsonl", max_documents=20))

    async def first() -> str:
        gate = asyncio.Event()
        loop = asyncio.get_running_loop()

        def stop_at_two(task: ShardTask) -> None:
            if task.shard >= 2:
                asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()

        captures = coordinator(lab, bucket, ThreadWorker(bucket, stop_at_two))
        name, version, progress = await captures.submit(request), -1, None
        while progress is None or progress.shards_committed < 2:
            version, progress = await captures.progress_after(name, version)
        assert bucket.keys("captures") == [f"captures/{name}.json"]
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        gate.set()
        return name

    async def second() -> None:
        captures = coordinator(lab, bucket, ThreadWorker(bucket))
        await captures.resume()
        await captures.resume()
        assert (await watch(captures, name))[-1].state == "complete"
        assert bucket.keys("captures") == []

    name = run(first())
    before = open_run(bucket, name).record
    run(second())
    after = open_run(bucket, name)
    assert after.complete
    assert after.record == before
    assert asdict(after.record.specification.positions) == asdict(request.positions)
    assert (after.record.specification.sink_ratio, after.record.specification.max_documents) == (3.0, 20)


def test_what_is_wanted_and_cannot_be_resumed_is_no_obstacle(lab: Path, bucket: Bucket) -> None:
    async def work() -> None:
        captures = coordinator(lab, bucket, ThreadWorker(bucket))
        bucket.put("captures/gone.json", sealed_request(replace(REQUEST, run="gone", model=ModelReference("gone"))))
        bucket.put("captures/other.json", bucket.get("captures/gone.json"))  # the request for another run
        await captures.resume()
        await watch(captures, await captures.submit(REQUEST))
        assert bucket.keys("captures") == ["captures/gone.json", "captures/other.json"]
        for name in ("gone", "other"):
            given_up = await captures.cancel(name)
            assert (given_up.run, given_up.state, given_up.shards_total) == (name, "cancelled", 0)
        with pytest.raises(NotThere):
            await captures.cancel("gone")

    run(work())
    assert bucket.keys("captures") == []


@pytest.mark.parametrize(
    "said",
    [
        {"run": "left", "model": "tiny", "model_revision": "", "dataset": "words.jsonl"},
        {"run": "left", "model": {"name": "tiny"}, "dataset": {"name": "words.jsonl"}, "said_later": True},
        {"run": "left", "model": {"name": ""}},
    ],
    ids=["of an earlier version", "of a later version", "incomplete"],
)
def test_a_request_that_this_version_does_not_read_is_named_and_left(
    said: dict[str, object], lab: Path, bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    """Others go on, and the same capture submitted again takes its place."""

    async def work() -> None:
        captures = coordinator(lab, bucket, ThreadWorker(bucket))
        bucket.put("captures/left.json", seal(said))
        bucket.put("captures/run.json", sealed_request(REQUEST))
        assert await captures.resume()
        assert (await watch(captures, "run"))[-1].state == "complete"
        assert bucket.keys("captures") == ["captures/left.json"]
        assert (
            "this version cannot read the capture request captures/left.json: submit the capture again" in caplog.text
        )
        await watch(captures, await captures.submit(replace(REQUEST, run="left")))

    run(work())
    assert bucket.keys("captures") == []
    assert open_run(bucket, "left").complete


def test_a_wanted_run_that_nobody_works_on_can_be_cancelled(lab: Path, bucket: Bucket) -> None:
    """What its capture has committed is told, and stays."""

    async def work() -> CaptureProgress:
        captures = coordinator(lab, bucket, ThreadWorker(bucket))
        await watch(captures, await captures.submit(REQUEST))
        bucket.put("captures/run.json", sealed_request(REQUEST))
        return await coordinator(lab, bucket, ThreadWorker(bucket)).cancel("run")

    assert run(work()).shards_committed == SHARDS
    assert bucket.keys("captures") == []
    assert open_run(bucket, "run").complete


class FailingBucket(LocalBucket):
    """A store that fails at one call for one key, as no real one does at a word."""

    def __init__(self, root: Path, call: str, key: str) -> None:
        super().__init__(root)
        self.fails_at = call, key

    def get(self, key: str) -> bytes:
        self._fail("get", key)
        return super().get(key)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self._fail("put_if_absent", key)
        return super().put_if_absent(key, data)

    def _fail(self, call: str, key: str) -> None:
        if self.fails_at == (call, key):
            raise StoreUnreachable(f"no {call} of {key}")


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize(
    ("call", "key"),
    [("put_if_absent", "captures/run.json"), ("put_if_absent", "runs/run/run.json"), ("get", "runs/run/run.json")],
)
def test_a_store_that_fails_while_a_run_begins_leaves_what_was_there(
    call: str, key: str, wanted: bool, lab: Path, tmp_path: Path
) -> None:
    """Nothing of a run that was refused; and a run that was wanted before is wanted still."""
    store = FailingBucket(tmp_path, call, key)
    before = ["captures/run.json"] if wanted else []
    if wanted:
        store.put("captures/run.json", seal(asdict(REQUEST)))

    async def work() -> None:
        captures = coordinator(lab, store, ThreadWorker(store))
        with pytest.raises(StoreUnreachable):
            await captures.submit(REQUEST)
        assert (store.keys("captures"), store.keys("runs")) == (before, [])
        store.fails_at = "", ""
        assert await captures.resume()
        assert await captures.submit(REQUEST) == "run"
        assert (await watch(captures, "run"))[-1].state == "complete"

    run(work())


@pytest.mark.parametrize("end", ["complete", "cancelled", "failed"])
def test_a_run_is_wanted_until_its_capture_ends(end: str, lab: Path, bucket: Bucket) -> None:
    def fail(task: ShardTask) -> None:
        if end == "failed":
            raise CorruptObject("damaged")

    async def work() -> None:
        captures = coordinator(lab, bucket, ThreadWorker(bucket, fail))
        name = await captures.submit(REQUEST)
        assert bucket.keys("captures") == ["captures/run.json"]
        if end == "cancelled":
            await captures.cancel(name)
        await watch(captures, name)

    run(work())
    assert bucket.keys("captures") == []


def test_workers_that_die_are_not_the_shards_fault(lab: Path, bucket: Bucket) -> None:
    """Others take their places once they are ready, and one shard that kills them all is given up in the end."""
    readied: list[int] = []

    class Dying(ThreadWorker):
        async def ready(self) -> str:
            await asyncio.sleep(0.01)
            readied.append(1)
            return "cpu"

    def die(task: ShardTask) -> None:
        if task.shard == 4:
            raise ActstoreError("a worker process died", reason="WORKERS_UNAVAILABLE")

    async def work() -> CaptureProgress:
        limits = replace(LIMITS, losses_per_shard=5, attempts_per_shard=1)
        captures = coordinator(lab, bucket, Dying(bucket, die), limits=limits)
        return (await watch(captures, await captures.submit(REQUEST)))[-1]

    last = run(work())
    assert (last.state, last.shards_committed) == ("failed", SHARDS - 1)
    assert [failed.shard for failed in last.failed_shards] == [4]
    assert len(readied) >= 5


def test_each_shard_that_failed_is_told_with_its_cause(lab: Path, bucket: Bucket) -> None:
    tried: Counter[int] = Counter()

    def fail(task: ShardTask) -> None:
        tried[task.shard] += 1
        if task.shard == 1:
            raise OverflowRefused("resid_post.0 overflows", field="resid_post.0")
        if task.shard == 5:
            raise CorruptObject("damaged")

    async def work() -> CaptureProgress:
        captures = coordinator(lab, bucket, ThreadWorker(bucket, fail))
        return (await watch(captures, await captures.submit(REQUEST)))[-1]

    last = run(work())
    assert {failed.shard: failed.failure.reason for failed in last.failed_shards} == {
        1: "VALUE_OVERFLOW",
        5: "OBJECT_CORRUPT",
    }
    assert (tried[1], tried[5]) == (1, LIMITS.attempts_per_shard)
    assert last.failure == last.failed_shards[0].failure


def test_workers_that_join_are_used(lab: Path, bucket: Bucket) -> None:
    async def work() -> ThreadWorker:
        gate = asyncio.Event()
        loop = asyncio.get_running_loop()
        wait = lambda task: asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()  # noqa: E731
        busy, joined = ThreadWorker(bucket, wait), ThreadWorker(bucket)
        captures = coordinator(lab, bucket, busy, joined)
        captures.pool.resize(1, 1)
        name = await captures.submit(REQUEST)
        while busy.running < TASKS:  # then all places are taken, and the capture waits for one
            await asyncio.sleep(0)
        captures.pool.resize(2, 2)
        version, progress = -1, None
        while progress is None or progress.shards_committed < SHARDS - TASKS:
            version, progress = await captures.progress_after(name, version)
        gate.set()
        await watch(captures, name)
        return joined

    assert run(work()).most_running == TASKS


def test_an_estimate_is_near_what_is_stored_and_stores_nothing(lab: Path, bucket: Bucket) -> None:
    request = replace(REQUEST, dense_sites=("resid_post.0", "z.1.2"), storage_dtype="bfloat16")

    async def work() -> Any:
        captures = coordinator(lab, bucket, ThreadWorker(bucket))
        estimate = await captures.estimate(request)
        assert bucket.keys("runs") == bucket.keys("models") == []
        await watch(captures, await captures.submit(request))
        return estimate

    estimate = run(work())
    snapshot = open_run(bucket, "run")
    assert (estimate.tokens, estimate.shards) == (snapshot.tokens_committed, SHARDS)
    assert (estimate.sequences, estimate.documents) == (snapshot.record.sequences_total, 4 * SHARDS - 1)
    assert estimate.bytes_by_product["resid_post.0"] == snapshot.tokens_committed * 24 * 2
    assert estimate.bytes_by_product["z.1.2"] == snapshot.tokens_committed * 8 * 2
    assert estimate.bytes == sum(estimate.bytes_by_product.values())
    assert estimate.seconds > 0


def test_a_run_that_would_be_too_large_is_refused_with_both_numbers(lab: Path, bucket: Bucket) -> None:
    settings = PlanSettings(DatasetPlaces((lab / "data",)), run_bytes_max=1000)
    preparing = Preparing(bucket, ModelCatalog((lab / "models",)), settings)
    with pytest.raises(ActstoreError, match="the limit is 1000") as refusal:
        preparing.plan(REQUEST)
    assert refusal.value.reason == "LIMIT_EXCEEDED"
    assert int(refusal.value.details["value"]) > 1000


@pytest.mark.parametrize(
    ("positions", "dense_bytes"), [(Positions(), 24 * 4), (Positions.last(), 0)], ids=["all", "last"]
)
def test_a_run_is_refused_as_soon_as_the_tokens_that_were_read_are_too_many(
    lab: Path, bucket: Bucket, tmp_path: Path, positions: Positions, dense_bytes: int
) -> None:
    """What follows is not read: its last line is no JSON. The rest of a token is two norms and its id."""
    line = json.dumps({"text": " ".join(["word"] * 50)})
    (tmp_path / "long.jsonl").write_text("\n".join([line] * 10_000 + ["{"]))
    settings = PlanSettings(DatasetPlaces((tmp_path,)), run_bytes_max=100_000)
    stored = {"positions": positions, "norm_sites": ("resid_post.0",)}
    asked = replace(REQUEST, dataset=DatasetReference("long.jsonl"), **stored)
    with pytest.raises(BadRequest, match=r"at least [0-9]+ bytes, mostly .*; the limit is 100000") as refusal:
        Preparing(bucket, ModelCatalog((lab / "models",)), settings).plan(asked)
    assert refusal.value.reason == "LIMIT_EXCEEDED"
    of_token = dense_bytes + 2 * 4 + 2
    found = int(refusal.value.details["value"])
    assert found % of_token == 0
    assert 100_000 < found <= 100_000 + 60 * of_token  # after the document that was too much


def test_commits_are_folded_on_the_way(lab: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actstore_storage.upkeep.folding.BLOCKS", (2, 4))

    async def work() -> None:
        captures = coordinator(lab, bucket, ThreadWorker(bucket), limits=replace(LIMITS, fold_shards=2))
        await watch(captures, await captures.submit(REQUEST))

    run(work())
    assert [found.shards for found in open_run(bucket, "run").commits.checkpoints] == [range(4), range(4, 6)]


def test_keys_that_expire_pause_a_capture_until_they_are_renewed(
    lab: Path, s3_address: str, s3_access: S3Access, tmp_path: Path
) -> None:
    """In a real store, with nothing started again."""
    file = tmp_path / "credentials"

    def write(secret: str) -> None:
        text = f"[default]\naws_access_key_id = {s3_access.access_key}\naws_secret_access_key = {secret}\n"
        (tmp_path / "new").write_text(text)
        (tmp_path / "new").replace(file)  # whole at any moment, as who renews keys has to

    write(s3_access.secret_key)
    bucket = open_bucket(s3_address, replace(s3_access, access_key="", secret_key="", credentials_file=str(file)))

    async def work() -> list[CaptureProgress]:
        def expire(task: ShardTask) -> None:
            if task.shard == 2 and not expired:
                expired.append(task.shard)
                write("expired")

        expired: list[int] = []
        captures = coordinator(lab, bucket, ThreadWorker(bucket, expire), limits=replace(LIMITS, pause_seconds=0.05))
        name, seen, version = await captures.submit(REQUEST), [], -1
        while not seen or not seen[-1].ended:
            version, progress = await captures.progress_after(name, version)
            seen.append(progress)
            if progress.state == "paused":
                write(s3_access.secret_key)
        return seen

    seen = run(work())
    assert "paused" in {progress.state for progress in seen}
    assert seen[-1].state == "complete"
    assert open_run(bucket, "run").complete
    assert check_runs(bucket).sound
