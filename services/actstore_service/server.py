"""One service process: every servicer behind its interceptors, health, reflection, probes, and an orderly end."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from actstore_api.v1 import service_pb2, service_pb2_grpc
from actstore_service.access import AccessInterceptor
from actstore_service.activation import ActivationService
from actstore_service.capture import CaptureService
from actstore_service.catalog import CatalogService
from actstore_service.encoded import EncodedInterceptor
from actstore_service.failures import FailureInterceptor
from actstore_service.feature import FeatureService
from actstore_service.gateway import Gateway
from actstore_service.metrics import Metrics, MetricsInterceptor
from actstore_service.model import ModelService
from actstore_service.norm import NormService
from actstore_service.patching import PatchingService
from actstore_service.probes import ProbeServer
from actstore_service.sae import SaeService
from actstore_service.settings import Settings, cannot_listen, split_address
from actstore_storage.bucket import Bucket
from actstore_storage.parquet.row_cache import RowCache

SERVICES = tuple(service.full_name for service in service_pb2.DESCRIPTOR.services_by_name.values())
FORWARDED = tuple(f"actstore_api.v1.{name}Service" for name in ("Capture", "Patching", "Sae", "Model"))


class Service:
    """Takes calls from the moment it is built until `stop`."""

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
        """Not ready at once; then no new calls, and the running ones get the grace period. Blocks until the end."""
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
        interceptors=[MetricsInterceptor(metrics), *access, FailureInterceptor(), EncodedInterceptor()],
        maximum_concurrent_rpcs=limits.concurrent_calls,
        options=[
            ("grpc.max_receive_message_length", limits.request_bytes),
            ("grpc.max_send_message_length", limits.response_bytes),
            ("grpc.max_concurrent_streams", limits.concurrent_streams),
            ("grpc.so_reuseport", 0),  # a second process on the same port is a mistake that must show
        ],
    )


def _add_services(server: grpc.Server, bucket: Bucket, gateway: Gateway, settings: Settings, metrics: Metrics) -> None:
    batch_bytes = settings.limits.batch_bytes
    servicers: dict[str, Any] = {
        "CatalogService": CatalogService(bucket),
        "CaptureService": CaptureService(gateway),
        "ActivationService": ActivationService(bucket, batch_bytes, RowCache(settings.held_row_bytes)),
        "FeatureService": FeatureService(bucket, batch_bytes),
        "NormService": NormService(bucket, gateway),
        "PatchingService": PatchingService(gateway, metrics.sweeps),
        "SaeService": SaeService(gateway),
        "ModelService": ModelService(gateway),
    }
    for name, servicer in servicers.items():
        getattr(service_pb2_grpc, f"add_{name}Servicer_to_server")(servicer, server)


def _add_standard_services(server: grpc.Server, servicer: health.HealthServicer, gateway: Gateway) -> None:
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for name in SERVICES:
        serving = gateway.configured or name not in FORWARDED
        states = health_pb2.HealthCheckResponse
        servicer.set(name, states.SERVING if serving else states.NOT_SERVING)
    reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)


def _bind(server: grpc.Server, listen: str) -> str:
    """The address that clients connect to, with the real port."""
    host, _ = split_address(listen, "ACTSTORE_LISTEN")
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise cannot_listen(listen, "ACTSTORE_LISTEN", error) from error
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
