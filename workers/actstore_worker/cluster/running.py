"""Runs the workers, from a cluster to a gateway that answers. Libraries that run models are loaded in other processes
only.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from actstore_worker.cluster.coordinator import coordinator_running
from actstore_worker.cluster.joining.claim import only_deployment
from actstore_worker.cluster.joining.session import ray_session
from actstore_worker.cluster.joining.sockets import check_port_is_free, wait_until_answering
from actstore_worker.cluster.joining.strangers import check_strangers_are_refused
from actstore_worker.cluster.joining.watch import RayGone, watched
from actstore_worker.cluster.placement.replicas import APPLICATION
from actstore_worker.cluster.serving import LOOPBACK, deploy, port_of_running, serve_running
from actstore_worker.settings import WorkerSettings


@contextmanager
def running(
    settings: WorkerSettings,
    connected: Callable[[], None],
    gone: Callable[[RayGone], None],
    waits: Callable[[str], None] = lambda _: None,
) -> Iterator[str]:
    """Within this context, the workers are up and answer at the yielded address.

    Args:
        settings: The settings.
        connected: Is called once Ray is up, which has replaced this process's signal handlers.
        gone: Is called in another thread if Ray ends before this context. Calls to Ray wait for minutes then.
        waits: Is called with what is waited for next.

    Raises:
        SettingsError: The cluster has too few resources, or answers strangers.
    """
    _check_metrics_port(settings)
    waits("Ray")
    with ray_session(settings.ray_address, settings.ray.object_store_bytes):
        connected()
        check_strangers_are_refused(settings.ray_isolated_by)
        with watched(settings.ray.gone_seconds, gone), only_deployment(settings):
            running_port = port_of_running(settings)
            waits("the coordinator")
            with coordinator_running(settings), serve_running(settings, running_port, waits) as port:
                waits("the gateway")
                deploy(settings)
                wait_until_answering(f"{LOOPBACK}:{port}", APPLICATION, settings)
                yield f"{LOOPBACK}:{port}"


def _check_metrics_port(settings: WorkerSettings) -> None:
    """Errors: SettingsError if the coordinator, which will be on this machine, cannot listen there."""
    if settings.worker_metrics_listen and settings.ray_address is None:
        port = int(settings.worker_metrics_listen.rpartition(":")[2])
        check_port_is_free(port, "the port of ACTSTORE_WORKER_METRICS_LISTEN")
