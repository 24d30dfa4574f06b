"""Replicas of models as one multiplexed deployment of Ray Serve."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from ray import serve

from actstore_api.records.patching import RunSweep, SweepEstimate
from actstore_storage.bucket.opening import open_bucket
from actstore_worker.cluster.gateway import model_id_of
from actstore_worker.live.questions import Question
from actstore_worker.patching.serving.caller import Caller
from actstore_worker.patching.updates import Finished, SweepUpdate
from actstore_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from actstore_worker.patching.serving.sweeps import Served
    from actstore_worker.replica import OpenModel


def model_replica(models_per_replica: int) -> type:
    """Returns the deployment's class; Serve needs the number of models in the decorator."""

    class ModelReplica:
        def __init__(self, settings: WorkerSettings) -> None:
            # Imported only in its own process: libraries that run models take seconds to import, and the deploying
            # process does not need them.
            from actstore_worker.cluster.placement.stores import catalog_of, device_here
            from actstore_worker.replica import Replica

            bucket = open_bucket(settings.store, settings.s3)
            catalog = catalog_of(settings, bucket)
            # As many threads as Serve sends questions, so that none waits for the end of another.
            questions = settings.ray.sweeps_per_replica
            self._replica = Replica(catalog, bucket, device_here(settings), settings.live, settings.patching, questions)

        @serve.multiplexed(max_num_models_per_replica=models_per_replica)  # type: ignore[untyped-decorator]
        async def model(self, model_id: str) -> "OpenModel":
            return await asyncio.to_thread(self._replica.open, *json.loads(model_id))

        async def sweep(self, request: RunSweep, finished: Finished, caller: Caller) -> AsyncIterator[SweepUpdate]:
            served = await self._served(serve.get_multiplexed_model_id())
            async with aclosing(self._replica.sweeps.run(served, request, finished, caller)) as updates:
                async for update in updates:
                    yield update

        async def estimate(self, request: RunSweep) -> SweepEstimate:
            served = await self._served(serve.get_multiplexed_model_id())
            return await self._replica.sweeps.estimate(served, request)

        async def ask(self, question: Question) -> Any:
            named = await asyncio.to_thread(self._replica.live.model_of, question)
            served = None if named is None else await self._served(model_id_of(named))
            return await self._replica.ask(question, None if served is None else served.model)

        async def _served(self, model_id: str) -> "Served":
            """The id of a model in Serve, whatever the current contents of its files."""
            return await asyncio.to_thread((await self.model(model_id)).get)

    return ModelReplica
