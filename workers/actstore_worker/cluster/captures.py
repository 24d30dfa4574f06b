"""The coordinator of captures inside its actor, and parts of indexes as tasks."""

import asyncio
import logging
import os
from dataclasses import asdict
from typing import Any

import ray

from actstore_api.logs.lines import LogForm
from actstore_api.logs.traces import carried
from actstore_storage.bucket.access import S3Access
from actstore_storage.bucket.observed import ObservedBucket, StoreObserver
from actstore_storage.bucket.opening import open_bucket, open_files
from actstore_storage.features.segments import Part
from actstore_storage.upkeep.merging import Merge
from actstore_worker.caller import Caller
from actstore_worker.capture.answering import CaptureAnswers
from actstore_worker.capture.coordinator import Coordinator
from actstore_worker.capture.merging import Merging, write_part
from actstore_worker.capture.preparing import Preparing
from actstore_worker.capture.run_plan import PlanSettings
from actstore_worker.cluster.placement.answers import Failed, Headers, answer, done, start_process
from actstore_worker.cluster.placement.capture_workers import RemoteWorker
from actstore_worker.cluster.placement.replicas import NO_REPLICAS, replica_counts
from actstore_worker.cluster.placement.resources import uses_gpus, without_gpu, worker_count, worker_room
from actstore_worker.cluster.placement.stores import catalog_of
from actstore_worker.datasets.places import DatasetPlaces
from actstore_worker.settings import WorkerSettings

_log = logging.getLogger(__name__)


class RayCoordinator(Coordinator):
    """Owns the capture workers: they end with it, and if Ray restarts it, it starts new ones."""

    def __init__(self, settings: WorkerSettings, on_gpus: bool, observer: StoreObserver) -> None:
        """`on_gpus`: workers ask for GPUs. Else they do so from when there are any. `observer` hears of this process's
        requests to the store.
        """
        bucket = ObservedBucket(open_bucket(settings.store, settings.s3), observer)
        catalog = catalog_of(settings, bucket)
        stores = tuple(open_files(address, settings.s3) for address in settings.dataset_stores)
        places = DatasetPlaces(settings.dataset_folders, stores, settings.allow_hub, settings.datasets)
        device = "cuda" if on_gpus else "cpu"
        plan_settings = PlanSettings(places, device, settings.write_format, **asdict(settings.planning))
        self._settings, self.on_gpus = settings, on_gpus
        self.replicas = NO_REPLICAS
        super().__init__(
            Preparing(bucket, catalog, plan_settings),
            self._new_worker,
            settings.coordinator,
            Merging(bucket, _RemoteWriter(settings), settings.merge),
        )
        self._answers = CaptureAnswers(self, catalog, places)
        self.pool.resize(*self._size_of_pool())
        self._start(self._look_after_captures())

    async def ask(self, question: Any, caller: Caller) -> Any:
        """Answers any question about captures that has a single answer.

        Errors: as `CaptureAnswers.answer`.
        """
        return await self._answers.answer(question, caller)

    def _new_worker(self) -> RemoteWorker:
        return RemoteWorker(self._settings, self.pool.most, on_gpu=self.on_gpus)

    def _size_of_pool(self) -> tuple[int, int]:
        """How many workers there may be, and for how many there is room now. Asks Ray, which may block.

        GPUs that have gone are expected back: captures do not go on without them.
        """
        self.on_gpus = self.on_gpus or uses_gpus(self._settings)
        return worker_count(self._settings, on_gpus=self.on_gpus), worker_room(on_gpus=self.on_gpus)

    async def _look_after_captures(self) -> None:
        """Continues what an earlier coordinator left, and follows the cluster as it grows and shrinks."""
        resumed = False
        self._start(self._merging.resume())
        while True:
            resumed = resumed or await self.resume()
            await asyncio.sleep(self._settings.coordinator.pool_seconds)
            await self._look_at_cluster()

    async def _look_at_cluster(self) -> None:
        try:
            self.pool.resize(*await asyncio.to_thread(self._size_of_pool))
            self.replicas = await asyncio.to_thread(replica_counts)
        except Exception as error:  # noqa: BLE001  of Ray or Serve, which start again; the last numbers hold
            _log.warning("the cluster cannot be looked at: %s", type(error).__name__)


class _RemoteWriter:
    """Writes parts of merged indexes as tasks on nodes without GPUs, which may then go. They request no CPU, because
    capture workers may use all of them: the coordinator limits how many run at once.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._where = settings.log_form, settings.store, settings.s3
        self._task = ray.remote(_write_part)

    async def write(self, merge: Merge, number: int) -> Part:
        placed = self._task.options(num_cpus=0, scheduling_strategy=await asyncio.to_thread(without_gpu))
        return await answer(placed.remote(carried(), *self._where, merge, number))


def _write_part(
    headers: Headers, form: LogForm, store: str, s3: S3Access | None, merge: Merge, number: int
) -> Part | Failed:
    start_process("merge", form, os.environ)
    return done("merge", headers, lambda: write_part(store, s3, merge, number))
