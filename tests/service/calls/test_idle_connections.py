"""Connections without any call: they cost nobody else anything, and end."""

import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from actstore_api.v1 import catalog_pb2, norm_pb2, service_pb2_grpc
from tests.service.access.made_certificates import made
from tests.service.calls.conftest import Running, service_over
from tests.service.conftest import TOKEN
from tests.waiting import PATIENCE_SECONDS, wait_until

KIBIBYTE = 1 << 10
CONNECTIONS = 1000
# HTTP/2's first bytes, settings, and that those of the service were seen. No more is said, also not that a ping came.
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000" + "000000040100000000")
METADATA = [("authorization", f"Bearer {TOKEN}")]
# gRPC's own limits are a minute and more.
SOONER_SECONDS = 45


Certificate = tuple[str, str] | None


@pytest.fixture(scope="module", params=["plain", "tls"])
def certificate(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """The files of a certificate and its key, for services that speak TLS."""
    if request.param == "plain":
        return None
    return made("service").write(tmp_path_factory.mktemp("certificate"), "own")


def opened(service: Running, number: int, certificate: Certificate, *, greeted: bool) -> list[socket.socket]:
    """Connections that said nothing at all, or what every client says first, and no more."""
    host, _, port = service.address.rpartition(":")
    found = [socket.create_connection((host, int(port)), PATIENCE_SECONDS) for _ in range(number)]
    if not greeted:
        return found
    if certificate is not None:
        context = ssl.create_default_context(cafile=certificate[0])
        context.set_alpn_protocols(["h2"])
        found = [context.wrap_socket(one, server_hostname=host) for one in found]
    for one in found:
        one.sendall(GREETING)
    return found


def is_closed(connection: socket.socket) -> bool:
    """Whether the service has closed it. What came before is read and dropped."""
    connection.settimeout(0)
    try:
        while connection.recv(4096):
            pass
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        pass
    return True


@contextmanager
def closing(connections: Sequence[socket.socket]) -> Iterator[Sequence[socket.socket]]:
    with ExitStack() as stack:
        for one in connections:
            stack.enter_context(one)
        yield connections


@contextmanager
def asking(service: Running, certificate: Certificate) -> Iterator[grpc.Channel]:
    if certificate is None:
        with grpc.insecure_channel(service.address) as channel:
            yield channel
        return
    trusting = grpc.ssl_channel_credentials(Path(certificate[0]).read_bytes())
    with grpc.secure_channel(service.address, trusting) as channel:
        yield channel


def ask_everything(channel: grpc.Channel) -> None:
    """Small questions of several classes, health included."""
    how = {"timeout": PATIENCE_SECONDS, "metadata": METADATA}
    state = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), **how).status
    assert state == health_pb2.HealthCheckResponse.SERVING
    assert service_pb2_grpc.CatalogServiceStub(channel).ListRuns(catalog_pb2.ListRunsRequest(), **how).runs
    norms = service_pb2_grpc.NormServiceStub(channel)
    assert norms.GetNormProfile(norm_pb2.GetNormProfileRequest(runs=["planted"]), **how).ByteSize()


def test_a_thousand_idle_connections_cost_nobody_anything(wide_store: str, certificate: Certificate) -> None:
    patient = {"keepalive_seconds": 600, "handshake_seconds": 600, "memory_seconds": 0.2}
    with (
        service_over(wide_store, certificate=certificate, **patient) as service,
        asking(service, certificate) as channel,
    ):
        ask_everything(channel)
        before = service.resident_bytes()
        for _ in range(2):
            silent, greeted = (
                opened(service, CONNECTIONS // 2, certificate, greeted=greeted) for greeted in (False, True)
            )
            with closing(silent), closing(greeted):
                wait_until(lambda: service.open_files() > CONNECTIONS, "all connections are accepted")
                for _ in range(5):
                    ask_everything(channel)
                with asking(service, certificate) as newcomer:
                    ask_everything(newcomer)
                assert not any(map(is_closed, [*silent, *greeted]))
                assert service.resident_bytes() - before < CONNECTIONS * 64 * KIBIBYTE
            wait_until(lambda: service.open_files() < 100, "connections that were closed are gone")
            kept = CONNECTIONS * 24 * KIBIBYTE
            wait_until(lambda kept=kept: service.resident_bytes() - before < kept, "their memory is given back")  # type: ignore[misc]


def test_connections_that_say_nothing_are_ended_and_clients_are_not(wide_store: str, certificate: Certificate) -> None:
    soon = {"keepalive_seconds": 1, "keepalive_timeout_seconds": 6, "handshake_seconds": 1}
    with service_over(wide_store, certificate=certificate, **soon) as service, asking(service, certificate) as channel:
        ask_everything(channel)
        states: list[grpc.ChannelConnectivity] = []
        channel.subscribe(states.append)
        for greeted in (False, True):
            with closing(opened(service, 20, certificate, greeted=greeted)) as connections:
                wait_until(lambda those=connections: all(map(is_closed, those)), "all are ended", SOONER_SECONDS)  # type: ignore[misc]
        assert set(states) == {grpc.ChannelConnectivity.READY}  # It answered each ping.
        ask_everything(channel)


def test_connections_beyond_the_limit_are_closed_at_once(wide_store: str) -> None:
    with service_over(wide_store, connections=20, handshake_seconds=600) as service:
        with asking(service, None) as channel:
            ask_everything(channel)
            with closing(opened(service, 30, None, greeted=True)) as connections:
                wait_until(lambda: sum(map(is_closed, connections)) == 11, "those beyond it are closed")
                ask_everything(channel)
        with asking(service, None) as newcomer:
            wait_until(lambda: service.open_files() < 20, "the others are gone")
            ask_everything(newcomer)
