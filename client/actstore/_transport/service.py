"""Asking a service: the one file of the client that touches gRPC. The contract says what, and with which deadline."""

import ipaddress
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any
from urllib.request import getproxies
from uuid import uuid4

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from actstore._errors import ActstoreError, Denied, Fault, error_of, refused
from actstore._transport.access import Connection, Retries
from actstore._transport.base import Backend, Rows
from actstore._transport.credentials import NO_STAMP, Credentials, Stamp
from actstore._transport.under_way import QUESTION, cancellable, cancelled
from actstore_api import request_ids
from actstore_api.codec import decode, encode, message_of
from actstore_api.levels import API_LEVEL, OLDEST_LEVEL, headers_of, level_needed, own_version
from actstore_api.logs.traces import asked
from actstore_api.reasons import from_status
from actstore_api.records.capture import GetCaptureTotals
from actstore_api.records.information import GetServiceInfo, ServiceInfo
from actstore_api.records.terms import Failure
from actstore_api.rows import decode_rows
from actstore_api.shape import Unreadable
from actstore_api.verbs import VERBS, Verb, verb_of

CHECK_SECONDS = 10.0
# What a status means that did not come from actstore itself: a proxy's, or gRPC's own.
FOREIGN = {
    grpc.StatusCode.UNAVAILABLE: "SERVICE_UNAVAILABLE",
    grpc.StatusCode.DEADLINE_EXCEEDED: "SERVICE_UNAVAILABLE",
    grpc.StatusCode.UNAUTHENTICATED: "UNAUTHENTICATED",
    grpc.StatusCode.PERMISSION_DENIED: "PERMISSION_DENIED",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "LIMIT_EXCEEDED",
    grpc.StatusCode.CANCELLED: "CANCELLED",
    grpc.StatusCode.UNIMPLEMENTED: "SERVICE_UNAVAILABLE",
}
# A connection that ended within an answer, as gRPC or a proxy tells it under the statuses INTERNAL and UNKNOWN.
_CUT = re.compile("RST_STREAM|Stream removed")

# The next step where gRPC's own words tell what is wrong with an address.
_CONNECTING = (
    (re.compile("WRONG_VERSION_NUMBER"), "what listens there does not speak TLS: pass tls=False, or another address"),
    (
        re.compile("CERTIFICATE_VERIFY_FAILED"),
        "its certificate is not trusted: pass root_certificates= with the certificate of the authority that signed it",
    ),
    (re.compile("Socket closed|reset by peer"), "if the service is behind TLS, pass tls=True; else check the address"),
    (re.compile("HTTP/2|http1"), "what listens there is no gRPC service: check the port"),
    (re.compile("UNIMPLEMENTED"), "what listens there is no actstore service, or an older one: check the port"),
)


# gRPC's shortest is 10.
KEEPALIVE_TIMEOUT_SECONDS = 20.0
# A gRPC server that stops ends the calls that it has not looked at yet with CANCELLED, whatever its grace.
_BUSY, _AWAY = ("RESOURCE_EXHAUSTED",), ("UNAVAILABLE", "CANCELLED")
# A service is rolled out faster than gRPC's own 30 seconds between two looks at a name.
RESOLVE_SECONDS = 5.0


class GrpcBackend(Backend):
    def __init__(
        self, address: str, credentials: Credentials | str | None, tls: bool | None, how: Connection | None = None
    ) -> None:
        self.address = address
        self._credentials = credentials if isinstance(credentials, Credentials) else Credentials(credentials)
        how = how or Connection()
        self.retries = how.retries
        self._timeout = how.timeout
        encrypted = is_encrypted(address, bool(self._credentials), tls, how)
        self._channels = _Channels(address, encrypted, how)
        self._info: ServiceInfo | None = None

    def close(self) -> None:
        self._channels.close()

    @contextmanager
    def _headers(self, path: str) -> Iterator[tuple[tuple[str, str], ...]]:
        """The headers of one call, which runs within this context. Its request has one id in all tries, which errors
        of the call have, too.
        """
        token, request = self._credentials.token(), uuid4().hex
        own = {request_ids.HEADER: request, **({"authorization": f"Bearer {token}"} if token else {})}
        with asked(path, request) as trace:
            yield (*headers_of("python"), *own.items(), *trace.items())

    def check_workers(self) -> None:
        self._ask(GetCaptureTotals(), CHECK_SECONDS)

    def ask(self, question: object) -> Any:
        return self._ask(question, self._timeout.answer_seconds or verb_of(question).deadline_seconds)

    def rows(self, question: object) -> Rows:
        with _readable(self.address):
            return decode_rows(self._listen(question))

    def listen(self, question: object) -> Iterator[Any]:
        for message in self._listen(question):
            yield self._answer(verb_of(question), message)

    def service_info(self) -> ServiceInfo:
        verb = VERBS["GetServiceInfo"]
        with _in_our_words(self.address), self._channels.used() as channel:
            try:
                said = self._sent(channel, verb.path, _request(GetServiceInfo()), CHECK_SECONDS)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    raise _too_old(self.address, "a version that does not say what it is", API_LEVEL) from None
                raise
        self._info = self._answer(verb, said).info
        return self._info

    def _check_level(self, question: object) -> None:
        """Refuses a question that is newer than the service, which would ignore what it does not know of it. The
        service is asked for its level once, and only if the question needs more than every service has.
        """
        needed = level_needed(question)
        if needed <= OLDEST_LEVEL or (self._info is not None and self._info.api_level >= needed):
            return
        found = self.service_info()  # also where it was older before: it may have been upgraded
        if found.api_level < needed:
            raise _too_old(self.address, f"version {found.version}, with API level {found.api_level}", needed)

    def _ask(self, question: object, seconds: float | None) -> Any:
        self._check_level(question)
        verb, request = verb_of(question), _request(question)
        with _in_our_words(self.address), self._channels.used() as channel:
            answer = self._sent(channel, verb.path, request, seconds)
        return self._answer(verb, answer)

    def _sent(self, channel: grpc.Channel, path: str, request: bytes, seconds: float | None) -> bytes:
        """The answer to a request. gRPC needs another thread for a call that can be cancelled, which doubles the time
        of a small question. Therefore only questions that somebody can cancel are sent in this way.
        """
        answer: bytes
        with self._headers(path) as metadata:
            send = channel.unary_unary(path)
            if QUESTION.get() is None:
                answer = send(request, timeout=seconds, metadata=metadata)
                return answer
            call = send.future(request, timeout=seconds, metadata=metadata)
            with cancellable(call):
                answer = call.result()
        return answer

    def _answer(self, verb: Verb, message: bytes) -> Any:
        with _readable(self.address):
            return decode(verb.answer, message_of(verb.answer).FromString(message))

    def _listen(self, question: object) -> Iterator[bytes]:
        """The messages of a stream, as bytes. A stream has no deadline: a capture may take days."""
        self._check_level(question)
        request = _request(question)
        with _in_our_words(self.address), self._channels.used() as channel:
            path = verb_of(question).path
            with self._headers(path) as metadata:
                stream = channel.unary_stream(path)(request, metadata=metadata)
                with cancellable(stream):
                    yield from stream


def _too_old(address: str, what: str, needed: int) -> ActstoreError:
    message = f"the service at {address} has {what}; this client has version {own_version()}, and this call needs API "
    return refused(f"{message}level {needed}", "service", what, f"API level {needed} or higher", "SERVICE_TOO_OLD")


def _request(question: object) -> bytes:
    """As it is sent. Errors: BadRequest for a word that the contract does not have."""
    try:
        request: bytes = encode(question).SerializeToString()
    except Unreadable as error:
        raise refused(str(error), error.field, error.value, error.allowed) from None
    return request


@contextmanager
def _readable(address: str) -> Iterator[None]:
    """An answer that the contract does not allow is a fault of whoever sent it."""
    try:
        yield
    except Unreadable as error:
        raise Fault(f"the service at {address} answered what this client cannot read: {error}") from None


class _Channels:
    """The channel in use. A channel keeps the client's certificate that it began with, so another one takes its place
    when the files change. The old one is closed once its last question is answered.
    """

    def __init__(self, address: str, encrypted: bool, how: Connection) -> None:
        self._address, self._encrypted, self._how = address, encrypted, how
        self._lock = Lock()
        self._stamp = self._stamp_now()
        self._channel = self._opened()
        self._questions: Counter[grpc.Channel] = Counter()

    @contextmanager
    def used(self) -> Iterator[grpc.Channel]:
        """The channel for one question."""
        with self._lock:
            self._follow_files()
            channel = self._channel
            self._questions[channel] += 1
        try:
            yield channel
        finally:
            with self._lock:
                self._questions[channel] -= 1
                self._close_unused()

    def close(self) -> None:
        with self._lock:
            for channel in {self._channel, *self._questions}:
                channel.close()

    def _follow_files(self) -> None:
        """Files that cannot be read, or do not belong together, are being replaced: the channel stays in use."""
        with suppress(ActstoreError):
            stamp = self._stamp_now()
            if stamp != self._stamp:
                self._channel, self._stamp = self._opened(), stamp
                self._close_unused()

    def _close_unused(self) -> None:
        for channel in [channel for channel, count in self._questions.items() if not count]:
            del self._questions[channel]
            if channel is not self._channel:
                channel.close()

    def _stamp_now(self) -> Stamp:
        return NO_STAMP if self._how.certificate is None else self._how.certificate.stamp()

    def _opened(self) -> grpc.Channel:
        found = options(self._address, self._how)
        if not self._encrypted:
            return grpc.insecure_channel(self._address, found)
        chain, key = (None, None) if self._how.certificate is None else self._how.certificate.read()
        return grpc.secure_channel(
            self._address, grpc.ssl_channel_credentials(self._how.root_certificates, key, chain), found
        )


def is_encrypted(address: str, token: bool, tls: bool | None, how: Connection) -> bool:
    """Whether to use TLS: yes if `tls` says so, or if certificates or the name in one are given.

    Errors: Denied for a token that would travel in the clear to another machine, BadRequest for certificates without
    TLS.
    """
    given = {
        "root_certificates": how.root_certificates,
        "client_certificate": how.certificate,
        "authority": how.authority,
    }
    certificates = [name for name, value in given.items() if value is not None]
    if certificates and tls is False:
        message = f"{certificates[0]} is for TLS, which tls=False turns off"
        raise refused(message, certificates[0], "given", f"tls=True, or no {certificates[0]}")
    encrypted = bool(certificates) if tls is None else tls
    if token and tls is None and not encrypted and not _is_loopback(address):
        raise Denied(
            f"the token would travel to {address} in the clear",
            reason="UNAUTHENTICATED",
            field="tls",
            value="None",
            allowed="True, or False if the network itself is trusted",
            next_step="pass tls=True for a service behind TLS, or tls=False to send the token in the clear",
        )
    return encrypted


def options(address: str, how: Connection) -> list[tuple[str, int | str]]:
    """The options of a gRPC channel."""
    reconnect = int(1000 * how.timeout.reconnect_seconds)
    return [
        # A proxy that the environment names is never for this machine itself.
        ("grpc.enable_http_proxy", int(not _is_loopback(address))),
        # This is how long one attempt to connect may take.
        ("grpc.min_reconnect_backoff_ms", int(1000 * how.timeout.connect_seconds)),
        # gRPC's own grows to two minutes, after which a service that was away may long be back.
        ("grpc.initial_reconnect_backoff_ms", reconnect),
        ("grpc.max_reconnect_backoff_ms", reconnect),
        ("grpc.max_receive_message_length", how.max_message_bytes),
        ("grpc.keepalive_time_ms", int(1000 * how.timeout.keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", int(1000 * KEEPALIVE_TIMEOUT_SECONDS)),
        # gRPC waits for this one, however short the one before it is: a minute, where none is set.
        ("grpc.http2.ping_timeout_ms", int(1000 * KEEPALIVE_TIMEOUT_SECONDS)),
        ("grpc.dns_min_time_between_resolutions_ms", int(1000 * RESOLVE_SECONDS)),
        ("grpc.service_config", json.dumps(_service_config(how.retries))),
        *([("grpc.default_authority", how.authority)] if how.authority else []),
    ]


def _service_config(retries: Retries) -> dict[str, Any]:
    """Questions go to all addresses of a name by turns, and to those that remain when one is gone."""
    return {"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": _retried(retries)}


def _retried(retries: Retries) -> list[dict[str, Any]]:
    """The retry policies. gRPC retries by itself, and a stream only until its first message.

    RESOURCE_EXHAUSTED is retried for every verb: BUSY has it, which a service says before it begins, with the time to
    wait. Where the question is too large, the service forbids to try again.
    """
    if retries.attempts == 1:
        return []
    policy = {
        "maxAttempts": retries.attempts,
        "initialBackoff": f"{retries.initial_backoff_seconds:.3f}s",
        "maxBackoff": f"{retries.maximum_backoff_seconds:.3f}s",
        "backoffMultiplier": retries.backoff_multiplier,
    }
    return [
        {"name": _named(repeatable=True), "retryPolicy": policy | {"retryableStatusCodes": [*_BUSY, *_AWAY]}},
        {"name": _named(repeatable=False), "retryPolicy": policy | {"retryableStatusCodes": [*_BUSY]}},
    ]


def _named(*, repeatable: bool) -> list[dict[str, str]]:
    """The verbs that are repeatable, or those that are not, in gRPC's words."""
    paths = [verb.path.rpartition("/") for verb in VERBS.values() if verb.repeatable is repeatable]
    return [{"service": service.removeprefix("/"), "method": method} for service, _, method in paths]


def _is_loopback(address: str) -> bool:
    """Whether every address of `host:port`, or of `ipv4:host:port,host:port`, is this machine."""
    return all(map(_is_own_host, re.sub("^ipv[46]:", "", address).split(",")))


def _is_own_host(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def _in_our_words(address: str) -> Iterator[None]:
    try:
        yield
    except grpc.FutureCancelledError:
        raise cancelled() from None
    except grpc.RpcError as error:
        found = _error(error, address)
        found.request_id, found.retry_seconds = _request_id(error), _retry_seconds(error)
        raise found from None
    except ValueError as error:  # gRPC's own, for a channel that is closed
        if "closed" not in str(error):
            raise
        raise refused(
            f"this lab of {address} is closed", "lab", "closed", "a lab that is open: connect again"
        ) from None


def _error(error: Any, address: str) -> ActstoreError:
    status = rpc_status.from_call(error)
    failure = from_status(status) if status is not None else None
    if failure is None:
        said = f"{error.code().name}: {error.details()}"
        reason = FOREIGN.get(error.code()) or ("SERVICE_UNAVAILABLE" if _CUT.search(said) else "INTERNAL")
        message = f"the service at {address} gave no answer of its own ({said})"
        found = error_of(Failure(reason, message, {"field": "address", "value": address}))
        if reason == "SERVICE_UNAVAILABLE":
            found.next_step = _next_step(said, address) or found.next_step
        return found
    return error_of(failure)


def _request_id(error: Any) -> str | None:
    """From the trailers, which all answers of a service have; a call that reached none has no id."""
    sent = dict(error.trailing_metadata() or ()).get(request_ids.HEADER)
    return sent if isinstance(sent, str) else None


def _retry_seconds(error: Any) -> float | None:
    status, retry = rpc_status.from_call(error), error_details_pb2.RetryInfo()
    if status is None or not any(packed.Unpack(retry) for packed in status.details):
        return None
    seconds: float = retry.retry_delay.ToMilliseconds() / 1000
    return seconds


def _next_step(said: str, address: str) -> str:
    for pattern, step in _CONNECTING:
        if pattern.search(said):
            return step
    if getproxies() and not _is_loopback(address):
        return "check the address; the environment names a proxy: add the host to no_proxy if it needs none"
    return ""
