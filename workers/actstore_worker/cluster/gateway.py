"""The gateway as Ray Serve's ingress, and how it reaches the coordinator and the replicas. It loads no library that
runs models.
"""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator
from hashlib import sha256
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError, RayTaskError

from actstore_api.logs.traces import carried
from actstore_api.records.capture import CaptureProgress
from actstore_api.records.patching import RunSweep, SweepCells, SweepEstimate, SweepProgress, SweepResult
from actstore_api.records.terms import ModelReference
from actstore_worker.cluster.answers import answer, start_process, unavailable, unwrapped
from actstore_worker.cluster.coordinator import ensure_coordinator
from actstore_worker.cluster.joining.session import COORDINATOR, NAMESPACE
from actstore_worker.files.secrets import TokenFile
from actstore_worker.live.questions import NamesModel, Question
from actstore_worker.patching.serving.caller import Caller
from actstore_worker.patching.serving.failover import ProcessDied, going_on
from actstore_worker.patching.updates import Finished, SweepUpdate
from actstore_worker.settings import WorkerSettings
from actstore_worker.wire.gateway import Gateway


def model_id_of(model: ModelReference) -> str:
    """The id by which Serve distinguishes the models that it multiplexes. It is not the name, because a caller chose
    that, and Serve writes the id into its log.
    """
    return sha256(json.dumps([model.name, model.revision]).encode()).hexdigest()[:32]


class GatewayIngress(Gateway):
    def __init__(self, settings: WorkerSettings, models: serve.handle.DeploymentHandle) -> None:
        start_process("gateway", settings.log_form, os.environ)
        ensure_coordinator(settings)
        super().__init__(TokenFile(settings.token_file), _RemoteCoordinator(), _RemoteModels(models))
        self.format_written = settings.write_format


class _RemoteCoordinator:
    """The coordinator, looked up for each call, so that a replaced coordinator is found."""

    async def ask(self, question: Any, principal: str) -> Any:
        """If the caller leaves, planning ends soon; a capture that has begun goes on."""
        reference = self._actor.ask.remote(carried(), question, principal)
        try:
            return await answer(reference)
        except asyncio.CancelledError:
            ray.cancel(reference)
            raise

    async def progress_after(self, run: str, version: int) -> tuple[int, CaptureProgress]:
        return await answer(self._actor.progress_after.remote(carried(), run, version))

    @property
    def _actor(self) -> Any:
        try:
            return ray.get_actor(COORDINATOR, NAMESPACE)
        except ValueError:
            raise unavailable("the coordinator is not running") from None


class _RemoteModels:
    def __init__(self, handle: serve.handle.DeploymentHandle) -> None:
        self._handle = handle

    async def ask(self, question: Question) -> Any:
        """Goes to a replica that has the model, if one has; a question that names none goes to any."""
        model_id = model_id_of(question.model) if isinstance(question, NamesModel) else ""
        response = self._handle.options(multiplexed_model_id=model_id).ask.remote(carried(), question)
        try:
            return await answer(response)
        finally:
            response.cancel()

    async def estimate(self, request: RunSweep) -> SweepEstimate:
        """Sends it to a replica that has the model, if one has."""
        model_id = model_id_of(request.model)
        response = self._handle.options(multiplexed_model_id=model_id).estimate.remote(carried(), request)
        try:
            return await answer(response)
        finally:
            response.cancel()

    def run(self, request: RunSweep, caller: Caller) -> AsyncIterator[SweepProgress | SweepCells | SweepResult]:
        """Sends it to a replica that has the model, and to another one if that dies."""
        return going_on(lambda finished: self._run(request, finished, caller))

    async def _run(self, request: RunSweep, finished: Finished, caller: Caller) -> AsyncGenerator[SweepUpdate, None]:
        handle = self._handle.options(stream=True, multiplexed_model_id=model_id_of(request.model))
        updates = handle.sweep.remote(carried(), request, finished, caller)
        try:
            async for update in updates:
                yield unwrapped(update)
        except RayTaskError as error:
            raise error.cause from None
        except RayActorError:
            raise ProcessDied from None
        finally:
            updates.cancel()
