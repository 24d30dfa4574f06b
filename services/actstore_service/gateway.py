"""The service's connection to the workers: one channel, and calls forwarded with their deadline, cancellation and
errors.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn, TypeAlias

import grpc
from google.rpc import status_pb2

from actstore_api.codec import decode, encode, message_of
from actstore_api.levels import API_LEVEL, OLDEST_LEVEL, headers_of, level_needed, own_version
from actstore_api.logs.traces import carried
from actstore_api.records.information import GetWorkersInfo, GetWorkersInfoAnswer, WorkersInfo
from actstore_api.request_ids import HEADER
from actstore_api.verbs import VERBS
from actstore_service.calls.call import Call
from actstore_service.calls.failures import StatusGiven
from actstore_service.settings import Limits, is_loopback
from actstore_storage.errors import ActstoreError, BadRequest

LOG = logging.getLogger(__name__)
# The name of the Ray Serve application, by which its proxy routes calls.
APPLICATION = "actstore"
# Tells the workers whose call it is. They believe it, because only the service has their token.
PRINCIPAL = "actstore-principal"
# Read here and not by grpc_status, which refuses a status whose message differs from the details in any way.
STATUS_KEY = "grpc-status-details-bin"
# Workers that are older than the question answer, too.
_ANSWERS = frozenset({grpc.StatusCode.OK, grpc.StatusCode.UNIMPLEMENTED})
# Caused by the caller, so they say nothing about the workers.
_CALLERS = frozenset({grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED})


Metadata: TypeAlias = tuple[tuple[str, str], ...]


class Gateway:
    """Forwards calls. Without an address, or while nothing answers there, every call fails with WORKERS_UNAVAILABLE.

    It belongs to the event loop in which it is made.
    """

    def __init__(self, address: str | None, token: Callable[[], str | None], limits: Limits) -> None:
        options = [
            # A proxy of the environment is never used for this machine itself.
            ("grpc.enable_http_proxy", int(address is None or not is_loopback(address))),
            ("grpc.max_receive_message_length", limits.response_bytes),
            ("grpc.max_send_message_length", limits.request_bytes),
            # Otherwise workers that come back are found only after gRPC's own two minutes.
            ("grpc.max_reconnect_backoff_ms", int(1000 * limits.reconnect_seconds)),
        ]
        self._loop = asyncio.get_running_loop()
        self._channel = grpc.aio.insecure_channel(address, options) if address else None
        self._token = token
        self._known: WorkersInfo | None = None
        self._limits = limits
        self._were_up: bool | None = None

    @property
    def configured(self) -> bool:
        return self._channel is not None

    async def workers(self, call: Call) -> WorkersInfo:
        """What the workers are. Errors: WORKERS_UNAVAILABLE, WORKERS_TOO_OLD."""
        left = call.seconds_left()
        most = self._limits.information_seconds
        seconds = most if left is None else min(left, most)
        try:
            said = await self._information(seconds, self._metadata_of(call))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise _too_old("a version that does not say what it is", API_LEVEL) from None
            _hand_on(error)
        return decode(GetWorkersInfoAnswer, message_of(GetWorkersInfoAnswer).FromString(said)).info

    async def check_level(self, question: object, call: Call) -> None:
        """Refuses a question that is newer than the workers, which would ignore what they do not know of it. They are
        asked for their level where the question needs more than the last answer said: they may have been upgraded.
        """
        needed = level_needed(question)
        if needed <= OLDEST_LEVEL or (self._known is not None and self._known.api_level >= needed):
            return
        self._known = await self.workers(call)
        if self._known.api_level < needed:
            raise _too_old(f"version {self._known.version}, with API level {self._known.api_level}", needed)

    async def answer(self, path: str, request: bytes, call: Call) -> bytes:
        """Forwards a call with one answer message, as bytes. `path` is gRPC's name of the method."""
        method = self._open().unary_unary(path)
        try:
            found: bytes = await method(request, timeout=call.seconds_left(), metadata=self._metadata_of(call))
        except grpc.aio.AioRpcError as error:
            _hand_on(error)
        return found

    async def stream(self, path: str, request: bytes, call: Call) -> AsyncIterator[bytes]:
        """Forwards a call with a stream of messages, as bytes. It is cancelled if nobody reads the stream any more."""
        method = self._open().unary_stream(path)
        forwarded = method(request, timeout=call.seconds_left(), metadata=self._metadata_of(call))
        try:
            async for message in forwarded:
                yield message
        except grpc.aio.AioRpcError as error:
            _hand_on(error)
        finally:
            forwarded.cancel()

    def workers_up(self) -> bool:
        """Asks the workers, for a thread other than the loop's. Says so in the log when the answer changes."""
        if self._channel is None:
            return False
        code = self._code()
        up = code in _ANSWERS
        if up != self._were_up:
            LOG.log(logging.INFO if up else logging.WARNING, "the workers %s: %s", "answer" if up else "are away", code)
        self._were_up = up
        return up

    def _code(self) -> grpc.StatusCode:
        try:
            asked = self._information(self._limits.totals_seconds, self._metadata())
            asyncio.run_coroutine_threadsafe(asked, self._loop).result()
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    async def _information(self, seconds: float, metadata: Metadata) -> bytes:
        method = self._open().unary_unary(VERBS["GetWorkersInfo"].path)
        request = encode(GetWorkersInfo()).SerializeToString()
        answer: bytes = await method(request, timeout=seconds, metadata=metadata)
        return answer

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()

    def _metadata(self) -> Metadata:
        """The token is asked for at each call, because its file may have changed."""
        return (("application", APPLICATION), ("authorization", f"Bearer {self._token()}"), *headers_of("service"))

    def _metadata_of(self, call: Call) -> Metadata:
        return (*self._metadata(), *(carried() | {HEADER: call.request_id}).items(), (PRINCIPAL, call.name))

    def _open(self) -> Any:
        if self._channel is None:
            raise _unavailable("this service was started without workers (ACTSTORE_GATEWAY)")
        return self._channel


def _hand_on(call: grpc.aio.AioRpcError) -> NoReturn:
    """Raises the error of the workers' status. Only reasons of our table pass unchanged: other statuses come from Ray
    Serve or from the network, and their codes would mislead (NOT_FOUND: the application is not deployed).
    """
    code, details = call.code(), call.details()
    written = dict(call.trailing_metadata() or ()).get(STATUS_KEY)
    if written is not None and code is not grpc.StatusCode.UNAUTHENTICATED:
        raise StatusGiven(status_pb2.Status.FromString(written))
    if code in _CALLERS:
        raise StatusGiven(status_pb2.Status(code=code.value[0], message=details))
    # What a fault says of itself may have what a caller sent, such as a prompt; that nobody answers does not.
    LOG.error("the workers' gateway answered %s: %s", code, details if code is grpc.StatusCode.UNAVAILABLE else "")
    if code is grpc.StatusCode.UNAUTHENTICATED:
        raise _unavailable("the workers refuse this service's token: ACTSTORE_GATEWAY_TOKEN must be the same for both")
    if code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL):
        raise ActstoreError("the workers failed; the service's log has the details")
    raise _unavailable("the workers do not answer at the moment; try again later")


def _too_old(what: str, needed: int) -> ActstoreError:
    return BadRequest(
        f"the workers have {what}; the service has version {own_version()}, and this call needs API level {needed}",
        reason="WORKERS_TOO_OLD",
        field="workers",
        value=what,
        allowed=f"API level {needed} or higher",
    )


def _unavailable(message: str) -> ActstoreError:
    return ActstoreError(message, reason="WORKERS_UNAVAILABLE")
