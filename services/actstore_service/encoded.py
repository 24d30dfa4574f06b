"""Rows on the wire, encoded here instead of by protobuf, which would copy each byte three times more.

What is sent is the same message: `rows_message` is what `ReadActivationsResponse(rows=..., provenance=...)` serialises
to. Arrow Flight does likewise.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import grpc
import pyarrow as pa

from actstore_api.v1 import activation_pb2, common_pb2
from actstore_service import wire
from actstore_storage.runs.snapshot import Snapshot

# Wire type 2 of protobuf: a length, then so many bytes.
_LENGTH_DELIMITED = 2
_ROWS = activation_pb2.ReadActivationsResponse.DESCRIPTOR.fields_by_name["rows"].number
_STREAM = common_pb2.Table.DESCRIPTOR.fields_by_name["arrow_ipc_stream"].number
# Messages that are made while one is on its way.
_AHEAD = 8

Item = TypeVar("Item")


def rows_message(batch: pa.RecordBatch, rest: bytes = b"") -> bytes:
    """ReadActivationsResponse, or ReadTokensResponse, with these rows; `rest` is such a message without rows.

    So has ReadFeatureResponse: their fields have the same numbers.
    """
    stream = _Pieces()
    with pa.ipc.new_stream(stream, batch.schema) as writer:
        writer.write(batch)
    length = sum(map(len, stream.pieces))
    table = _head(_STREAM, length)
    return b"".join((rest, _head(_ROWS, len(table) + length), table, *stream.pieces))


def row_messages(
    snapshot: Snapshot,
    batches: Iterable[pa.RecordBatch],
    batch_bytes: int,
    response: type[Any],
    saes: Sequence[str] = (),
) -> Iterator[Any]:
    """`response` messages of bounded size. Provenance comes with the first; its rows may be none, for their schema."""
    first: bytes = response(provenance=wire.provenance_message(snapshot.provenance(saes))).SerializeToString()
    parts = (part for batch in batches for part in wire.slices(batch, batch_bytes))
    return ahead(rows_message(part, b"" if number else first) for number, part in enumerate(parts))


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, made by a thread of their own while the caller is busy with those before."""
    made: queue.Queue[tuple[bool, Any]] = queue.Queue(_AHEAD)
    left = threading.Event()

    def put(found: tuple[bool, Any]) -> None:
        while not left.is_set():
            try:
                made.put(found, timeout=0.1)
            except queue.Full:
                continue
            return

    def make() -> None:
        try:
            for item in items:
                put((True, item))
                if left.is_set():
                    return
            put((False, None))
        except BaseException as error:  # noqa: BLE001  raised where the items are wanted
            put((False, error))

    threading.Thread(target=make, daemon=True).start()
    try:
        while (found := made.get())[0]:
            yield found[1]
        if found[1] is not None:
            raise found[1]
    finally:
        left.set()


class EncodedInterceptor(grpc.ServerInterceptor):
    """Lets servicers answer with messages that are encoded already."""

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        handler = continuation(handler_call_details)
        if handler is None or not handler.response_streaming:
            return handler
        encode = handler.response_serializer
        return handler._replace(
            response_serializer=lambda message: message if isinstance(message, bytes) else encode(message)
        )


class _Pieces:
    """A file to Arrow that keeps what it is given where it lies, so that the message is the one copy of it."""

    closed = False

    def __init__(self) -> None:
        self.pieces: list[Any] = []

    def write(self, piece: Any) -> int:
        self.pieces.append(piece)
        return len(piece)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def _head(field: int, length: int) -> bytes:
    return _varint(field << 3 | _LENGTH_DELIMITED) + _varint(length)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
