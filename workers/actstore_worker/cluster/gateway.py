"""The gateway as Ray Serve's ingress, and how it reaches the coordinator and the replicas. It loads no library that
runs models.
"""

import asyncio
import json
import os
from collections.abc import AsyncGenerator
from hashlib import sha256
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError, RayTaskError

from actstore_api.logs.traces import carried
from actstore_api.records.capture import CaptureProgress
from actstore_api.records.patching import RunSweep, SweepEstimate, SweepProgress
from actstore_api.records.terms import ModelReference
from actstore_worker.caller import Caller
from actstore_worker.cluster.coordinator import ensure_coordinator
from actstore_worker.cluster.joining.session import COORDINATOR, NAMESPACE
from actstore_worker.cluster.placement.answers import answer, start_process, unavailable, unwrapped
from actstore_worker.cluster.placement.arrivals import Arrivals
from actstore_worker.cluster.placement.replicas import running_replicas
from actstore_worker.files.secrets import TokenFile
from actstore_worker.live.questions import NamesModel, Question
from actstore_worker.patching.serving.failover import ProcessDied, going_on
from actstore_worker.patching.updates import Finished, SweepUpdate
from actstore_worker.settings import WorkerSettings
from actstore_worker.wire.gateway import Gateway
from actstore_worker.wire.live_places import FairModels, LivePlaces, Updates


def model_id_of(model: ModelReference) -> str:
    """The id by which Serve distinguishes the models that it multiplexes. It is not the name, because a caller chose
    that, and Serve writes the id into its log.
    """
    return sha256(json.dumps([model.name, model.revision]).encode()).hexdigest()[:32]


class GatewayIngress(Gateway):
    def __init__(self, settings: WorkerSettings, models: serve.handle.DeploymentHandle) -> None:
        start_process("gateway", settings.log_form, os.environ)
        ensure_coordinator(settings)
        coordinator, arrivals = _RemoteCoordinator(), Arrivals(settings, running_replicas)
        limits = settings.ray
        # What is sent while no replica runs waits for one in Serve.
        places = LivePlaces(lambda: max(1, arrivals.running) * limits.sweeps_per_replica, limits.sweeps_share)
        limited = settings.coordinator.limits_use
        remote = _RemoteModels(models, arrivals, limits.sweep_tries)
        fair = FairModels(remote, places, coordinator.admit if limited else _admit)
        super().__init__(TokenFile(settings.token_file), coordinator, fair)
        self.format_written = settings.write_format


class _RemoteCoordinator:
    """The coordinator, looked up for each call, so that a replaced coordinator is found."""

    async def ask(self, question: Any, caller: Caller) -> Any:
        """If the caller leaves, planning ends soon; a capture that has begun goes on."""
        reference = self._actor.ask.remote(carried(), question, caller)
        try:
            return await answer(reference)
        except asyncio.CancelledError:
            ray.cancel(reference)
            raise

    async def progress_after(self, run: str, version: int) -> tuple[int, CaptureProgress]:
        return await answer(self._actor.progress_after.remote(carried(), run, version))

    async def admit(self, principal: str) -> None:
        """Errors: BUSY or LIMIT_EXCEEDED for a principal that is beyond a quota."""
        await answer(self._actor.admit.remote(carried(), principal))

    @property
    def _actor(self) -> Any:
        try:
            return ray.get_actor(COORDINATOR, NAMESPACE)
        except ValueError:
            raise unavailable("the coordinator is not running") from None


async def _admit(_: str) -> None:
    """Without quotas nobody is asked."""


class _RemoteModels:
    """While no replica is there, Serve starts one for a question that waits."""

    def __init__(self, handle: serve.handle.DeploymentHandle, arrivals: Arrivals, tries: int) -> None:
        self._handle, self._arrivals, self._tries = handle, arrivals, tries

    async def ask(self, question: Question, caller: Caller) -> Any:
        """Goes to a replica that has the model, if one has; a question that names none goes to any."""
        model_id = model_id_of(question.model) if isinstance(question, NamesModel) else ""
        handle = self._handle.options(multiplexed_model_id=model_id)
        return await self._answered(handle.ask.remote(carried(), question, caller))

    async def estimate(self, request: RunSweep, caller: Caller) -> SweepEstimate:
        """Sends it to a replica that has the model, if one has."""
        model_id = model_id_of(request.model)
        handle = self._handle.options(multiplexed_model_id=model_id)
        estimate: SweepEstimate = await self._answered(handle.estimate.remote(carried(), request, caller))
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

    def run(self, request: RunSweep, caller: Caller) -> Updates:
        """Sends it to a replica that has the model, and to another one if that dies."""
        return going_on(lambda finished, late: self._run(request, finished, caller.after(late)), self._tries)

    async def _run(self, request: RunSweep, finished: Finished, caller: Caller) -> AsyncGenerator[SweepUpdate, None]:
        handle = self._handle.options(stream=True, multiplexed_model_id=model_id_of(request.model))
        updates = handle.sweep.remote(carried(), request, finished, caller)
        first = asyncio.ensure_future(anext(updates))
        try:
            async for what in self._arrivals.awaited(first):
                yield SweepProgress(0, 0, what)
            yield unwrapped(await first)
            async for update in updates:
                yield unwrapped(update)
        except RayTaskError as error:
            raise error.cause from None
        except RayActorError:
            raise ProcessDied from None
        finally:
            first.cancel()
            updates.cancel()
