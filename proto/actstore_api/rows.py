"""Encodes and decodes streams of rows without protobuf, which would copy each byte three more times.

The messages are the same as codec would make: ReadActivationsResponse, ReadTokensResponse or ReadFeatureResponse, whose
fields have the same numbers. Arrow Flight works in the same way.
"""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from actstore_api import codec
from actstore_api.records.terms import Provenance
from actstore_api.shape import Unreadable
from actstore_api.v1 import activation_pb2, common_pb2

# From protobuf's wire format: the type of bytes and messages, and the lengths of types with a fixed length.
_LENGTH_DELIMITED, _FIXED_BYTES = 2, {1: 8, 5: 4}
_ROWS, _PROVENANCE = (
    activation_pb2.ReadActivationsResponse.DESCRIPTOR.fields_by_name[name].number for name in ("rows", "provenance")
)
_STREAM = common_pb2.Table.DESCRIPTOR.fields_by_name["arrow_ipc_stream"].number


def encode_rows(batch: pa.RecordBatch, provenance: Provenance | None = None) -> bytes:
    """One message of a stream of rows, as it is sent; the stream's first has its provenance."""
    stream = _Pieces()
    with pa.ipc.new_stream(stream, batch.schema) as writer:
        writer.write(batch)
    length = sum(map(len, stream.pieces))
    table = _head(_STREAM, length)
    return b"".join((_first(provenance), _head(_ROWS, len(table) + length), table, *stream.pieces))


def _first(provenance: Provenance | None) -> bytes:
    if provenance is None:
        return b""
    said: bytes = codec.encode(provenance).SerializeToString()
    return _head(_PROVENANCE, len(said)) + said


def decode_rows(messages: Iterable[bytes]) -> tuple[pa.Table, Provenance]:
    """All rows of a stream, without copying them from its messages, and the provenance of the first message.

    Errors: Unreadable if there is no message.
    """
    tables, provenance = [], None
    for message in messages:
        fields = _fields(memoryview(message))
        if provenance is None:
            said = common_pb2.Provenance.FromString(bytes(fields.get(_PROVENANCE, b"")))
            provenance = codec.decode(Provenance, said)
        stream = _fields(fields[_ROWS])[_STREAM]
        tables.append(pa.ipc.open_stream(pa.py_buffer(stream)).read_all())
    if provenance is None:
        raise Unreadable("the stream of rows ended before its first message", "", "at least one message")
    return pa.concat_tables(tables), provenance


class _Pieces:
    """A file for Arrow that keeps the given buffers without copying, so that the message is the only copy."""

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
    return _varint_of(field << 3 | _LENGTH_DELIMITED) + _varint_of(length)


def _varint_of(number: int) -> bytes:
    """Seven bits per byte, the lowest first; the eighth says that more follow."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _fields(message: memoryview) -> dict[int, memoryview]:
    """The fields of a message that are bytes or messages, by number; other types, as in later versions, are skipped."""
    found, place = {}, 0
    while place < len(message):
        tag, place = _varint(message, place)
        if tag & 7 == _LENGTH_DELIMITED:
            length, place = _varint(message, place)
            found[tag >> 3] = message[place : place + length]
            place += length
        elif tag & 7 in _FIXED_BYTES:
            place += _FIXED_BYTES[tag & 7]
        else:
            _, place = _varint(message, place)
    return found


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """The number that begins at an offset of a message, and the offset after it."""
    number = shift = 0
    while True:
        byte = message[place]
        number |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return number, place
