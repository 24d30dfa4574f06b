"""Checks a Ray cluster and its Serve over plain sockets: Ray's own calls would retry silently for minutes.

Loopback never goes through a proxy of the environment, and neither do Ray's own connections.
"""

import random
import re
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import grpc

from actstore_api.v1 import service_pb2_grpc
from actstore_api.v1.capture_pb2 import GetCaptureTotalsRequest
from actstore_storage.errors import ActstoreError
from actstore_worker.errors import SettingsError
from actstore_worker.files.secrets import read_tokens
from actstore_worker.settings import WorkerSettings

CONNECT_SECONDS = 10.0
_POLL_SECONDS = 0.05
NO_PROXY = [("grpc.enable_http_proxy", 0)]
# A method of Ray's own contract. Any cluster answers it, if only with UNAUTHENTICATED.
_ASK = "/ray.rpc.NodeInfoGcsService/GetClusterId"
_NO_GRPC = re.compile("HTTP/2|http1")
# The system uses ports from 32768 on (Linux) or from 49152 on for outgoing connections, and Ray 10002 to 19999 for its
# workers. These are the same ports as for the local stack's SeaweedFS, which may not import this.
_QUIET_PORTS = range(20_000, 32_768)


def check_cluster(address: str) -> None:
    """Checks an address `host:port`; Ray itself resolves others, such as `auto`, at once.

    Errors: SettingsError if nothing answers there, or something else does.
    """
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise no_cluster(address, f"nothing answers there ({error})") from error
    with grpc.insecure_channel(address, NO_PROXY) as channel:
        try:
            channel.unary_unary(_ASK)(b"", timeout=CONNECT_SECONDS)
        except grpc.RpcError as error:
            # If the cluster requires TLS, this connection is closed, and Ray's own error is clearer.
            if error.code() is grpc.StatusCode.UNIMPLEMENTED or _NO_GRPC.search(str(error.details())):
                raise no_cluster(address, "the process that listens there is not the head of a Ray cluster") from None


def no_cluster(address: str, why: str) -> SettingsError:
    return SettingsError(
        f"ACTSTORE_RAY_ADDRESS is {address}: {why}; it must be host:port of the cluster's head, and the port is 6379 "
        "unless `ray start` "
        "was told another; without the setting the workers start a Ray of their own"
    )


def port_of_running_serve(options: Mapping[str, Any], services: str, settings: WorkerSettings) -> int:
    """Returns the port of the running gRPC proxy: Serve keeps the `options` that it was started with, whatever it is
    told later.

    Errors: SettingsError if it does not offer `services`, or listens at another port than the requested one.
    """
    of_cluster = f"the running Ray Serve of the cluster at {settings.ray_address}"
    if services not in options.get("grpc_servicer_functions", ()):
        raise SettingsError(
            f"{of_cluster} does not offer actstore's gRPC services: stop it (`serve shutdown`), or start it with "
            f"{services} "
            "among its grpc_servicer_functions"
        )
    port = int(options["port"])
    if settings.gateway_port not in (0, port):
        raise SettingsError(
            f"ACTSTORE_GATEWAY_PORT is {settings.gateway_port}, but {of_cluster} listens at {port}: set that port, "
            "leave the variable out, "
            "or stop Serve (`serve shutdown`)"
        )
    return port


def wait_until_answering(address: str, application: str, settings: WorkerSettings) -> None:
    """Waits until the gateway answers: Serve reports an application as running before its proxy knows it. Errors:
    ActstoreError after `start_seconds`.
    """
    metadata = (
        ("application", application),
        ("authorization", f"Bearer {read_tokens(settings.token_file)[0]}"),
    )
    give_up = time.monotonic() + settings.ray.start_seconds
    with grpc.insecure_channel(address, NO_PROXY) as channel:
        captures = service_pb2_grpc.CaptureServiceStub(channel)  # type: ignore[no-untyped-call]
        while True:
            try:
                captures.GetCaptureTotals(
                    GetCaptureTotalsRequest(), metadata=metadata, timeout=settings.ray.start_seconds
                )
            except grpc.RpcError as error:
                if time.monotonic() > give_up:
                    message = f"the gateway does not answer: {error}"
                    raise ActstoreError(message, reason="WORKERS_UNAVAILABLE") from error
                time.sleep(_POLL_SECONDS)
            else:
                return


def check_port_is_free(port: int, variable: str) -> None:
    """Checks a port for another process, whose failure to listen there would be told late and unclearly.

    Errors: SettingsError.
    """
    if not _is_free(port):
        raise SettingsError(f"{variable} is {port}, which another program uses")


def free_port(*but: int) -> int:
    """Returns a port, none of `but`, that no other program is likely to take before Ray or Serve listens there, seconds
    later: see `_QUIET_PORTS`.
    """
    ports = [port for port in _QUIET_PORTS if port not in but]
    for port in random.SystemRandom().sample(ports, len(ports)):
        if _is_free(port):
            return port
    raise SettingsError(f"none of the ports {_QUIET_PORTS.start} to {_QUIET_PORTS.stop - 1} is free")


def _is_free(port: int) -> bool:
    with socket.socket() as listener, suppress(OSError):
        # As Serve will do: ended connections in TIME_WAIT are no obstacle.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", port))
        return True
    return False
