"""The services for Serve's gRPC proxy, with streams that contain only the caller's messages and can be left at any
time.

It imports very little, because the proxy imports it and must be ready quickly.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from actstore_api.v1 import service_pb2_grpc


def add_services(servicer: object, server: Any) -> None:
    """Add the services to Serve's proxy.

    It answers every method by calling the gateway, whatever `servicer` is.
    """
    server.service_handler_factory = mended_streams(server.service_handler_factory)
    service_pb2_grpc.add_CaptureServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    service_pb2_grpc.add_PatchingServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    service_pb2_grpc.add_SaeServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    service_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    service_pb2_grpc.add_WorkersInformationServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]


def mended_streams(factory: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the proxy's factory of handlers with empty messages removed: only the one that carries a failed stream's
    status is empty (see gateway.py).
    """

    def handler_of(service_method: str, streaming_type: Any) -> Any:
        handler = factory(service_method=service_method, streaming_type=streaming_type)
        if streaming_type.value != "unary_stream":
            return handler

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
    """

    def __init__(self, context: Any) -> None:
        self._context, self._peer = context, context.peer()

    def peer(self) -> str:
        return str(self._peer)

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
