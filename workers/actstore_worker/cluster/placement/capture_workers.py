"""Capture workers as Ray actors: what they ask of a node, and how the coordinator sees them."""

import asyncio
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayError

from actstore_api.logs.traces import carried
from actstore_storage.bucket.observed import ObservedBucket
from actstore_storage.bucket.opening import open_bucket
from actstore_worker.capture.shards.report import TASKS, ShardReport
from actstore_worker.cluster.placement.answers import Failed, Headers, answer, done, start_process, unavailable
from actstore_worker.cluster.placement.reporting import Reporting, to_coordinator
from actstore_worker.cluster.placement.resources import threads_here
from actstore_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from actstore_worker.capture.shards.tasks import Task

# A worker's calls at the same time: shards, a look whether it answers, something else, and the one that ends with it.
_CALLS = TASKS + 3


class RemoteWorker:
    """A capture worker as the coordinator sees it, from its start to its end. While no node has room for it, Ray tells
    an autoscaler that one is wanted.
    """

    def __init__(self, settings: WorkerSettings, workers: int, *, on_gpu: bool) -> None:
        """`workers`: how many there may be. Ray restarts none that died: a restart wants a node, needed or not."""
        resources = {"num_cpus": 1, "num_gpus": settings.ray.worker_gpus if on_gpu else 0}
        placed = ray.remote(_CaptureActor).options(max_restarts=0, max_concurrency=_CALLS, **resources)
        self._actor = placed.remote(settings, workers)
        self._answer_seconds = settings.coordinator.answer_seconds

    async def ready(self) -> str:
        try:
            return str(await self._actor.device.remote())
        except RayError as error:  # it died, or cannot be placed
            raise unavailable(str(error)) from None

    async def ended(self) -> None:
        with suppress(RayError):
            await self._actor.wait.remote()

    def end(self) -> None:
        ray.kill(self._actor)

    async def capture(self, task: "Task[Any]") -> "ShardReport":
        try:
            # Its node may be out of reach; without this the shard would wait until Ray has noticed.
            await asyncio.wait_for(answer(self._actor.device.remote()), self._answer_seconds)
        except TimeoutError:
            raise unavailable("a worker process cannot be reached; another one may work") from None
        return await answer(self._actor.capture.remote(carried(), task))

    async def flops(self) -> float:
        return await answer(self._actor.flops.remote(carried()))

    async def interrupt(self, attempt: str) -> None:
        await answer(self._actor.interrupt.remote(carried(), attempt))


class _CaptureActor:
    """A capture worker on what Ray gave to this process. Libraries that run models are loaded here only."""

    def __init__(self, settings: WorkerSettings, workers: int) -> None:
        import torch

        from actstore_worker.capture.shards.worker import CaptureWorker
        from actstore_worker.cluster.placement.stores import device_here, gpu_memory

        start_process("capture", settings.log_form, os.environ)
        torch.set_num_threads(threads_here(workers))
        self._device = device_here(settings)
        reporting = Reporting("captures", to_coordinator, gpu_memory).start()
        bucket = ObservedBucket(open_bucket(settings.store, settings.s3), reporting.store)
        self._worker = CaptureWorker(bucket, self._device, settings.sae_cache, reporting.loaded)

    def device(self) -> str:
        """Answers once the actor is up."""
        return self._device.type

    def wait(self) -> None:
        """Does not return: the call ends with the process."""
        threading.Event().wait()

    def capture(self, headers: Headers, task: "Task[Any]") -> "ShardReport | Failed":
        return done("capture", headers, lambda: self._worker.capture(task))

    def flops(self, headers: Headers) -> float | Failed:
        return done("capture/flops", headers, self._worker.flops)

    def interrupt(self, headers: Headers, attempt: str) -> Failed | None:
        return done("capture/interrupt", headers, lambda: self._worker.interrupt(attempt))
