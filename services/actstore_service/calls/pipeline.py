"""The steps of every call, in their order. gRPC hands over a call as soon as its headers are here.

All methods are registered as if clients sent streams of bytes, whatever the contract says: this is how gRPC's server
for asyncio starts a call before it has a message, and leaves parsing to us. Clients cannot tell the difference.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import code_pb2, status_pb2

from actstore_api.levels import TooOldError, check_caller
from actstore_api.metrics import UNKNOWN_METHOD
from actstore_api.records.terms import Failure
from actstore_api.request_ids import HEADER
from actstore_service.access import Access
from actstore_service.calls.access_log import logged, traced
from actstore_service.calls.call import Call, call_of
from actstore_service.calls.classes import CallClass
from actstore_service.calls.failures import StatusGiven, abort, bad_request, ended_by_caller, refusal
from actstore_service.calls.rechecks import Rechecks
from actstore_service.settings import Limits

# Entered when a call begins and left when its code is known.
Counted = Callable[[Call], AbstractContextManager[None]]


@dataclass(frozen=True)
class Method:
    """One method: its class of calls, and what answers a call once its caller is known. An open one needs no token.

    The answer is a message, or None from a method that streams and has sent its messages itself.
    """

    path: str
    kind: CallClass
    answer: Callable[[Call], Awaitable[bytes | None]]
    streams: bool
    is_open: bool = False

    @property
    def lasts(self) -> bool:
        """Whether a call may last long."""
        return self.streams or self.kind is CallClass.FORWARDED


class Pipeline(grpc.GenericRpcHandler):
    """The handler of all methods."""

    def __init__(self, access: Access, counted: Counted, methods: Mapping[str, Method], limits: Limits) -> None:
        self._access, self._counted, self._retry_seconds = access, counted, limits.retry_seconds
        self._rechecks = Rechecks(access, limits.recheck_seconds)
        self._handlers = {path: self._handler(method) for path, method in methods.items()}
        self._unknown = self._handler(Method(UNKNOWN_METHOD, CallClass.STANDARD, _unknown, streams=True))

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return self._handlers.get(handler_call_details.method, self._unknown)

    def _handler(self, method: Method) -> grpc.RpcMethodHandler:
        async def handle(_: Any, context: Any) -> bytes | None:
            return await self._handle(call_of(method.path, method.kind, context), method)

        # A single answer travels together with the call's status, which saves a fifth of a small answer's time.
        if method.streams:
            return grpc.stream_stream_rpc_method_handler(handle)
        return grpc.stream_unary_rpc_method_handler(handle)

    async def _handle(self, call: Call, method: Method) -> bytes | None:
        call.context.set_trailing_metadata(((HEADER, call.request_id),))
        with logged(call), self._counted(call), traced(call):
            try:
                found = await self._answer(call, method)
                if found is not None:
                    call.sent(found)
                return found
            except asyncio.CancelledError:
                ended_by_caller(call)
                raise
            except Exception as error:  # noqa: BLE001  each one is told to the caller
                status = refusal(call, error, self._retry_seconds, lambda failure: self._seen(call, failure))
            finally:
                call.over.set()
        # Counted before it is sent: a client that does not read keeps its call open.
        return await abort(call, status)

    def _seen(self, call: Call, failure: Failure) -> Failure:
        """The error without what the caller may not see."""
        return failure if call.principal is None else self._access.visible_failure(call.principal, failure)

    async def _answer(self, call: Call, method: Method) -> bytes | None:
        """A caller is known by the headers and its certificate alone: a stranger's message is never read."""
        if not method.is_open:
            call.principal = self._access.identify(call.headers, call.context.auth_context())
            _check_level(call)
        if method.is_open or not method.lasts:
            return await method.answer(call)
        with self._rechecks.watched(call):
            return await method.answer(call)


def _check_level(call: Call) -> None:
    """Refuses a caller that is too old. One that does not say what it is, is not restricted."""
    try:
        check_caller(call.headers, "service has")
    except TooOldError as error:
        raise bad_request(error) from None


async def _unknown(_: Call) -> None:
    raise StatusGiven(status_pb2.Status(code=code_pb2.UNIMPLEMENTED, message="this service has no such method"))
