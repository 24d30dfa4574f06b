"""The contract of the last release, and parts that know no other one: a client, and a service or workers."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

BASELINE = Path(__file__).parents[2] / "proto" / "baseline.binpb"
NO_DEADLINE_SECONDS = 1e6
# What a part of the release sends on of a call's headers. It knows of no levels.
HEADERS = frozenset({"application", "authorization", "x-request-id"})


class Contract:
    """The contract of the release, apart from this version's."""

    def __init__(self) -> None:
        pool = descriptor_pool.DescriptorPool()
        found = descriptor_pb2.FileDescriptorSet.FromString(BASELINE.read_bytes())
        for file in found.file:
            pool.Add(file)
        self._pool = pool

    def question(self, path: str, data: bytes) -> Message:
        return self._read(self.method(path).input_type, data)

    def answer(self, path: str, data: bytes) -> Message:
        return self._read(self.method(path).output_type, data)

    def message(self, name: str) -> type[Message]:
        """A message's class."""
        return message_factory.GetMessageClass(self._pool.FindMessageTypeByName(f"actstore_api.v1.{name}"))

    def method(self, path: str) -> Any:
        """Errors: KeyError for a method that the release does not have."""
        _, service, method = path.split("/")
        found = self._pool.FindServiceByName(service).methods_by_name
        return found[method]

    def _read(self, kind: Any, data: bytes) -> Message:
        message = message_factory.GetMessageClass(kind).FromString(data)
        message.DiscardUnknownFields()
        return message


class ReleasedPart(grpc.GenericRpcHandler):
    """Sends calls on as a part of the release does: only methods, fields and headers that it knows."""

    def __init__(self, contract: Contract, channel: grpc.Channel) -> None:
        self._contract, self._channel = contract, channel

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        try:
            streams = self._contract.method(call.method).server_streaming
        except KeyError:
            return None
        if streams:
            return grpc.unary_stream_rpc_method_handler(partial(self._several, call.method))
        return grpc.unary_unary_rpc_method_handler(partial(self._single, call.method))

    def _single(self, path: str, asked: bytes, context: grpc.ServicerContext) -> bytes:
        question = self._contract.question(path, asked).SerializeToString()
        try:
            found = self._channel.unary_unary(path)(question, **_as_asked(context))
        except grpc.RpcError as error:
            _hand_on(error, context)
        return self._contract.answer(path, found).SerializeToString()

    def _several(self, path: str, asked: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        question = self._contract.question(path, asked).SerializeToString()
        try:
            for found in self._channel.unary_stream(path)(question, **_as_asked(context)):
                yield self._contract.answer(path, found).SerializeToString()
        except grpc.RpcError as error:
            _hand_on(error, context)


def _as_asked(context: grpc.ServicerContext) -> dict[str, Any]:
    headers = tuple((key, value) for key, value in context.invocation_metadata() if key in HEADERS)
    # Without a deadline, gRPC says one in centuries, which it does not take back.
    left = context.time_remaining()
    return {"metadata": headers, "timeout": left if left < NO_DEADLINE_SECONDS else None}


def _hand_on(error: Any, context: grpc.ServicerContext) -> None:
    context.set_trailing_metadata(error.trailing_metadata())
    context.abort(error.code(), error.details())


@contextmanager
def released_part(behind: str, contract: Contract) -> Iterator[str]:
    """The address of a part of the release before what is at another address."""
    with grpc.insecure_channel(behind) as channel:
        server = grpc.server(ThreadPoolExecutor(8), handlers=[ReleasedPart(contract, channel)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


class ReleasedClient:
    """Asks as a client of the release does, with a token."""

    def __init__(self, address: str, token: str, contract: Contract) -> None:
        self._channel, self._contract = grpc.insecure_channel(address), contract
        self._metadata = (("authorization", f"Bearer {token}"),)

    def __enter__(self) -> "ReleasedClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def ask(self, service: str, method: str, timeout: float, **fields: Any) -> list[Any]:
        """The messages of the answer."""
        path = f"/actstore_api.v1.{service}/{method}"
        question = self._contract.message(f"{method}Request")(**fields).SerializeToString()
        streams = self._contract.method(path).server_streaming
        send = self._channel.unary_stream(path) if streams else self._channel.unary_unary(path)
        found = send(question, metadata=self._metadata, timeout=timeout)
        return [self._contract.answer(path, data) for data in (found if streams else [found])]
