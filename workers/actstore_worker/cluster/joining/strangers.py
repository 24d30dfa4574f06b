"""Checks that a Ray cluster refuses callers without its token: Ray runs the code that it is sent."""

import logging
from collections.abc import Iterator
from typing import Any

import grpc
import ray
from ray._private.worker import global_worker
from ray.core.generated import common_pb2

from actstore_worker.cluster.joining.sockets import CONNECT_SECONDS, NO_PROXY
from actstore_worker.errors import SettingsError

_log = logging.getLogger(__name__)
# The first release in which every process of Ray checks the token, the replicas of Serve included.
_LEAST_RAY = (2, 59)
_RAYLET = "a raylet"


def check_strangers_are_refused(isolated_by: str) -> None:
    """Calls the cluster that this process has joined without a token: its GCS, each raylet, and this process, which
    listens as all processes of Ray do.

    Errors: SettingsError if one of them answers, unless the operator says what keeps strangers away.
    """
    if isolated_by:
        _log.warning("whether Ray refuses strangers is not checked: it is isolated by %s", isolated_by)
        return
    check_release(ray.__version__)
    for what, address, method in _doors():
        code = answer_to_strangers(address, method)
        if code is grpc.StatusCode.UNAVAILABLE and what == _RAYLET:
            continue  # A node that has just gone. Its GCS asks every node for the token.
        if code is not grpc.StatusCode.UNAUTHENTICATED:
            raise SettingsError(
                f"{what} of the Ray cluster at {address} does not refuse callers without a token, and Ray runs what it "
                "is sent: start all nodes and the workers with RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN, or "
                "name in ACTSTORE_RAY_ISOLATED_BY what keeps strangers away, such as a network policy"
            )


def check_release(version: str) -> None:
    """Errors: SettingsError for a Ray some of whose processes do not check the token."""
    release = tuple(int(part) for part in version.split(".")[:2])
    if release < _LEAST_RAY:
        least = ".".join(map(str, _LEAST_RAY))
        raise SettingsError(f"Ray {version} runs code of callers without its token; install at least Ray {least}")


def answer_to_strangers(address: str, method: str) -> grpc.StatusCode:
    """What a process of Ray answers to a call without a token. If it requires TLS, this connection fails, which proves
    nothing: such a cluster needs ACTSTORE_RAY_ISOLATED_BY, or the token too.
    """
    with grpc.insecure_channel(address, NO_PROXY) as channel:
        try:
            channel.unary_unary(method)(b"", timeout=CONNECT_SECONDS)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK


def _doors() -> Iterator[tuple[str, str, str]]:
    """What is called, its address, and a method that changes nothing."""
    yield "the GCS", ray.get_runtime_context().gcs_address, "/ray.rpc.NodeInfoGcsService/GetClusterId"
    for node in ray.nodes():
        if node["Alive"]:
            address = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
            yield _RAYLET, address, "/ray.rpc.NodeManagerService/GetNodeStats"
    yield "this process", address_here(), "/ray.rpc.CoreWorkerService/GetCoreWorkerStats"


def address_here() -> str:
    """Where this process listens for others of Ray."""
    here: Any = common_pb2.Address.FromString(global_worker.core_worker.get_owner_address(ray.put(None)))
    return f"{here.ip_address}:{here.port}"
