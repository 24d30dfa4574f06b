"""The gateway as Ray Serve's ingress, and how it reaches the coordinator and the replicas. It loads no library that
runs models.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError, RayTaskError

from actstore_api.records.capture import CaptureProgress
from actstore_api.records.patching import RunSweep, SweepCells, SweepEstimate, SweepProgress, SweepResult
from actstore_api.records.terms import ModelReference
from actstore_worker.cluster.coordinator import ensure_coordinator
from actstore_worker.cluster.joining.session import COORDINATOR, NAMESPACE
from actstore_worker.cluster.placement.answers import answer, unavailable
from actstore_worker.cluster.placement.arrivals import Arrivals
from actstore_worker.cluster.placement.replicas import running_replicas
from actstore_worker.files.secrets import TokenFile
from actstore_worker.live.questions import NamesModel, Question
from actstore_worker.patching.serving.caller import Caller
from actstore_worker.patching.serving.failover import ProcessDied, going_on
from actstore_worker.patching.updates import Finished, SweepUpdate
from actstore_worker.settings import WorkerSettings
from actstore_worker.wire.gateway import Gateway


def model_id_of(model: ModelReference) -> str:
    """The id by which Serve distinguishes the models that it multiplexes."""
    return json.dumps([model.name, model.revision])


class GatewayIngress(Gateway):
    def __init__(self, settings: WorkerSettings, models: serve.handle.DeploymentHandle) -> None:
        ensure_coordinator(settings)
        super().__init__(
            TokenFile(settings.token_file),
            _RemoteCoordinator(),
            _RemoteModels(models, Arrivals(settings, running_replicas)),
        )
        self.format_written = settings.write_format


class _RemoteCoordinator:
    """The coordinator, looked up for each call, so that a replaced coordinator is found."""

    async def ask(self, question: Any, principal: str) -> Any:
        """If the caller leaves, planning ends soon; a capture that has begun goes on."""
        reference = self._actor.ask.remote(question, principal)
        try:
            return await answer(reference)
        except asyncio.CancelledError:
            ray.cancel(reference)
            raise

    async def progress_after(self, run: str, version: int) -> tuple[int, CaptureProgress]:
        return await answer(self._actor.progress_after.remote(run, version))

    @property
    def _actor(self) -> Any:
        try:
            return ray.get_actor(COORDINATOR, NAMESPACE)
        except ValueError:
            raise unavailable("the coordinator is not running") from None


class _RemoteModels:
    """While no replica is there, Serve starts one for a question that waits."""

    def __init__(self, handle: serve.handle.DeploymentHandle, arrivals: Arrivals) -> None:
        self._handle, self._arrivals = handle, arrivals

    async def ask(self, question: Question) -> Any:
        """Goes to a replica that has the model, if one has; a question that names none goes to any."""
        model_id = model_id_of(question.model) if isinstance(question, NamesModel) else ""
        return await self._answered(self._handle.options(multiplexed_model_id=model_id).ask.remote(question))

    async def estimate(self, request: RunSweep) -> SweepEstimate:
        """Sends it to a replica that has the model, if one has."""
        model_id = model_id_of(request.model)
        estimate: SweepEstimate = await self._answered(
            self._handle.options(multiplexed_model_id=model_id).estimate.remote(request)
        )
        return estimate

    async def _answered(self, response: Any) -> Any:
        answering = asyncio.ensure_future(answer(response))
        try:
            async for _ in self._arrivals.awaited(answering):
                pass  # The contract has no place for it before an answer.
            return await answering
        finally:
            answering.cancel()
            response.cancel()

    def run(self, request: RunSweep, caller: Caller) -> AsyncIterator[SweepProgress | SweepCells | SweepResult]:
        """Sends it to a replica that has the model, and to another one if that dies."""
        return going_on(lambda finished: self._run(request, finished, caller))

    async def _run(self, request: RunSweep, finished: Finished, caller: Caller) -> AsyncGenerator[SweepUpdate, None]:
        handle = self._handle.options(stream=True, multiplexed_model_id=model_id_of(request.model))
        updates = handle.sweep.remote(request, finished, caller)
        first = asyncio.ensure_future(anext(updates))
        try:
            async for what in self._arrivals.awaited(first):
                yield SweepProgress(0, 0, what)
            yield await first
            async for update in updates:
                yield update
        except RayTaskError as error:
            raise error.cause from None
        except RayActorError:
            raise ProcessDied from None
        finally:
            first.cancel()
            updates.cancel()
