"""The coordinator of captures inside its actor, its workers as Ray actors, and parts of indexes as tasks."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import ray
import torch

from actstore_api.logs.lines import LogForm
from actstore_api.logs.traces import carried
from actstore_storage.bucket.access import S3Access
from actstore_storage.bucket.observed import ObservedBucket, StoreObserver
from actstore_storage.bucket.opening import open_bucket, open_files
from actstore_storage.features.segments import Part
from actstore_storage.upkeep.merging import Merge
from actstore_worker.capture.answering import CaptureAnswers
from actstore_worker.capture.coordinator import Coordinator
from actstore_worker.capture.merging import Merging, write_part
from actstore_worker.capture.plan import PlanSettings
from actstore_worker.capture.preparing import Preparing
from actstore_worker.capture.shards.tasks import Task
from actstore_worker.capture.shards.worker import TASKS, CaptureWorker, ShardReport
from actstore_worker.cluster.answers import Failed, Headers, answer, done, start_process, unavailable
from actstore_worker.cluster.joining.session import worker_count
from actstore_worker.cluster.metrics import Reporting, to_coordinator
from actstore_worker.cluster.stores import catalog_of, device_here, gpu_memory
from actstore_worker.datasets.places import DatasetPlaces
from actstore_worker.settings import WorkerSettings


class RayCoordinator(Coordinator):
    """Owns the capture workers: they end with it, and if Ray restarts it, it starts new ones."""

    def __init__(self, settings: WorkerSettings, workers: int, on_gpus: bool, observer: StoreObserver) -> None:
        """`observer` hears of this process's requests to the store."""
        bucket = ObservedBucket(open_bucket(settings.store, settings.s3), observer)
        catalog = catalog_of(settings, bucket)
        stores = tuple(open_files(address, settings.s3) for address in settings.dataset_stores)
        places = DatasetPlaces(settings.dataset_folders, stores, settings.allow_hub, settings.datasets)
        device = "cuda" if on_gpus else "cpu"
        plan_settings = PlanSettings(places, device, settings.write_format, **asdict(settings.planning))
        resources = {"num_cpus": 1, "num_gpus": settings.ray.worker_gpus if on_gpus else 0}
        threads = max(1, int(ray.cluster_resources().get("CPU", 1)) // max(1, workers))
        worker = ray.remote(_CaptureActor).options(max_restarts=-1, max_concurrency=TASKS + 1, **resources)
        self._new_worker: Callable[[], _RemoteWorker] = lambda: _RemoteWorker(
            worker.remote(settings, threads), settings.coordinator.answer_seconds
        )
        super().__init__(
            Preparing(bucket, catalog, plan_settings),
            [self._new_worker() for _ in range(workers)],
            settings.coordinator,
            Merging(bucket, _RemoteWriter(settings), settings.merge),
        )
        self._answers = CaptureAnswers(self, catalog, places)
        self._start(self._look_after_workers(settings))

    async def ask(self, question: Any, principal: str) -> Any:
        """Answers any question about captures that has a single answer.

        Errors: as `CaptureAnswers.answer`.
        """
        return await self._answers.answer(question, principal)

    async def _look_after_workers(self, settings: WorkerSettings) -> None:
        """Continues what an earlier coordinator left, and uses every node that joins the cluster. Ray itself restarts a
        worker that died where there is room for it.
        """
        resumed = False
        self._start(self._merging.resume())
        while True:
            resumed = resumed or await self.resume()
            await asyncio.sleep(settings.coordinator.pool_seconds)
            missing = worker_count(settings) - len(self.pool)
            self.pool.add([self._new_worker() for _ in range(missing)])


class _CaptureActor(CaptureWorker):
    """An actor with a thread for each task, and one for interrupts."""

    def __init__(self, settings: WorkerSettings, threads: int) -> None:
        start_process("capture", settings.log_form, os.environ)
        torch.set_num_threads(threads)
        reporting = Reporting("captures", to_coordinator, gpu_memory).start()
        bucket = ObservedBucket(open_bucket(settings.store, settings.s3), reporting.store)
        super().__init__(bucket, device_here(settings), settings.sae_cache, reporting.loaded)

    def capture_for(self, headers: Headers, task: Task[Any]) -> ShardReport | Failed:
        return done("capture", headers, lambda: self.capture(task))

    def ready(self) -> int:
        """Returns its process. Answers once the actor is up (again)."""
        return os.getpid()


class _RemoteWorker:
    """A capture actor as the coordinator sees it."""

    def __init__(self, actor: Any, answer_seconds: float) -> None:
        self._actor, self._answer_seconds = actor, answer_seconds

    async def capture(self, task: Task[Any]) -> ShardReport:
        # Ray restarts an actor that died. A retried call waits for that, but a capture must not run twice.
        try:
            # A slot may be left from before its actor died; without this the shard would wait for another node.
            await asyncio.wait_for(self.ready(), self._answer_seconds)
        except TimeoutError:
            raise unavailable("a worker process cannot be reached; another one may work") from None
        return await answer(self._actor.capture_for.remote(carried(), task))

    async def ready(self) -> None:
        await answer(self._actor.ready.options(max_task_retries=-1).remote())

    async def flops(self) -> float:
        return await answer(self._actor.flops.remote())

    async def interrupt(self, attempt: str) -> None:
        await answer(self._actor.interrupt.remote(attempt))


class _RemoteWriter:
    """Writes parts of merged indexes as tasks anywhere in the cluster. They request no CPU, because capture workers may
    use all of them: the coordinator limits how many run at once.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._where = settings.log_form, settings.store, settings.s3
        self._task = ray.remote(_write_part).options(num_cpus=0, scheduling_strategy="SPREAD")

    async def write(self, merge: Merge, number: int) -> Part:
        return await answer(self._task.remote(carried(), *self._where, merge, number))


def _write_part(
    headers: Headers, form: LogForm, store: str, s3: S3Access | None, merge: Merge, number: int
) -> Part | Failed:
    start_process("merge", form, os.environ)
    return done("merge", headers, lambda: write_part(store, s3, merge, number))
