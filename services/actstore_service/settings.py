"""The settings of one service process. Only `__main__` reads the environment.

A setting is a field with a text: `actstore_storage.settings` reads it, from the variable and the key of its name.
"""

import ipaddress
import re
from dataclasses import dataclass, field, fields
from pathlib import Path

from actstore_api.logs.lines import LogForm
from actstore_storage.errors import BadRequest
from actstore_storage.settings.checks import check_least, check_positive
from actstore_storage.settings.reading import Beside

MEBIBYTE = 1 << 20
# As access.principals.Role has them; settings stand below the rooms that they configure.
ROLES = ("reader", "writer", "admin")
# 0 is a choice: to stop at once.
_MAY_BE_ZERO = ("drain_seconds", "grace_seconds")
# Their variables may be set for this process too, and their keys are in the same file.
SETTINGS_BESIDE = Beside(("actstore_worker.settings:WorkerSettings",), ("actstore._variables:ClientVariables",))
# A host name, an IPv4 address or an IPv6 address in brackets, and a port.
_ADDRESS = re.compile(r"([\w.-]+|\[[\da-fA-F:.]+\]):(\d{1,5})", re.ASCII)


@dataclass(frozen=True)
class Limits:
    """Limits on what one service process accepts and holds."""

    catalog_threads: int = 16
    """Calls about what is there (runs, models, SAEs) that run at the same time. Further ones wait."""
    read_threads: int = 32
    """Questions about stored data with a single answer that run at the same time. Further ones wait."""
    slow_threads: int = 2
    """Of these, questions that read many rows or compute for long (exact norms, growth, searches of features) and run
    at the same time. Further ones wait in turns of the callers, in no place of `read_threads`."""
    stream_threads: int = 16
    """Threads that read stored rows for all open streams. A stream whose client does not read occupies none."""
    waiting_calls: int = 128
    """Calls of one class that wait for a thread, for the catalog, for questions and for slow questions each. Further
    ones are refused with BUSY."""
    open_streams: int = 128
    """Open streams of stored rows. Further ones are refused with BUSY."""
    parsing_threads: int = 4
    """Threads that check questions to the workers before they are forwarded. Further ones wait; what the workers do
    takes no thread."""
    forwarded_calls: int = 128
    """Open calls to the workers (captures, watches, sweeps, live questions). Further ones are refused with BUSY."""
    standard_calls: int = 512
    """Open calls of gRPC's own services, health and reflection. Further ones are refused with BUSY."""
    principal_calls: int = 160
    """Calls of one class that one caller may have open. Further ones are refused with BUSY."""
    principal_streams: int = 128
    """Streams of stored rows that one caller may have open. Further ones are refused with BUSY."""
    principal_forwarded_calls: int = 64
    """Calls to the workers (captures, watches, sweeps, live questions) that one caller may have open. Further ones are
    refused with BUSY. It is less than `forwarded_calls`, so that no caller keeps all others out."""
    principal_bytes_a_minute: int | None = None
    """Bytes of questions and answers of one caller a minute, at this process. Beyond it, streams become slow, and other
    calls are refused with BUSY, or with LIMIT_EXCEEDED if the caller would have to wait for long. None: any number."""
    principals: int = 10_000
    """Callers whose bytes are remembered. Beyond it, one whose quota is full again is forgotten, or else the one that
    used it longest ago."""
    recheck_seconds: float = 30.0
    """How long a stream, or a call to the workers, may outlive its caller's token or permission: after each such time
    it is looked again whether the caller is still known and may still do what it does."""
    retry_seconds: float = 1.0
    """About how long a client that was refused with BUSY is told to wait before it tries again."""
    connections: int = 4096
    """Connections that are open at the same time. Further ones are closed at once."""
    concurrent_streams: int = 256
    """HTTP/2 streams of one connection. Further ones wait in the client."""
    unaccepted_calls: int = 16_384
    """Calls that arrived and that the service has not looked at yet. gRPC itself refuses further ones, without a reason
    and uncounted, so this is to be more than clients send at once."""
    unread_calls: int = 2048
    """Calls whose message has not arrived. If there are more, the one that has kept the service waiting for the longest
    is ended with MESSAGE_LATE."""
    message_seconds: float = 10.0
    """How long a call's message may take after its headers, before the call is ended with MESSAGE_LATE."""
    stalled_seconds: float = 60.0
    """How long the client of a stream may take no message, before the stream is ended with STREAM_STALLED."""
    waiting_bytes: int = 256 * MEBIBYTE
    """Messages that are ready and wait for their clients, all together. As it fills, messages of rows become smaller;
    if there is more, large answers are refused with BUSY."""
    untaken_streams: int = 1024
    """Streams that were ended with STREAM_STALLED and whose clients still do not read, but keep their connection. If
    there are more, new streams are refused with BUSY."""
    keepalive_seconds: float = 60.0
    """Time without news from a connection after which the service asks whether its peer is still there."""
    keepalive_timeout_seconds: float = 20.0
    """How long a peer may take to answer that, before its connection and its calls are ended."""
    handshake_seconds: float = 20.0
    """How long a new connection may take to say that it speaks TLS, and HTTP/2, before it is ended."""
    ping_seconds: float = 20.0
    """Shortest pause between two such questions by a client; one that asks more often is disconnected."""
    request_bytes: int = 1 * MEBIBYTE
    """Largest request message. Prompts and specifications are small."""
    response_bytes: int = 64 * MEBIBYTE
    """Largest message of an answer, including answers from the workers. A larger one ends the call as an error."""
    batch_bytes: int = 3 * MEBIBYTE
    """Rows in one message of a stream, below the 4 MiB that gRPC clients accept by default. Further rows are in the
    next message."""
    drain_seconds: float = 5.0
    """How long a service that got SIGTERM still accepts calls, while it already says that it is not ready."""
    grace_seconds: float = 20.0
    """Time that running calls have to finish after that."""
    reconnect_seconds: float = 1.0
    """Longest pause between two attempts to reach workers that do not answer."""
    memory_seconds: float = 5.0
    """Seconds between two looks whether the process should give memory back to the machine."""
    memory_growth_bytes: int = 16 * MEBIBYTE
    """Bytes that the process may keep unused, beside what it kept when it last gave memory back. Beyond them, it gives
    memory back again."""
    information_seconds: float = 2.0
    """How long the workers may take to say what they are. Beyond it they count as unavailable for that call."""
    alive_seconds: float = 5.0
    """How long the process may be busy with one thing before `/healthz` says that it hangs."""
    totals_seconds: float = 1.0
    """How long a scrape of /metrics waits for the workers, to see whether they answer."""
    store_quiet_seconds: float = 15.0
    """Time without a request to the store after which the service makes one, to see whether the store answers."""

    def __post_init__(self) -> None:
        check_least(self, 0, *_MAY_BE_ZERO)
        check_positive(self, *(one.name for one in fields(self) if one.name not in _MAY_BE_ZERO))


@dataclass(frozen=True)
class Settings:
    """Configuration of one service process. Addresses are host:port; port 0 takes a free port."""

    listen: str = "127.0.0.1:7433"
    """Address on which clients connect. With anonymous callers it must be a loopback address."""
    metrics_listen: str = "127.0.0.1:9433"
    """Address on which Prometheus scrapes `/metrics`."""
    token: str | None = field(default=None, repr=False)
    """A token that clients send as `authorization: Bearer <token>`. Its callers have every role on every run. It is the
    simplest form of access, and counts beside the access file."""
    access_file: Path | None = None
    """File of those who may call: hashes of tokens, client certificates and the issuer of signed tokens, with roles and
    prefixes of runs. It is read again when it changes."""
    anonymous: tuple[str, ...] = ()
    """Roles of callers without credentials: `reader`, `writer`, `admin`. On loopback only. None: such callers are
    refused."""
    tls_certificate: Path | None = None
    """File of the certificate that the service shows, with its chain, in PEM. It is read again before each handshake.
    None: connections are not encrypted."""
    tls_key: Path | None = None
    """File of the key of that certificate, in PEM."""
    mutual_tls_listen: str | None = None
    """Address on which clients connect that show a certificate of their own. None: no such port."""
    client_authorities: Path | None = None
    """File of the authorities that sign certificates of clients, in PEM, for the port with mutual TLS."""
    open_health: bool = False
    """Whether gRPC's health service answers without a token. Probes over HTTP need none in any case."""
    gateway: str | None = None
    """The workers' address. None: captures and live questions are refused with WORKERS_UNAVAILABLE."""
    gateway_token: str | None = field(default=None, repr=False)
    """Token that the service presents to the workers; the same on both sides. A gateway needs it, or its file."""
    gateway_token_file: Path | None = None
    """File of that token, instead of the token itself. It is read again when it changes. The first line is presented;
    workers that read the same file accept the second line, too."""
    log_form: LogForm = LogForm.JSON
    """How log lines are written on standard error: json, one object a line, or text, for people."""
    held_row_bytes: int = 256 * MEBIBYTE
    """Bytes of decoded rows that are cached in memory: activations, tokens, and the text around examples."""
    held_run_bytes: int = 64 * MEBIBYTE
    """Bytes of opened runs that are kept in memory for the next questions: their records, statistics and sketches, and
    answers to questions about them. With 0 each question opens its run anew."""
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
        check_least(self, 0, "held_row_bytes", "held_run_bytes")
        self._check_gateway_token()
        self._check_callers()

    def _check_encryption(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            message = "ACTSTORE_TLS_CERTIFICATE and ACTSTORE_TLS_KEY belong together"
            raise BadRequest(message, field="ACTSTORE_TLS_KEY", allowed="both, or neither")
        if self.mutual_tls_listen is None:
            return
        split_address(self.mutual_tls_listen, "ACTSTORE_MUTUAL_TLS_LISTEN")
        if None in (self.tls_certificate, self.client_authorities, self.access_file):
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

    def _check_callers(self) -> None:
        """Nobody is let in by an oversight."""
        wrong = ", ".join(sorted(set(self.anonymous) - set(ROLES)))
        if wrong:
            message = f"ACTSTORE_ANONYMOUS names {wrong}, which is no role"
            raise BadRequest(message, field="ACTSTORE_ANONYMOUS", value=wrong, allowed=ROLES)
        if self.token is None and self.access_file is None and not self.anonymous:
            raise BadRequest(
                "nobody may call this service: set ACTSTORE_ACCESS_FILE or ACTSTORE_TOKEN",
                field="ACTSTORE_ACCESS_FILE",
                allowed="an access file or a token; or ACTSTORE_ANONYMOUS=reader for callers without one, on loopback",
            )
        if self.anonymous and not is_loopback(self.listen):
            raise BadRequest(
                f"anonymous callers are served on loopback only, not on {self.listen}: leave out ACTSTORE_ANONYMOUS",
                field="ACTSTORE_LISTEN",
                value=self.listen,
                allowed="127.0.0.1, ::1 or localhost, or any address without anonymous callers",
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
