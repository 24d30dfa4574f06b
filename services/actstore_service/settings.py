"""The settings of one service process. Only `__main__` reads the environment.

A setting is a field with a text: `actstore_storage.settings` reads it, from the variable and the key of its name.
"""

import ipaddress
import re
from dataclasses import dataclass, field

from actstore_storage.errors import BadRequest
from actstore_storage.settings.checks import check_least, check_positive
from actstore_storage.settings.reading import Beside

MEBIBYTE = 1 << 20
# Their variables may be set for this process too, and their keys are in the same file.
SETTINGS_BESIDE = Beside(("actstore_worker.settings:WorkerSettings",), ("actstore._variables:ClientVariables",))
# A host name, an IPv4 address or an IPv6 address in brackets, and a port.
_ADDRESS = re.compile(r"([\w.-]+|\[[\da-fA-F:.]+\]):(\d{1,5})", re.ASCII)


@dataclass(frozen=True)
class Limits:
    """Limits on what one service process accepts and holds."""

    worker_threads: int = 64
    """Calls that run at the same time. A server stream occupies a thread for as long as it is open."""
    concurrent_calls: int = 256
    """Calls that run or wait for a thread. gRPC refuses further ones at once, with RESOURCE_EXHAUSTED."""
    concurrent_streams: int = 256
    """HTTP/2 streams of one connection. Further ones wait in the client."""
    forwarded_calls: int = 32
    """Open calls to the workers (captures, watches, sweeps). The rest of the threads stay free for stored answers."""
    request_bytes: int = 1 * MEBIBYTE
    """Largest request message. Prompts and specifications are small."""
    response_bytes: int = 64 * MEBIBYTE
    """Largest message of an answer, including answers from the workers."""
    batch_bytes: int = 3 * MEBIBYTE
    """Rows in one message of a stream, below the 4 MiB that gRPC clients accept by default."""
    grace_seconds: float = 20.0
    """Time that running calls have to finish after SIGTERM."""
    reconnect_seconds: float = 1.0
    """Longest pause between two attempts to reach workers that do not answer."""
    totals_seconds: float = 1.0
    """How long a scrape of /metrics waits for the workers' capture totals."""

    def __post_init__(self) -> None:
        check_positive(self)


@dataclass(frozen=True)
class Settings:
    """Configuration of one service process. Addresses are host:port; port 0 takes a free port."""

    listen: str = "127.0.0.1:7433"
    """Address on which clients connect. Without a token it must be a loopback address."""
    metrics_listen: str = "127.0.0.1:9433"
    """Address on which Prometheus scrapes `/metrics`."""
    token: str | None = field(default=None, repr=False)
    """The token that clients send as `authorization: Bearer <token>`. None: no token is needed, on loopback only."""
    gateway: str | None = None
    """The workers' address. None: captures and live questions are refused with WORKERS_UNAVAILABLE."""
    gateway_token: str | None = field(default=None, repr=False)
    """Token that the service presents to the workers. Required if there is a gateway; the same on both sides."""
    held_row_bytes: int = 256 * MEBIBYTE
    """Bytes of decoded activation rows that are cached in memory."""
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        split_address(self.listen, "ACTSTORE_LISTEN")
        split_address(self.metrics_listen, "ACTSTORE_METRICS_LISTEN")
        if self.gateway is not None:
            split_address(self.gateway, "ACTSTORE_GATEWAY")
        if self.token is None and not is_loopback(self.listen):
            raise BadRequest(
                f"without a token the service listens on loopback only, not on {self.listen}: set ACTSTORE_TOKEN",
                field="ACTSTORE_LISTEN",
                value=self.listen,
                allowed="127.0.0.1, ::1 or localhost, or any address with a token",
            )
        for variable, token in (("ACTSTORE_TOKEN", self.token), ("ACTSTORE_GATEWAY_TOKEN", self.gateway_token)):
            if token is not None and not (token.isascii() and token.isprintable()):
                message = f"{variable} contains a character that cannot be sent in a header, such as a line break"
                raise BadRequest(message, field=variable, allowed="printable ASCII characters")
        check_least(self, 0, "held_row_bytes")
        if self.gateway is not None and self.gateway_token is None:
            raise BadRequest(
                "a gateway needs ACTSTORE_GATEWAY_TOKEN", field="ACTSTORE_GATEWAY_TOKEN", allowed="the workers' token"
            )


def split_address(address: str, field: str) -> tuple[str, int]:
    """Host (an IPv6 address without its brackets) and port of `host:port`."""
    found = _ADDRESS.fullmatch(address)
    if not found or int(found[2]) >= 2**16:
        raise BadRequest(f"{field} {address!r} is not host:port", field=field, value=address, allowed="host:port")
    return found[1].strip("[]"), int(found[2])


def cannot_listen(address: str, field: str, error: Exception) -> BadRequest:
    return BadRequest(
        f"cannot listen on {address}: {error}", field=field, value=address, allowed="a free address of this machine"
    )


def is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
