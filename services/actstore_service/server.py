"""One service process: the server for gRPC and the probes, and an orderly end."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from actstore_api.exporting import ExportedStore
from actstore_service.access import Access, Role
from actstore_service.access.certificates import ServerCertificates
from actstore_service.access.gateway_token import GatewayToken
from actstore_service.answers.methods import Answers
from actstore_service.calls.pipeline import Pipeline
from actstore_service.gateway import Gateway
from actstore_service.loop import is_alive, run
from actstore_service.metrics import Metrics
from actstore_service.probes import ProbeServer
from actstore_service.settings import Limits, Settings, cannot_listen, split_address
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.observed import ObservedBucket, StoreWatch


class Service:
    """Accepts calls from its construction until `stop`. For threads: all that is asynchronous runs in the process's
    event loop.
    """

    def __init__(self, bucket: Bucket, settings: Settings, dropped_lines: Callable[[], int] = lambda: 0) -> None:
        """`dropped_lines` counts the log lines that this process has left out."""
        self._limits = settings.limits
        self._dropped_lines = dropped_lines
        self._ready = threading.Event()
        # These read files, and the first keys of an issuer: not in the event loop.
        self._access = Access(settings.token, settings.access_file, frozenset(map(Role, settings.anonymous)))
        self._ports = _ports(settings)
        run(self._start(bucket, settings))
        self._ready.set()

    async def _start(self, bucket: Bucket, settings: Settings) -> None:
        token = GatewayToken(settings.gateway_token, settings.gateway_token_file)
        self._gateway = Gateway(settings.gateway, token.current, settings.limits)
        metrics = Metrics(self._gateway.workers_up)
        metrics.look_at_lines(self._dropped_lines)
        metrics.look_at_files(lambda: self._reloads() | token.reloads(), self._ports[0].expires_seconds)
        self._probes = ProbeServer(settings.metrics_listen, metrics.wsgi(), self._is_alive, self._ready.is_set)
        observed = ObservedBucket(bucket, ExportedStore(metrics.exported))
        self._store_watch = StoreWatch(observed, settings.limits.store_quiet_seconds)
        self._answers = Answers(observed, settings, self._access, self._gateway, metrics)
        pipeline = Pipeline(self._access, metrics.counted, self._answers.methods, settings.limits)
        self._server = _grpc_server(pipeline, settings.limits)
        try:
            self.address, *mutual = [port.bind(self._server) for port in self._ports]
        except Exception:
            self._probes.close()
            self._store_watch.close()
            raise
        self.mutual_tls_address = next(iter(mutual), None)
        self.metrics_address = self._probes.address
        await self._server.start()

    def _is_alive(self) -> bool:
        return is_alive(self._limits.alive_seconds)

    def _reloads(self) -> dict[str, bool]:
        """Of each file that is read again when it changes: whether it could be used the last time."""
        certificates = [port.certificates.successful for port in self._ports if port.certificates]
        return {**self._access.reloads(), **({"certificate": all(certificates)} if certificates else {})}

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
        self._access.close()


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
        ("grpc.server.max_pending_requests", limits.unaccepted_calls),
        ("grpc.server.max_pending_requests_hard_limit", limits.unaccepted_calls),
        ("grpc.so_reuseport", 0),  # A second process on the same port is a mistake that must be reported.
        ("grpc.keepalive_time_ms", _milliseconds(limits.keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", _milliseconds(limits.keepalive_timeout_seconds)),
        # gRPC waits for this one, however short the one before it is: a minute, where none is set.
        ("grpc.http2.ping_timeout_ms", _milliseconds(limits.keepalive_timeout_seconds)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.server_handshake_timeout_ms", _milliseconds(limits.handshake_seconds)),
        ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(limits.ping_seconds)),
    ]


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


@dataclass(frozen=True)
class Port:
    """One port for clients; with certificates it speaks TLS."""

    listen: str
    field: str
    certificates: ServerCertificates | None

    def bind(self, server: grpc.aio.Server) -> str:
        """Returns the address that clients connect to, with the actual port."""
        host, _ = split_address(self.listen, self.field)
        try:
            port = self._added_to(server)
        except RuntimeError as error:
            raise cannot_listen(self.listen, self.field, error) from error
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def expires_seconds(self) -> float | None:
        """When the certificate expires, in seconds since 1970; None without one."""
        return None if self.certificates is None else self.certificates.expires_seconds

    def _added_to(self, server: grpc.aio.Server) -> int:
        if self.certificates is None:
            return server.add_insecure_port(self.listen)
        return server.add_secure_port(self.listen, self.certificates.credentials())


def _ports(settings: Settings) -> list[Port]:
    """The port for all clients, and the one for those that show a certificate."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return [Port(settings.listen, "ACTSTORE_LISTEN", None)]
    own = ServerCertificates(settings.tls_certificate, settings.tls_key)
    found = [Port(settings.listen, "ACTSTORE_LISTEN", own)]
    if settings.mutual_tls_listen is not None:
        mutual = ServerCertificates(settings.tls_certificate, settings.tls_key, settings.client_authorities)
        found.append(Port(settings.mutual_tls_listen, "ACTSTORE_MUTUAL_TLS_LISTEN", mutual))
    return found
