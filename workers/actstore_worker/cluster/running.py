"""Runs the workers, from a cluster to a gateway that answers. Libraries that run models are loaded in other processes
only.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray

from actstore_api.records.capture import CaptureProgress
from actstore_worker.cluster.claim import only_deployment
from actstore_worker.cluster.serving import APPLICATION, LOOPBACK, deploy, port_of_running, serve_running
from actstore_worker.cluster.session import (
    COORDINATOR,
    NAMESPACE,
    POLL_SECONDS,
    check_room,
    gpu_count,
    ray_session,
    worker_count,
)
from actstore_worker.cluster.sockets import wait_until_answering
from actstore_worker.settings import WorkerSettings


@contextmanager
def running(
    settings: WorkerSettings, connected: Callable[[], None], waits: Callable[[str], None] = lambda _: None
) -> Iterator[str]:
    """Within this context, the workers are up and answer at the yielded address.

    `connected` is called once Ray is up, which has replaced this process's signal handlers. `waits` is called with what
    is waited for next.

    Errors: SettingsError if the cluster has too few resources.
    """
    waits("Ray")
    with ray_session(settings.ray_address, settings.ray.object_store_bytes):
        connected()
        with only_deployment(settings):
            running_port = port_of_running(settings)
            waits("the coordinator")
            with coordinator_running(settings), serve_running(settings, running_port, waits) as port:
                waits("the gateway")
                deploy(settings)
                wait_until_answering(f"{LOOPBACK}:{port}", APPLICATION, settings)
                yield f"{LOOPBACK}:{port}"


@contextmanager
def coordinator_running(settings: WorkerSettings) -> Iterator[None]:
    """Within this context, a coordinator runs.

    It replaces one that a killed process left, because that has other settings.
    """
    workers, gpus = worker_count(settings), gpu_count()
    check_room(workers)
    _stop_coordinator()
    ray.remote(_CoordinatorActor).options(
        name=COORDINATOR,
        namespace=NAMESPACE,
        lifetime="detached",
        num_cpus=0,
        max_restarts=-1,
    ).remote(settings, workers, gpus)
    try:
        yield
    finally:
        _stop_coordinator()


def _stop_coordinator() -> None:
    """Kills the coordinator, if there is one, and returns once its name is free."""
    with suppress(ValueError):  # there is none
        while True:
            ray.kill(ray.get_actor(COORDINATOR, NAMESPACE))
            time.sleep(POLL_SECONDS)


class _CoordinatorActor:
    """The coordinator's process, which alone imports what captures need: that takes seconds, and the starting process
    does not need it. `workers` and `gpus` are those at the start: when Ray restarts the actor, nodes may still be on
    their way back.
    """

    def __init__(self, settings: WorkerSettings, workers: int, gpus: int) -> None:
        from actstore_worker.cluster.captures import RayCoordinator

        self._coordinator = RayCoordinator(settings, workers, gpus)

    async def ask(self, question: Any) -> Any:
        return await self._coordinator.ask(question)

    async def progress_after(self, run: str, version: int) -> tuple[int, CaptureProgress]:
        return await self._coordinator.progress_after(run, version)
