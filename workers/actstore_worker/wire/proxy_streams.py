"""The services as Serve's gRPC proxy offers them, with streams of which a caller gets his messages alone, and which he
may leave at any time. It imports next to nothing: the proxy imports it, and is expected to be ready soon.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from actstore_api.v1 import service_pb2_grpc


def add_services(servicer: object, server: Any) -> None:
    """Add to Serve's proxy the services that it offers.

    It answers every method by asking the gateway, whatever `servicer` is.
    """
    server.service_handler_factory = mended_streams(server.service_handler_factory)
    service_pb2_grpc.add_CaptureServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    service_pb2_grpc.add_PatchingServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    service_pb2_grpc.add_SaeServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    service_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]


def mended_streams(factory: Callable[..., Any]) -> Callable[..., Any]:
    """The proxy's factory of handlers, without empty messages: none of ours is empty but the one that takes a failed
    stream's status along (see gateway.py).
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
    """A call's context, of which Serve asks the peer for its log at the end. Of a call that is over, gRPC reads that
    from memory that it has freed, and the proxy dies: hence it is asked at the start.
    """

    def __init__(self, context: Any) -> None:
        self._context, self._peer = context, context.peer()

    def peer(self) -> str:
        return str(self._peer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


async def _cancel(messages: AsyncIterator[bytes]) -> None:
    """Of a caller who went away while a message was on its way to him.

    Serve cancels what it asked only where that finds it waiting for the next message. So it is made to wait for one.
    """
    with suppress(asyncio.CancelledError, StopAsyncIteration):
        while True:
            waiting = asyncio.ensure_future(anext(messages))
            await asyncio.sleep(0)
            waiting.cancel()
            await waiting
