"""One service process: the server for gRPC and the probes, and an orderly end."""

import threading
import time
from collections.abc import Callable

import grpc

from actstore_api.exporting import ExportedStore
from actstore_service.access import Access
from actstore_service.answers.methods import Answers
from actstore_service.calls.pipeline import Pipeline
from actstore_service.gateway import Gateway
from actstore_service.loop import is_alive, run
from actstore_service.metrics import Metrics
from actstore_service.probes import ProbeServer
from actstore_service.settings import Limits, Settings, cannot_listen, split_address
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.observed import ObservedBucket, StoreWatch

# How long the event loop may be busy with one thing before the process counts as hung.
ALIVE_SECONDS = 5.0


class Service:
    """Accepts calls from its construction until `stop`. For threads: all that is asynchronous runs in the process's
    event loop.
    """

    def __init__(self, bucket: Bucket, settings: Settings, dropped_lines: Callable[[], int] = lambda: 0) -> None:
        """`dropped_lines` counts the log lines that this process has left out."""
        self._limits = settings.limits
        self._dropped_lines = dropped_lines
        self._ready = threading.Event()
        run(self._start(bucket, settings))
        self._ready.set()

    async def _start(self, bucket: Bucket, settings: Settings) -> None:
        self._gateway = Gateway(settings.gateway, settings.gateway_token, settings.limits)
        metrics = Metrics(self._gateway.workers_up)
        self._probes = ProbeServer(settings.metrics_listen, metrics.wsgi(), _alive, self._ready.is_set)
        access = Access(settings.token)
        metrics.look_at_lines(self._dropped_lines)
        observed = ObservedBucket(bucket, ExportedStore(metrics.exported))
        self._store_watch = StoreWatch(observed, settings.limits.store_quiet_seconds)
        self._answers = Answers(observed, settings, access, self._gateway, metrics)
        pipeline = Pipeline(access, metrics.counted, self._answers.methods, settings.limits.retry_seconds)
        self._server = _grpc_server(pipeline, settings.limits)
        try:
            self.address = _bind(self._server, settings.listen)
        except Exception:
            self._probes.close()
            raise
        self.metrics_address = self._probes.address
        await self._server.start()

    def drain(self) -> None:
        """Says that the service is not ready, and goes on serving for `drain_seconds`, in which whoever sends calls
        here learns of it.
        """
        self._ready.clear()
        run(self._answers.stop_serving())
        time.sleep(self._limits.drain_seconds)

    def stop(self) -> None:
        """Stops: no new calls are accepted, and running ones get the grace period. Blocks until the end."""
        self._ready.clear()
        run(self._stop())
        self._probes.close()

    async def _stop(self) -> None:
        await self._answers.stop_serving()
        await self._server.stop(self._limits.grace_seconds)
        await self._gateway.close()
        self._store_watch.close()
        self._answers.close()


def _alive() -> bool:
    return is_alive(ALIVE_SECONDS)


def _grpc_server(pipeline: Pipeline, limits: Limits) -> grpc.aio.Server:
    server = grpc.aio.server(options=_options(limits))
    server.add_generic_rpc_handlers((pipeline,))
    return server


def _options(limits: Limits) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.request_bytes),
        ("grpc.max_send_message_length", limits.response_bytes),
        ("grpc.max_concurrent_streams", limits.concurrent_streams),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.so_reuseport", 0),  # A second process on the same port is a mistake that must be reported.
        ("grpc.keepalive_time_ms", _milliseconds(limits.keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", _milliseconds(limits.keepalive_timeout_seconds)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(limits.ping_seconds)),
    ]


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


def _bind(server: grpc.aio.Server, listen: str) -> str:
    """Returns the address that clients connect to, with the actual port."""
    host, _ = split_address(listen, "ACTSTORE_LISTEN")
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise cannot_listen(listen, "ACTSTORE_LISTEN", error) from error
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
