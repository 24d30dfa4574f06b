"""Server interceptors written as context managers around a call, for single answers and for streams."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import grpc

Guard = Callable[[grpc.ServicerContext], AbstractContextManager[None]]


def guarded(handler: grpc.RpcMethodHandler, guard: Guard) -> grpc.RpcMethodHandler:
    """Returns the same handler, with `guard(context)` entered before it runs and left once its answer is complete."""
    inner = getattr(handler, _kind(handler))
    if getattr(inner, "experimental_non_blocking", False):
        # The standard health service's Watch: it uses callbacks instead of a thread, and reports only its own errors.
        return handler

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        with guard(context):
            return inner(request, context)

    def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        with guard(context):
            yield from inner(request, context)

    make = getattr(grpc, f"{_kind(handler)}_rpc_method_handler")
    behaviour = stream if handler.response_streaming else answer
    return make(behaviour, handler.request_deserializer, handler.response_serializer)


def _kind(handler: grpc.RpcMethodHandler) -> str:
    ways = {False: "unary", True: "stream"}
    return f"{ways[handler.request_streaming]}_{ways[handler.response_streaming]}"
