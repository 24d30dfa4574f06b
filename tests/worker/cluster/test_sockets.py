"""What is known of a Ray cluster before Ray is asked. A real one: tests/faults/test_second_start.py."""

import http.server
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import pytest

from actstore_worker.cluster.joining.sockets import check_cluster, check_port_is_free, port_of_running_serve
from actstore_worker.errors import SettingsError
from actstore_worker.settings import WorkerSettings

SERVICES = "our.services"
SETTINGS = WorkerSettings(store="/store", gateway_token="token", ray_address="head:6379")


@pytest.fixture(params=["another gRPC service", "a web server"])
def something_else(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "a web server":
        web = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
        threading.Thread(target=web.serve_forever).start()
        yield f"127.0.0.1:{web.server_port}"
        web.shutdown()
        web.server_close()
        return
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_something_else_at_the_clusters_address(something_else: str) -> None:
    with pytest.raises(
        SettingsError, match=f"ACTSTORE_RAY_ADDRESS is {something_else}: the process that listens there is not the head"
    ):
        check_cluster(something_else)


@pytest.mark.parametrize("host", ["127.0.0.1", "nowhere.invalid"])
def test_nobody_at_the_clusters_address(host: str, free_port: int) -> None:
    with pytest.raises(SettingsError, match=f"ACTSTORE_RAY_ADDRESS is {host}:{free_port}: nothing answers there"):
        check_cluster(f"{host}:{free_port}")


def test_what_ray_itself_looks_up() -> None:
    for address in ("auto", "local", "ray://nowhere.invalid:10001"):
        check_cluster(address)


def test_the_port_of_a_serve_that_runs() -> None:
    running = {"port": 9100, "grpc_servicer_functions": [SERVICES, "another's"]}
    for wanted in (0, 9100):
        assert port_of_running_serve(running, SERVICES, replace(SETTINGS, gateway_port=wanted)) == 9100
    with pytest.raises(SettingsError, match=r"ACTSTORE_GATEWAY_PORT is 9200, but .* head:6379 listens at 9100"):
        port_of_running_serve(running, SERVICES, replace(SETTINGS, gateway_port=9200))
    for others in ({"port": 9000}, {"port": 9000, "grpc_servicer_functions": ["another's"]}):
        with pytest.raises(SettingsError, match="does not offer actstore's gRPC services"):
            port_of_running_serve(others, SERVICES, SETTINGS)


def test_a_port_that_another_program_has() -> None:
    """Or had: of a connection that its listener ended first, the system keeps the port for a minute."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"ACTSTORE_GATEWAY_PORT is {port}"):
            check_port_is_free(port, "ACTSTORE_GATEWAY_PORT")
        with socket.create_connection(("127.0.0.1", port)) as other:
            taken.accept()[0].close()
            assert other.recv(1) == b""
    check_port_is_free(port, "ACTSTORE_GATEWAY_PORT")
