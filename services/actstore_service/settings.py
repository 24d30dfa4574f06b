"""The settings of one service process. Only `__main__` reads the environment."""

import ipaddress
import re
from dataclasses import dataclass, field

from actstore_storage.errors import BadRequest

MEBIBYTE = 1 << 20
# As access.principals.Role has them; settings stand below the rooms that they configure.
ROLES = ("reader", "writer", "admin")
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


@dataclass(frozen=True)
class Settings:
    """Configuration of one service process. Addresses are host:port; port 0 takes a free port."""

    listen: str = "127.0.0.1:7433"
    """Address on which clients connect. With anonymous callers it must be a loopback address."""
    metrics_listen: str = "127.0.0.1:9433"
    """Address on which Prometheus scrapes `/metrics`."""
    token: str | None = field(default=None, repr=False)
    """A token that clients send as `authorization: Bearer <token>`. Its callers have every role on every run. It is the
    simplest form of access, and counts beside `ACTSTORE_ACCESS_FILE`."""
    access_file: str | None = None
    """File of those who may call: hashes of tokens, client certificates and the issuer of signed tokens, with roles and
    prefixes of runs. It is read again when it changes."""
    anonymous: str = ""
    """Roles of callers without credentials, separated by commas: `reader`, `writer`, `admin`. Loopback only. Empty:
    such callers are refused."""
    tls_certificate: str | None = None
    """File of the certificate that the service shows, with its chain, in PEM. It is read again before each handshake.
    None: connections are not encrypted."""
    tls_key: str | None = None
    """File of the key of that certificate, in PEM."""
    mutual_tls_listen: str | None = None
    """Address on which clients connect that show a certificate of their own. None: no such port."""
    client_authorities: str | None = None
    """File of the authorities that sign certificates of clients, in PEM, for the port with mutual TLS."""
    gateway: str | None = None
    """The workers' address. None: captures and live questions are refused with WORKERS_UNAVAILABLE."""
    gateway_token: str | None = field(default=None, repr=False)
    """Token that the service presents to the workers; the same on both sides. A gateway needs it, or its file."""
    gateway_token_file: str | None = None
    """File of that token, instead of the token itself. It is read again when it changes: the first line is presented,
    and workers accept the second line, too."""
    held_row_bytes: int = 256 * MEBIBYTE
    """Bytes of decoded activation rows that are cached in memory."""
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        split_address(self.listen, "ACTSTORE_LISTEN")
        split_address(self.metrics_listen, "ACTSTORE_METRICS_LISTEN")
        if self.gateway is not None:
            split_address(self.gateway, "ACTSTORE_GATEWAY")
        self._check_encryption()
        for variable, token in (("ACTSTORE_TOKEN", self.token), ("ACTSTORE_GATEWAY_TOKEN", self.gateway_token)):
            if token is not None and not (token.isascii() and token.isprintable()):
                message = f"{variable} contains a character that cannot be sent in a header, such as a line break"
                raise BadRequest(message, field=variable, allowed="printable ASCII characters")
        if self.held_row_bytes < 0:
            raise BadRequest(
                f"ACTSTORE_HELD_ROW_BYTES is {self.held_row_bytes}",
                field="ACTSTORE_HELD_ROW_BYTES",
                value=self.held_row_bytes,
                allowed="0 or more",
            )
        self._check_gateway_token()
        self._check_callers()

    @property
    def anonymous_roles(self) -> tuple[str, ...]:
        """The roles of callers without credentials, one by one."""
        return tuple(word.strip() for word in self.anonymous.split(",") if word.strip())

    def _check_callers(self) -> None:
        """Nobody is let in by an oversight."""
        wrong = set(self.anonymous_roles) - set(ROLES)
        if wrong:
            message = f"ACTSTORE_ANONYMOUS names {', '.join(sorted(wrong))}, which is no role"
            raise BadRequest(message, field="ACTSTORE_ANONYMOUS", value=self.anonymous, allowed=", ".join(ROLES))
        if self.token is None and self.access_file is None and not self.anonymous_roles:
            raise BadRequest(
                "nobody may call this service: set ACTSTORE_ACCESS_FILE or ACTSTORE_TOKEN",
                field="ACTSTORE_ACCESS_FILE",
                allowed="an access file or a token; or ACTSTORE_ANONYMOUS=reader for callers without one, on loopback",
            )
        if self.anonymous_roles and not is_loopback(self.listen):
            raise BadRequest(
                f"anonymous callers are served on loopback only, not on {self.listen}: leave out ACTSTORE_ANONYMOUS",
                field="ACTSTORE_LISTEN",
                value=self.listen,
                allowed="127.0.0.1, ::1 or localhost, or any address without anonymous callers",
            )

    def _check_encryption(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            message = "ACTSTORE_TLS_CERTIFICATE and ACTSTORE_TLS_KEY belong together"
            raise BadRequest(message, field="ACTSTORE_TLS_KEY", allowed="both, or neither")
        needed = (self.tls_certificate, self.client_authorities, self.access_file)
        if self.mutual_tls_listen is None:
            return
        split_address(self.mutual_tls_listen, "ACTSTORE_MUTUAL_TLS_LISTEN")
        if None in needed:
            raise BadRequest(
                "a port with mutual TLS needs ACTSTORE_TLS_CERTIFICATE, ACTSTORE_CLIENT_AUTHORITIES and "
                "ACTSTORE_ACCESS_FILE, which says whose certificates they are",
                field="ACTSTORE_MUTUAL_TLS_LISTEN",
                value=self.mutual_tls_listen,
                allowed="all of these, or no such port",
            )

    def _check_gateway_token(self) -> None:
        given = [self.gateway_token, self.gateway_token_file]
        if self.gateway is not None and given.count(None) != 1:
            raise BadRequest(
                "a gateway needs ACTSTORE_GATEWAY_TOKEN_FILE or ACTSTORE_GATEWAY_TOKEN, and one of them only",
                field="ACTSTORE_GATEWAY_TOKEN",
                allowed="the workers' token",
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
