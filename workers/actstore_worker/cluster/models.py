"""Replicas of models as one multiplexed deployment of Ray Serve."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from ray import serve

from actstore_api.records.patching import RunSweep, SweepEstimate
from actstore_api.records.terms import ModelReference
from actstore_storage.bucket.observed import ObservedBucket
from actstore_storage.bucket.opening import open_bucket
from actstore_worker.caller import Caller
from actstore_worker.cluster.gateway import model_id_of
from actstore_worker.cluster.placement.answers import Failed, Headers, answered, answered_in_parts, start_process
from actstore_worker.cluster.placement.usage import report_usage
from actstore_worker.live.questions import Question
from actstore_worker.patching.updates import Finished, SweepUpdate
from actstore_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from actstore_worker.patching.serving.sweeps import Served
    from actstore_worker.replica import OpenModel, Replica


class NotOpened(Exception):
    """Its text is empty; `error` is why the model could not be opened."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def model_replica(models_per_replica: int) -> type:
    """Returns the deployment's class; Serve needs the number of models in the decorator."""

    class ModelReplica(_Answering):
        @serve.multiplexed(max_num_models_per_replica=models_per_replica)  # type: ignore[untyped-decorator]
        async def model(self, model_id: str) -> "OpenModel":
            return await self._opened(model_id)

    return ModelReplica


class _Answering:
    """Answers what the gateway asks. `model` is the deployment's, which holds as many as it may."""

    model: Callable[[str], Awaitable["OpenModel"]]

    def __init__(self, settings: WorkerSettings) -> None:
        start_process("replica", settings.log_form, os.environ)
        self._made = _Made(settings)
        # The models that are asked for now, by their id in Serve.
        self._asked: WeakValueDictionary[str, ModelReference] = WeakValueDictionary()
        if settings.device == "cuda":
            self._made.replica()  # A process without the GPU that it has to have does not start.

    async def sweep(
        self, headers: Headers, request: RunSweep, finished: Finished, caller: Caller
    ) -> AsyncIterator[SweepUpdate | Failed]:
        async with aclosing(self._swept(request, finished, caller)) as updates:
            async for update in answered_in_parts("replica/RunSweep", headers, updates):
                yield update

    async def estimate(self, headers: Headers, request: RunSweep, caller: Caller) -> SweepEstimate | Failed:
        return await answered("replica/EstimateSweep", headers, self._estimated(request, caller))

    async def ask(self, headers: Headers, question: Question, caller: Caller) -> Any:
        return await answered(f"replica/{type(question).__name__}", headers, self._answered(question, caller))

    async def _swept(self, request: RunSweep, finished: Finished, caller: Caller) -> AsyncGenerator[SweepUpdate, None]:
        replica, served, later = await self._reached(request.model, caller)
        async with aclosing(replica.sweeps.run(served, request, finished, later)) as updates:
            async for update in updates:
                yield update

    async def _estimated(self, request: RunSweep, caller: Caller) -> SweepEstimate:
        replica, served, later = await self._reached(request.model, caller)
        return await replica.sweeps.estimate(served, request, later)

    async def _answered(self, question: Question, caller: Caller) -> Any:
        began = time.monotonic()
        replica = await self._replica()
        named = await asyncio.to_thread(replica.live.model_of, question)
        served = None if named is None else await self._served(named)
        model = None if served is None else served.model
        return await replica.ask(question, model, caller.after(time.monotonic() - began))

    async def _reached(self, model: ModelReference, caller: Caller) -> tuple["Replica", "Served", Caller]:
        """What answers a sweep, and its caller, who has less time left. Errors: as `Caller.check_waits`."""
        began = time.monotonic()
        replica, served = await self._replica(), await self._served(model)
        later = caller.after(time.monotonic() - began)
        later.check_waits()
        return replica, served, later

    async def _replica(self) -> "Replica":
        return await asyncio.to_thread(self._made.replica)

    async def _opened(self, model_id: str) -> "OpenModel":
        asked, replica = self._asked[model_id], await self._replica()
        try:
            return await asyncio.to_thread(replica.open, asked.name, asked.revision)
        except Exception as error:  # noqa: BLE001  Serve writes its text into a file
            raise NotOpened(error) from None

    async def _served(self, asked: ModelReference) -> "Served":
        """The model, which Serve knows by its id, whatever the current contents of its files."""
        model_id = model_id_of(asked)
        held = self._asked.setdefault(model_id, asked)  # for as long as somebody asks for it
        try:
            opened = await self.model(model_id)
        except NotOpened as error:
            raise error.error from None
        del held
        return await asyncio.to_thread(opened.get)


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
    from actstore_worker.cluster.placement.reporting import Reporting, to_coordinator
    from actstore_worker.cluster.placement.stores import catalog_of, device_here, gpu_memory
    from actstore_worker.replica import Replica

    reporting = Reporting("questions", to_coordinator, gpu_memory).start()
    bucket = ObservedBucket(open_bucket(settings.store, settings.s3), reporting.store)
    # As many threads as Serve sends questions, so that none waits for the end of another.
    questions = settings.ray.sweeps_per_replica
    catalog, device = catalog_of(settings, bucket), device_here(settings)
    replica = Replica(catalog, bucket, device, settings.live, settings.patching, questions, reporting.loaded)
    report_usage(replica.usage, settings.coordinator.usage_seconds)
    return replica
