"""A coordinator over a real bucket, real planning and real capture, with threads in the place of Ray's actors."""

import asyncio
import json
import random
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from actstore_api.records.capture import CaptureProgress
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.features.segments import Part
from actstore_storage.format.commit import Commit
from actstore_storage.runs.opening import open_run
from actstore_storage.upkeep.merging import Merge, merge_part
from actstore_worker.capture.coordinator import Coordinator
from actstore_worker.capture.limits import CoordinatorLimits, MergeLimits
from actstore_worker.capture.merging import Merging
from actstore_worker.capture.plan import PlanSettings
from actstore_worker.capture.preparing import Preparing
from actstore_worker.capture.shards.report import ShardReport
from actstore_worker.capture.shards.tasks import ShardTask
from actstore_worker.capture.shards.worker import CaptureWorker
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.places import DatasetPlaces
from tests.capture_requests import capture_request
from tests.made_models.random_models import WORDS, save_model
from tests.waiting import PATIENCE_SECONDS

SHARDS = 6
REQUEST = capture_request("tiny", "words.jsonl", run="run", dense_sites=("resid_post.0",), sequences_per_shard=4)
LIMITS = CoordinatorLimits(retry_seconds=0.01, heartbeat_seconds=0.05)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lab = tmp_path_factory.mktemp("lab")
    save_model(lab / "models" / "tiny", "gpt2")
    chosen = random.Random(1)
    lines = [json.dumps({"text": " ".join(chosen.choices(WORDS, k=20))}) for _ in range(4 * SHARDS - 1)]
    (lab / "data").mkdir()
    (lab / "data" / "words.jsonl").write_text("\n".join(lines))
    return lab


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return open_bucket(str(tmp_path))


class ThreadWorker:
    """A capture worker on a thread. `before` sees each task first: to count, to wait, or to fail in its stead."""

    def __init__(self, bucket: Bucket, before: Callable[[ShardTask], None] = lambda task: None) -> None:
        self._inner, self._before = CaptureWorker(bucket, torch.device("cpu")), before
        self.running = self.most_running = 0

    async def capture(self, task: ShardTask) -> ShardReport:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await asyncio.to_thread(self._capture, task)
        finally:
            self.running -= 1

    async def ready(self) -> str:
        return "cpu"

    async def flops(self) -> float:
        return await asyncio.to_thread(self._inner.flops)

    async def interrupt(self, attempt: str) -> None:
        self._inner.interrupt(attempt)

    def _capture(self, task: ShardTask) -> ShardReport:
        self._before(task)
        return self._inner.capture(task)


class ThreadWriter:
    """Parts of merges on threads. `before` sees each first."""

    def __init__(self, bucket: Bucket, before: Callable[[Merge, int], object] = lambda merge, number: None) -> None:
        self._bucket, self._before = bucket, before
        self.running = self.most_running = 0

    async def write(self, merge: Merge, number: int) -> Part:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            return await asyncio.to_thread(self._write, merge, number)
        finally:
            self.running -= 1

    def _write(self, merge: Merge, number: int) -> Part:
        self._before(merge, number)
        return merge_part(self._bucket, merge, number)


class StartedWorker:
    """A worker from one start to its end. Beyond that, one of the same name may be started again."""

    def __init__(self, worker: ThreadWorker) -> None:
        self.worker, self.over = worker, asyncio.Event()
        self.capture, self.interrupt = worker.capture, worker.interrupt
        self.ready, self.flops = worker.ready, worker.flops
        self.ended, self.end = self.over.wait, self.over.set


def started(workers: Sequence[ThreadWorker]) -> Callable[[], Any]:
    """Starts the first of these that does not run."""
    running: dict[ThreadWorker, StartedWorker] = {}

    def start() -> StartedWorker:
        worker = next(one for one in workers if one not in running or running[one].over.is_set())
        running[worker] = StartedWorker(worker)
        return running[worker]

    return start


def coordinator(
    lab: Path,
    bucket: Bucket,
    *workers: ThreadWorker,
    limits: CoordinatorLimits = LIMITS,
    merging: Merging | None = None,
) -> Coordinator:
    catalog, settings = ModelCatalog((lab / "models",)), PlanSettings(DatasetPlaces((lab / "data",)))
    merging = merging or Merging(bucket, ThreadWriter(bucket), MergeLimits())
    return Coordinator(Preparing(bucket, catalog, settings), started(workers), limits, merging, len(workers))


async def watch(captures: Coordinator, run: str) -> list[CaptureProgress]:
    """All that a watcher sees, to the end."""
    seen, version = [], -1
    while not seen or not seen[-1].ended:
        version, progress = await captures.progress_after(run, version)
        seen.append(progress)
    return seen


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Fails, too, where a task that nobody waits for ended with an error: asyncio tells such ones only to its log."""
    unheard: list[dict[str, Any]] = []

    async def watched() -> Any:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unheard.append(context))
        return await asyncio.wait_for(work, PATIENCE_SECONDS)

    found = asyncio.run(watched())
    assert unheard == []
    return found


def commits(bucket: Bucket) -> tuple[Commit, ...]:
    return tuple(open_run(bucket, "run").commits)
