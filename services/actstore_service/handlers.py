"""Creates a gRPC handler for every method of the contract from its descriptors: the bucket answers it, or the workers
do.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc
from google.protobuf.message import Message

from actstore_api.bounds import check_bounds
from actstore_api.codec import decode, encode, message_of
from actstore_api.shape import Unreadable
from actstore_api.v1 import service_pb2
from actstore_api.verbs import VERBS, Verb
from actstore_service.gateway import Gateway
from actstore_service.row_messages import row_messages
from actstore_storage.answers import Store, answer, rows
from actstore_storage.errors import BadRequest

SERVICES = tuple(service.full_name for service in service_pb2.DESCRIPTOR.services_by_name.values())
# Functions applied to the messages of a stream from the workers, by method name.
Watch = Callable[[Iterator[bytes]], Iterator[bytes]]


class Stored:
    """Handlers of methods that are answered from the bucket. Rows are sent in messages of about `batch_bytes`."""

    def __init__(self, store: Store, batch_bytes: int) -> None:
        self._store, self._batch_bytes = store, batch_bytes

    def handler(self, verb: Verb) -> grpc.RpcMethodHandler:
        """A handler that asks `actstore_storage.answers`."""
        read = message_of(verb.question).FromString
        if verb.streams:
            return grpc.unary_stream_rpc_method_handler(self._streamed(verb), read)
        return grpc.unary_unary_rpc_method_handler(self._answered(verb), read, _serialized)

    def _answered(self, verb: Verb) -> Callable[[Message, grpc.ServicerContext], Message]:
        def answered(request: Message, context: grpc.ServicerContext) -> Message:
            found: Message = encode(answer(_until_left(self._store, context), _question(verb, request)))
            return found

        return answered

    def _streamed(self, verb: Verb) -> Callable[[Message, grpc.ServicerContext], Iterator[bytes]]:
        def streamed(request: Message, context: grpc.ServicerContext) -> Iterator[bytes]:
            provenance, batches = rows(_until_left(self._store, context), _question(verb, request))
            return row_messages(provenance, batches, self._batch_bytes)

        return streamed


class Forwarded:
    """Handlers of methods that the workers answer. Messages are forwarded as bytes."""

    def __init__(self, gateway: Gateway, watches: Mapping[str, Watch]) -> None:
        self._gateway, self._watches = gateway, watches

    def handler(self, verb: Verb) -> grpc.RpcMethodHandler:
        """A handler that asks the workers' gateway."""
        if verb.streams:
            return grpc.unary_stream_rpc_method_handler(self._streamed(verb))
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._gateway.answer(verb.path, request, context)
        )

    def _streamed(self, verb: Verb) -> Callable[[bytes, grpc.ServicerContext], Iterator[bytes]]:
        watch = self._watches.get(verb.name, iter)
        return lambda request, context: watch(self._gateway.stream(verb.path, request, context))


def generic_handlers(stored: Stored, forwarded: Forwarded) -> list[grpc.GenericRpcHandler]:
    """One handler for each service of the contract."""
    by_service: dict[str, dict[str, grpc.RpcMethodHandler]] = {name: {} for name in SERVICES}
    for verb in VERBS.values():
        by_service[verb.service][verb.name] = (forwarded if verb.forwarded else stored).handler(verb)
    return [grpc.method_handlers_generic_handler(name, methods) for name, methods in by_service.items()]


def forwarded_services() -> frozenset[str]:
    """The services that need workers."""
    return frozenset(verb.service for verb in VERBS.values() if verb.forwarded)


def _until_left(store: Store, context: grpc.ServicerContext) -> Store:
    """The store for one call, from which nothing more is read once the call has ended."""
    stop = threading.Event()
    if not context.add_callback(stop.set):
        stop.set()
    return store.until(stop)


def _question(verb: Verb, request: Message) -> Any:
    try:
        check_bounds(request)
        return decode(verb.question, request)
    except Unreadable as error:
        raise BadRequest(
            str(error), reason=error.reason, field=error.field, value=error.value, allowed=error.allowed
        ) from None


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()
