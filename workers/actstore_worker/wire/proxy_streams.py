"""The services for Serve's gRPC proxy: it reads no message of a caller without the token, and its streams contain only
the caller's messages and can be left at any time.

It imports very little, because the proxy imports it and must be ready quickly.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc

from actstore_api.v1 import service_pb2_grpc
from actstore_storage.settings.gateway_tokens import TOKEN_FILE
from actstore_worker.files.secrets import NO_TOKEN, TokenFile, has_token

# The header with the seconds until a call's deadline.
SECONDS_LEFT = "actstore-seconds-left"


def add_services(servicer: object, server: Any) -> None:
    """Add the services to Serve's proxy.

    It answers every method by calling the gateway, whatever `servicer` is. If the environment of this node names the
    file of the token, callers without it are refused before a message of theirs is read, however large it is.
    """
    server.service_handler_factory = mended_streams(server.service_handler_factory)
    if file := os.environ.get(TOKEN_FILE):
        server = _TokenFirst(server, TokenFile(Path(file)))
    service_pb2_grpc.add_CaptureServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    service_pb2_grpc.add_PatchingServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    service_pb2_grpc.add_SaeServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    service_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    service_pb2_grpc.add_WorkersInformationServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]


class _TokenFirst:
    """The server as the generated code sees it: handlers are looked up with a call's headers, before its message."""

    def __init__(self, server: Any, tokens: Callable[[], Sequence[str]]) -> None:
        self._server, self._tokens = server, tokens

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        self._server.add_generic_rpc_handlers(tuple(_Guarded(handler, self._tokens) for handler in handlers))

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Registers nothing: gRPC would choose these handlers without asking about headers."""


class _Guarded(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, handler: Any, tokens: Callable[[], Sequence[str]]) -> None:
        self._handler, self._tokens = handler, tokens

    @property
    def _method_handlers(self) -> Any:
        """Serve reads these and replaces them by its own."""
        return self._handler._method_handlers

    @_method_handlers.setter
    def _method_handlers(self, handlers: Any) -> None:
        self._handler._method_handlers = handlers

    def service(self, handler_call_details: Any) -> Any:
        found = self._handler.service(handler_call_details)
        if found is None or has_token(handler_call_details.invocation_metadata, self._tokens()):
            return found
        return grpc.stream_stream_rpc_method_handler(_refuse)


async def _refuse(_messages: Any, context: Any) -> None:
    """As a stream, because then gRPC does not wait for a message."""
    # Not sooner: the proxy must be ready quickly.
    from actstore_api.reasons import to_status
    from actstore_api.records.terms import Failure
    from actstore_worker.wire.failures import DETAILS_KEY

    status = to_status(Failure("UNAUTHENTICATED", NO_TOKEN, {}))
    trailers = ((DETAILS_KEY, status.SerializeToString()),)
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, status.message, trailers)


def mended_streams(factory: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the proxy's factory of handlers, which are told a call's deadline, with empty messages of streams
    removed: only the one that carries a failed stream's status is empty (see gateway.py).
    """

    def handler_of(service_method: str, streaming_type: Any) -> Any:
        handler = factory(service_method=service_method, streaming_type=streaming_type)

        async def single(request: Any, context: Any) -> Any:
            return await handler(request, _Caller(context))

        if streaming_type.value != "unary_stream":
            return single if streaming_type.value == "unary_unary" else handler

        async def stream(request: Any, context: Any) -> AsyncIterator[bytes]:
            messages = handler(request, _Caller(context))
            try:
                async for message in messages:
                    if message:
                        yield message
            except GeneratorExit:
                await _cancel(messages)
                raise

        return stream

    return handler_of


class _Caller:
    """A call's context that knows its peer. Serve asks for the peer at the end, for its log. After a call has ended,
    gRPC reads it from freed memory, and the proxy crashes; so it is read at the start.

    Serve hands on a call's headers, but not its deadline. So the seconds until then become a header.
    """

    def __init__(self, context: Any) -> None:
        self._context, self._peer = context, context.peer()

    def peer(self) -> str:
        return str(self._peer)

    def invocation_metadata(self) -> list[tuple[str, Any]]:
        said = [(key, value) for key, value in self._context.invocation_metadata() or () if key != SECONDS_LEFT]
        seconds = self._context.time_remaining()
        return said if seconds is None else [*said, (SECONDS_LEFT, str(seconds))]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


async def _cancel(messages: AsyncIterator[bytes]) -> None:
    """Cancels a call whose caller disconnected while a message was on its way.

    Serve cancels its own call only while it waits for the next message. So it is made to wait for one.
    """
    with suppress(asyncio.CancelledError, StopAsyncIteration):
        while True:
            waiting = asyncio.ensure_future(anext(messages))
            await asyncio.sleep(0)
            waiting.cancel()
            await waiting
