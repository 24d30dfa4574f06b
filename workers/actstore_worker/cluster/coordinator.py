"""The coordinator as a named, detached actor on the head of the cluster."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import ray

from actstore_api.records.capture import CaptureProgress
from actstore_worker.caller import Caller
from actstore_worker.cluster.joining.session import (
    COORDINATOR,
    NAMESPACE,
    POLL_SECONDS,
    on_head,
)
from actstore_worker.cluster.placement.answers import Failed, Headers, answered, start_process
from actstore_worker.cluster.placement.resources import check_room, uses_gpus
from actstore_worker.models.used import Used
from actstore_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from actstore_api.exporting import Report


@contextmanager
def coordinator_running(settings: WorkerSettings) -> Iterator[None]:
    """Within this context, a coordinator runs.

    It replaces one that a killed process left, because that has other settings.
    """
    check_room(settings)
    _stop_coordinator()
    _coordinator(settings)
    try:
        yield
    finally:
        _stop_coordinator()


def ensure_coordinator(settings: WorkerSettings) -> None:
    """Starts the coordinator, unless one with these settings runs. One with other settings is replaced."""
    while not ray.get(_coordinator(settings).runs_with.remote(settings)):
        _stop_coordinator()


def _coordinator(settings: WorkerSettings) -> Any:
    """The coordinator that runs, or else a new one."""
    placed = ray.remote(_CoordinatorActor).options(
        name=COORDINATOR,
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        num_cpus=0,
        resources=on_head(),
        max_restarts=-1,
    )
    return placed.remote(settings, uses_gpus(settings))


def _stop_coordinator() -> None:
    """Kills the coordinator, if there is one, and returns once its name is free."""
    with suppress(ValueError):  # there is none
        while True:
            ray.kill(ray.get_actor(COORDINATOR, NAMESPACE))
            time.sleep(POLL_SECONDS)


class _CoordinatorActor:
    """The coordinator's process, which alone imports what captures need: that takes seconds, and the starting process
    does not need it. `on_gpus` is of the start: when Ray restarts the actor, nodes may still be on their way back.
    """

    def __init__(self, settings: WorkerSettings, on_gpus: bool) -> None:
        start_process("coordinator", settings.log_form, os.environ)
        from actstore_worker.cluster.captures import RayCoordinator
        from actstore_worker.cluster.metrics import MetricsServer, WorkerMetrics

        self._settings = settings
        self._metrics = WorkerMetrics()
        self._coordinator = RayCoordinator(settings, on_gpus, self._metrics.store)
        if settings.worker_metrics_listen:
            MetricsServer(settings.worker_metrics_listen, self._coordinator, self._metrics)

    async def runs_with(self, settings: WorkerSettings) -> bool:
        """Whether it has these settings."""
        return self._settings == settings

    async def report(self, process: str, report: "Report") -> None:
        """Adds what another process of the workers has counted."""
        self._metrics.exported.add_report(process, report)

    async def admit(self, headers: Headers, principal: str) -> Failed | None:
        """Errors: as `Coordinator.admit`."""
        return await answered("coordinator/admit", headers, self._admitted(principal))

    async def _admitted(self, principal: str) -> None:
        self._coordinator.admit(principal)

    async def used(self, used: Mapping[str, Used]) -> None:
        """Hears what sweeps and live questions used, by principal."""
        for principal, of_principal in used.items():
            self._coordinator.used_live(principal, of_principal)

    async def ask(self, headers: Headers, question: Any, caller: Caller) -> Any:
        name = f"coordinator/{type(question).__name__}"
        return await answered(name, headers, self._coordinator.ask(question, caller))

    async def progress_after(self, headers: Headers, run: str, version: int) -> tuple[int, CaptureProgress] | Failed:
        return await answered("coordinator/WatchCapture", headers, self._coordinator.progress_after(run, version))
