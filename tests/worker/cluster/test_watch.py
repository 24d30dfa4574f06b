"""Whether the cluster is still there: by its ports, which stand-ins have here."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from actstore_worker.cluster.joining import strangers
from actstore_worker.cluster.joining.watch import RayGone, _wait
from actstore_worker.errors import SettingsError
from tests.waiting import wait_until

METHOD = "/ray.rpc.NodeInfoGcsService/GetClusterId"


@pytest.mark.parametrize("gone", ["its GCS", "the raylet"])
def test_a_cluster_is_gone_with_either_of_its_processes(gone: str) -> None:
    listeners = {what: socket.create_server(("127.0.0.1", 0)) for what in ("its GCS", "the raylet")}
    doors = {what: listener.getsockname() for what, listener in listeners.items()}
    found: list[RayGone] = []

    def watch() -> None:
        try:
            _wait(doors, 0.0, stop)
        except RayGone as error:
            found.append(error)

    stop = threading.Event()
    watching = threading.Thread(target=watch)
    watching.start()
    for listener in listeners.values():
        listener.accept()[0].close()  # both are looked at, and are there
    assert not found
    listeners.pop(gone).close()
    wait_until(lambda: found, "the end of a cluster")
    watching.join()
    assert str(found[0]).startswith(f"the Ray cluster of the workers is gone: {gone} at 127.0.0.1:")
    for listener in listeners.values():
        listener.close()


def test_who_stops_watching_is_told_nothing() -> None:
    stop = threading.Event()
    stop.set()
    _wait({"its GCS": ("127.0.0.1", 1)}, 0.0, stop)


@contextmanager
def process_of_ray(code: grpc.StatusCode) -> Iterator[str]:
    """The address of a stand-in that answers so to who has no token."""
    server = grpc.server(ThreadPoolExecutor(1))

    def answer(_request: bytes, context: grpc.ServicerContext) -> bytes:
        assert not [key for key, _ in context.invocation_metadata() if key == "authorization"]
        context.set_code(code)
        return b""

    handlers = {METHOD.rpartition("/")[2]: grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("ray.rpc.NodeInfoGcsService", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.OK])
@pytest.mark.parametrize("what", ["the GCS", "a raylet"])
def test_only_a_refusal_for_the_missing_token_is_one(
    what: str, code: grpc.StatusCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    with process_of_ray(code) as address:
        monkeypatch.setattr(strangers, "_doors", lambda: [(what, address, METHOD)])
        if code is grpc.StatusCode.UNAUTHENTICATED:
            strangers.check_strangers_are_refused("")
        else:
            with pytest.raises(SettingsError, match=f"{what} of the Ray cluster at {address} does not refuse"):
                strangers.check_strangers_are_refused("")
        strangers.check_strangers_are_refused("a network policy")


def test_a_node_that_has_gone_hinders_no_start(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setattr(strangers, "_doors", lambda: [(strangers._RAYLET, f"127.0.0.1:{free_port}", METHOD)])
    strangers.check_strangers_are_refused("")
    monkeypatch.setattr(strangers, "_doors", lambda: [("the GCS", f"127.0.0.1:{free_port}", METHOD)])
    with pytest.raises(SettingsError, match="does not refuse"):
        strangers.check_strangers_are_refused("")


def test_a_ray_whose_replicas_do_not_check_the_token() -> None:
    for version in ("2.51.0", "2.55.1", "2.58.9", "1.99.0"):
        with pytest.raises(SettingsError, match=f"Ray {version} runs code of callers without its token"):
            strangers.check_release(version)
    for version in ("2.59.0", "2.60.0", "3.0.0rc1"):
        strangers.check_release(version)
