"""The steps of every call, in their order. gRPC hands over a call as soon as its headers are here.

All methods are registered as streams of bytes in both directions, whatever the contract says: this is how gRPC's server
for asyncio starts a call before it has a message, and leaves parsing to us. Clients cannot tell the difference.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import code_pb2, status_pb2

from actstore_api.metrics import UNKNOWN_METHOD
from actstore_api.records.terms import Failure
from actstore_api.request_ids import HEADER
from actstore_service.access import Access
from actstore_service.calls.access_log import logged
from actstore_service.calls.call import Call, call_of
from actstore_service.calls.classes import CallClass
from actstore_service.calls.failures import StatusGiven, ended_by_caller, refuse

# Counts a call, whatever becomes of it.
Counted = Callable[[Call], AbstractContextManager[None]]


@dataclass(frozen=True)
class Method:
    """One method: its class of calls, and what answers a call once its caller is known. An open one needs no token."""

    path: str
    kind: CallClass
    answer: Callable[[Call], Awaitable[None]]
    is_open: bool = False


class Pipeline(grpc.GenericRpcHandler):
    """The handler of all methods."""

    def __init__(self, access: Access, counted: Counted, methods: Mapping[str, Method], retry_seconds: float) -> None:
        self._access, self._counted, self._retry_seconds = access, counted, retry_seconds
        self._handlers = {path: self._handler(method) for path, method in methods.items()}
        self._unknown = self._handler(Method(UNKNOWN_METHOD, CallClass.STANDARD, _unknown))

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return self._handlers.get(handler_call_details.method, self._unknown)

    def _handler(self, method: Method) -> grpc.RpcMethodHandler:
        async def handle(_: Any, context: Any) -> None:
            await self._handle(call_of(method.path, method.kind, context), method)

        return grpc.stream_stream_rpc_method_handler(handle)

    async def _handle(self, call: Call, method: Method) -> None:
        call.context.set_trailing_metadata(((HEADER, call.request_id),))
        with logged(call), self._counted(call):
            try:
                await self._answer(call, method)
            except asyncio.CancelledError:
                ended_by_caller(call)
                raise
            except Exception as error:  # noqa: BLE001  each one is told to the caller
                await refuse(call, error, self._retry_seconds, lambda failure: self._seen(call, failure))
            finally:
                call.over.set()

    def _seen(self, call: Call, failure: Failure) -> Failure:
        """The error without what the caller may not see."""
        return failure if call.principal is None else self._access.visible_failure(call.principal, failure)

    async def _answer(self, call: Call, method: Method) -> None:
        """A caller is known by the headers and its certificate alone: a stranger's message is never read."""
        if not method.is_open:
            call.principal = self._access.identify(call.headers, call.context.auth_context())
        await method.answer(call)


async def _unknown(_: Call) -> None:
    raise StatusGiven(status_pb2.Status(code=code_pb2.UNIMPLEMENTED, message="this service has no such method"))
