"""Decodes pages of plain values directly, for readers to whom an ordinary Parquet reader would cost a copy or a footer.

It also finds the bytes of the footer.
"""

import zlib
from dataclasses import dataclass
from typing import Any

_DATA_PAGE, _PLAIN = 0, 0
# After the footer: its length, and the magic bytes.
_LENGTH_BYTES, _MAGIC = 4, b"PAR1"


@dataclass(frozen=True)
class Page:
    """The location of a page. Its data are from `start` to `end` (exclusive): `values` values with `plain_bytes` after
    decompression.
    """

    start: int
    end: int
    values: int
    plain_bytes: int
    crc: int

    def check(self, data: memoryview) -> None:
        """Errors: ValueError if the checksum does not match."""
        if zlib.crc32(data[self.start : self.end]) != self.crc:
            raise ValueError("its checksum does not match")


def footer_bytes(end: bytes) -> int:
    """The number of bytes, up to the end, of the footer of a file with this end. Errors: ValueError if it is not
    Parquet.
    """
    if end[-len(_MAGIC) :] != _MAGIC:
        raise ValueError("it does not end like a Parquet file")
    length = end[-len(_MAGIC) - _LENGTH_BYTES : -len(_MAGIC)]
    return int.from_bytes(length, "little") + _LENGTH_BYTES + len(_MAGIC)


def footer_of(end: bytes) -> bytes:
    """Cuts the footer from the last bytes of a file, which must be enough. Errors: ValueError."""
    return end[-footer_bytes(end) :]


def page_at(data: memoryview, at: int) -> Page:
    """Reads the header of the page that begins at `at`. Errors: ValueError if it is not a page of plain values with a
    CRC-32.
    """
    try:
        header, start = _header(data, at)
        of_data = header[_DATA]
        if header[_TYPE] != _DATA_PAGE or of_data[_ENCODING] != _PLAIN:
            raise ValueError("its values are not plain-encoded")
        end, crc = start + header[_STORED_BYTES], header[_CRC] & 0xFFFFFFFF
        page = Page(start, end, of_data[_VALUES], header[_PLAIN_BYTES], crc)
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"its header cannot be read: {error!r}") from error
    if not start <= end <= len(data):
        raise ValueError("it ends before its values do")
    return page


# Fields of a page's header, by their numbers in parquet-format's PageHeader and DataPageHeader.
_TYPE, _PLAIN_BYTES, _STORED_BYTES, _CRC, _DATA = 1, 2, 3, 4, 5
_VALUES, _ENCODING = 1, 2
# Thrift's compact protocol: types of fields. Other types are whole numbers.
_TRUE, _FALSE, _BYTE, _BINARY, _STRUCT = 1, 2, 3, 8, 12


def _header(data: memoryview, at: int) -> tuple[dict[int, Any], int]:
    """Reads a struct in Thrift's compact protocol, by field number, and returns where it ends. Binary fields are left
    out.
    """
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        at, kind = at + 1, head & 15
        if head >> 4:
            number += head >> 4
        else:
            number, at = _zigzag(data, at)
        if kind == _STRUCT:
            fields[number], at = _header(data, at)
        elif kind in (_TRUE, _FALSE):
            fields[number] = kind == _TRUE
        elif kind == _BYTE:
            at += 1
        elif kind == _BINARY:
            length, at = _varint(data, at)
            at += length
        else:
            fields[number], at = _zigzag(data, at)
    return fields, at + 1


def _zigzag(data: memoryview, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] >= 128:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1
