"""The workers, from a cluster to a gateway that answers. Models' libraries are loaded in other processes alone."""

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
    """The workers, up and answering at the yielded address, down again when the block ends.

    `connected` is called once Ray is there, and has replaced this process's signal handlers. `waits` hears what is
    waited for next.

    Errors: SettingsError for what the cluster cannot hold.
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
    """A coordinator that runs as long as the block does.

    It takes the place of one that a killed process left: that one has the settings of then.
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
    """Kills the coordinator, if one is there, and returns once its name is free."""
    with suppress(ValueError):  # it is not there
        while True:
            ray.kill(ray.get_actor(COORDINATOR, NAMESPACE))
            time.sleep(POLL_SECONDS)


class _CoordinatorActor:
    """The coordinator's process, which alone imports what captures need: that takes seconds, and who starts it needs
    none of it. `workers` and `gpus` are those of the start: when Ray starts it again, nodes may be on their way back.
    """

    def __init__(self, settings: WorkerSettings, workers: int, gpus: int) -> None:
        from actstore_worker.cluster.captures import RayCoordinator

        self._coordinator = RayCoordinator(settings, workers, gpus)

    async def ask(self, question: Any) -> Any:
        return await self._coordinator.ask(question)

    async def progress_after(self, run: str, version: int) -> tuple[int, CaptureProgress]:
        return await self._coordinator.progress_after(run, version)
