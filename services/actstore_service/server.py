"""One service process: all services behind their interceptors, health, reflection, probes, and an orderly shutdown."""

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from actstore_service.access.interceptor import AccessInterceptor
from actstore_service.failures import FailureInterceptor
from actstore_service.gateway import Gateway
from actstore_service.handlers import SERVICES, Forwarded, Stored, forwarded_services, generic_handlers
from actstore_service.metrics import Metrics, MetricsInterceptor
from actstore_service.probes import ProbeServer
from actstore_service.settings import Settings, cannot_listen, split_address
from actstore_service.sweeps import counted
from actstore_storage.answers import Store
from actstore_storage.bucket import Bucket
from actstore_storage.parquet.row_cache import RowCache


class Service:
    """Accepts calls from its construction until `stop`."""

    def __init__(self, bucket: Bucket, settings: Settings) -> None:
        self._limits = settings.limits
        self._gateway = Gateway(settings.gateway, settings.gateway_token, settings.limits)
        metrics = Metrics(self._gateway)
        self._server = _grpc_server(settings, metrics)
        self._health = health.HealthServicer()
        _add_services(self._server, bucket, self._gateway, settings, metrics)
        _add_standard_services(self._server, self._health, self._gateway)
        self._ready = threading.Event()
        self.address = _bind(self._server, settings.listen)
        self._probes = ProbeServer(settings.metrics_listen, metrics.wsgi(), self._ready.is_set)
        self.metrics_address = self._probes.address
        self._server.start()
        self._ready.set()

    def stop(self) -> None:
        """Stops: readiness ends at once, no new calls are accepted, and running ones get the grace period. Blocks until
        the end.
        """
        self._ready.clear()
        self._health.enter_graceful_shutdown()
        self._server.stop(self._limits.grace_seconds).wait()
        self._gateway.close()
        self._probes.close()


def _grpc_server(settings: Settings, metrics: Metrics) -> grpc.Server:
    limits = settings.limits
    access = [AccessInterceptor(settings.token)] if settings.token is not None else []
    return grpc.server(
        ThreadPoolExecutor(limits.worker_threads, thread_name_prefix="call"),
        interceptors=[MetricsInterceptor(metrics), *access, FailureInterceptor()],
        maximum_concurrent_rpcs=limits.concurrent_calls,
        options=[
            ("grpc.max_receive_message_length", limits.request_bytes),
            ("grpc.max_send_message_length", limits.response_bytes),
            ("grpc.max_concurrent_streams", limits.concurrent_streams),
            ("grpc.so_reuseport", 0),  # A second process on the same port is a mistake that must be reported.
        ],
    )


def _add_services(server: grpc.Server, bucket: Bucket, gateway: Gateway, settings: Settings, metrics: Metrics) -> None:
    stored = Stored(Store(bucket, RowCache(settings.held_row_bytes)), settings.limits.batch_bytes)
    forwarded = Forwarded(gateway, {"RunSweep": lambda updates: counted(updates, metrics.sweeps)})
    server.add_generic_rpc_handlers(tuple(generic_handlers(stored, forwarded)))


def _add_standard_services(server: grpc.Server, servicer: health.HealthServicer, gateway: Gateway) -> None:
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for name in SERVICES:
        serving = gateway.configured or name not in forwarded_services()
        states = health_pb2.HealthCheckResponse
        servicer.set(name, states.SERVING if serving else states.NOT_SERVING)
    reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)


def _bind(server: grpc.Server, listen: str) -> str:
    """Returns the address that clients connect to, with the actual port."""
    host, _ = split_address(listen, "ACTSTORE_LISTEN")
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise cannot_listen(listen, "ACTSTORE_LISTEN", error) from error
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
