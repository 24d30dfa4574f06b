"""Replicas of models as one multiplexed deployment of Ray Serve."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from ray import serve

from actstore_api.records.patching import RunSweep, SweepEstimate
from actstore_storage.bucket.opening import open_bucket
from actstore_worker.caller import Caller
from actstore_worker.cluster.gateway import model_id_of
from actstore_worker.cluster.usage import report_usage
from actstore_worker.live.questions import Question
from actstore_worker.patching.updates import Finished, SweepUpdate
from actstore_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from actstore_worker.patching.serving.sweeps import Served
    from actstore_worker.replica import OpenModel, Replica


def model_replica(models_per_replica: int) -> type:
    """Returns the deployment's class; Serve needs the number of models in the decorator."""

    class ModelReplica:
        def __init__(self, settings: WorkerSettings) -> None:
            self._made = _Made(settings)
            if settings.device == "cuda":
                self._made.replica()  # A process without the GPU that it has to have does not start.

        @serve.multiplexed(max_num_models_per_replica=models_per_replica)  # type: ignore[untyped-decorator]
        async def model(self, model_id: str) -> "OpenModel":
            return await asyncio.to_thread((await self._replica()).open, *json.loads(model_id))

        async def sweep(self, request: RunSweep, finished: Finished, caller: Caller) -> AsyncIterator[SweepUpdate]:
            began = time.monotonic()
            replica, served = await self._replica(), await self._served(serve.get_multiplexed_model_id())
            later = caller.after(time.monotonic() - began)
            later.check_waits()
            async with aclosing(replica.sweeps.run(served, request, finished, later)) as updates:
                async for update in updates:
                    yield update

        async def estimate(self, request: RunSweep, caller: Caller) -> SweepEstimate:
            replica, served = await self._replica(), await self._served(serve.get_multiplexed_model_id())
            return await replica.sweeps.estimate(served, request, caller)

        async def ask(self, question: Question, caller: Caller) -> Any:
            began = time.monotonic()
            replica = await self._replica()
            named = await asyncio.to_thread(replica.live.model_of, question)
            served = None if named is None else await self._served(model_id_of(named))
            model = None if served is None else served.model
            return await replica.ask(question, model, caller.after(time.monotonic() - began))

        async def _replica(self) -> "Replica":
            return await asyncio.to_thread(self._made.replica)

        async def _served(self, model_id: str) -> "Served":
            """The id of a model in Serve, whatever the current contents of its files."""
            return await asyncio.to_thread((await self.model(model_id)).get)

    return ModelReplica


class _Made:
    """The replica of this process, made for the first question: a stack at rest has not loaded the libraries that run
    models, which take seconds and half of its memory.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._replica: "Replica | None" = None
        self._lock = threading.Lock()

    def replica(self) -> "Replica":
        with self._lock:
            if self._replica is None:
                self._replica = _replica(self._settings)
            return self._replica


def _replica(settings: WorkerSettings) -> "Replica":
    from actstore_worker.cluster.stores import catalog_of, device_here
    from actstore_worker.replica import Replica

    bucket = open_bucket(settings.store, settings.s3)
    catalog = catalog_of(settings, bucket)
    # As many threads as Serve sends questions, so that none waits for the end of another.
    questions = settings.ray.sweeps_per_replica
    replica = Replica(catalog, bucket, device_here(settings), settings.live, settings.patching, questions)
    report_usage(replica.usage, settings.coordinator.usage_seconds)
    return replica
