"""Starts or joins Ray Serve, and deploys the application on it from this process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray import serve
from ray.serve.config import HTTPOptions, gRPCOptions

from actstore_worker.cluster.application import application
from actstore_worker.cluster.joining.sockets import check_port_is_free, free_port, port_of_running_serve
from actstore_worker.cluster.placement.replicas import APPLICATION
from actstore_worker.settings import WorkerSettings
from actstore_worker.wire.proxy_streams import add_services

LOOPBACK = "127.0.0.1"
_SERVICES = f"{add_services.__module__}.{add_services.__name__}"


def port_of_running(settings: WorkerSettings) -> int | None:
    """The port of the proxy of a running Serve; None if none runs.

    Errors: SettingsError for a Serve that cannot be used.
    """
    client = _serve_client()
    if client is None:
        return None
    options = client.get_serve_details().get("grpc_options") or {}  # the options as in its REST API
    return port_of_running_serve({"port": gRPCOptions().port} | options, _SERVICES, settings)


def _serve_client() -> Any:
    return serve.context._get_global_client(raise_if_no_controller_running=False)


@contextmanager
def serve_running(settings: WorkerSettings, running_port: int | None, waits: Callable[[str], None]) -> Iterator[int]:
    """Within this context, Ray Serve runs; yields the port of its gRPC proxy. A running Serve is used as it is."""
    waits("Ray Serve")
    try:
        yield _start_serve(settings.gateway_port) if running_port is None else running_port
    finally:
        _end_serve(settings, ours=running_port is None)


def _end_serve(settings: WorkerSettings, *, ours: bool) -> None:
    """Ends our application, and Serve with it. On an existing cluster, other applications continue."""
    if settings.ray_address is not None and _serve_client() is not None:
        serve.delete(APPLICATION)
        ours = ours and not serve.status().applications
    if ours:
        serve.shutdown()


def _start_serve(wanted_port: int) -> int:
    if wanted_port:
        check_port_is_free(wanted_port, "ACTSTORE_GATEWAY_PORT")
    port = wanted_port or free_port()
    serve.start(
        proxy_location="HeadOnly",
        http_options=HTTPOptions(host=LOOPBACK, port=free_port(port)),
        grpc_options=gRPCOptions(port=port, grpc_servicer_functions=[_SERVICES], enable_reflection=False),
    )
    return port


def deploy(settings: WorkerSettings) -> None:
    """Deploys the application on the Serve that runs."""
    serve.run(application(settings), name=APPLICATION, route_prefix=f"/{APPLICATION}")
