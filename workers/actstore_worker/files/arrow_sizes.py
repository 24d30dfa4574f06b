"""Reads from an Arrow stream how large its compressed parts become, without decompressing them.

Arrow itself allocates what a part says. Each compressed buffer begins with its size; where the buffers are is in the
head of its message, a flatbuffer (Message.fbs of Arrow's format).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

_CONTINUED = 0xFFFFFFFF
_HEAD_BYTES_MAX = 1 << 26
# Places of fields in tables, and numbers of kinds of messages.
_KIND, _HEADER, _BODY_BYTES = 1, 2, 3
_DICTIONARY, _RECORDS = 2, 3
_DATA_OF_DICTIONARY, _BUFFERS, _COMPRESSION = 1, 2, 3
_BUFFER_BYTES = 16


@dataclass(frozen=True)
class CompressedPart:
    """A batch of records, or of a dictionary: its bytes in the file, and those that it becomes."""

    stored: int
    expanded: int


def compressed_parts(source: pa.NativeFile) -> Iterator[CompressedPart]:
    """Yields the compressed parts of a stream, from where the file is read. The file's place is another one afterwards.

    Errors: OSError for a head that is not Arrow's.
    """
    try:
        while head := _head(source):
            body = source.tell()
            message = _Table.root(head)
            size = message.number("<q", _BODY_BYTES)
            records = _records(message)
            if records is not None and records.place(_COMPRESSION) is not None:
                yield CompressedPart(size, sum(_expanded(source, body, records)))
            source.seek(body + size)
    except (struct.error, IndexError, ValueError, pa.ArrowInvalid) as error:
        raise OSError("a message's head is damaged") from error


def _head(source: pa.NativeFile) -> bytes:
    """The head of the next message; empty at the end of the stream."""
    start = source.read(8)
    if len(start) < 8:
        return b""
    mark, size = struct.unpack("<Ii", start)
    if mark != _CONTINUED:  # streams of early versions have no mark
        size = mark
        source.seek(source.tell() - 4)
    if not 0 <= size <= _HEAD_BYTES_MAX:
        raise ValueError(f"a head of {size} bytes")
    return bytes(source.read(size))


def _records(message: "_Table") -> "_Table | None":
    header = message.table(_HEADER)
    match message.number("<B", _KIND):
        case _ if header is None:
            return None
        case kind if kind == _RECORDS:
            return header
        case kind if kind == _DICTIONARY:
            return header.table(_DATA_OF_DICTIONARY)
    return None


def _expanded(source: pa.NativeFile, body: int, records: "_Table") -> Iterator[int]:
    """The size that each buffer becomes; one that is stored as it is says -1."""
    for offset, size in records.pairs(_BUFFERS):
        if size:
            (expanded,) = struct.unpack("<q", source.read_at(8, body + offset))
            yield size if expanded < 0 else expanded


@dataclass(frozen=True)
class _Table:
    """A table of a flatbuffer at an offset."""

    data: bytes
    offset: int

    @classmethod
    def root(cls, data: bytes) -> "_Table":
        return cls(data, struct.unpack_from("<I", data)[0])

    def place(self, field: int) -> int | None:
        """Where a field is; None if it has its default."""
        directory = self.offset - struct.unpack_from("<i", self.data, self.offset)[0]
        (size,) = struct.unpack_from("<H", self.data, directory)
        entry = 4 + 2 * field
        offset = struct.unpack_from("<H", self.data, directory + entry)[0] if entry < size else 0
        return self.offset + offset if offset else None

    def number(self, form: str, field: int) -> int:
        place = self.place(field)
        return 0 if place is None else int(struct.unpack_from(form, self.data, place)[0])

    def table(self, field: int) -> "_Table | None":
        place = self.place(field)
        return None if place is None else _Table(self.data, self._referred(place))

    def pairs(self, field: int) -> list[tuple[int, int]]:
        """A list of pairs of 64-bit numbers."""
        place = self.place(field)
        if place is None:
            return []
        first = self._referred(place)
        (count,) = struct.unpack_from("<I", self.data, first)
        if count * _BUFFER_BYTES > len(self.data):
            raise ValueError(f"{count} buffers")
        return [struct.unpack_from("<qq", self.data, first + 4 + number * _BUFFER_BYTES) for number in range(count)]

    def _referred(self, place: int) -> int:
        return place + int(struct.unpack_from("<I", self.data, place)[0])
