"""Reads rows of table files, and text files, in bounded memory, exactly as they are stored: nothing is repaired or
chosen.

A file that could be read in two ways is refused: with a repeated column or key, or text that is not UTF-8. A byte order
mark at the start of a file is not part of its text.
"""

import codecs
import json
import lzma
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from actstore_storage.errors import BadRequest
from actstore_worker.datasets.files import DatasetFile, unreadable
from actstore_worker.datasets.formats import ARROW, CSV, JSON, LINES, PARQUET, ROWS_OF_JSON, TSV
from actstore_worker.datasets.limits import Reading
from actstore_worker.files.arrow_sizes import compressed_parts
from actstore_worker.files.stamps import held_still

# Rows that become Python objects together: at most this many, and of at most about this many bytes.
_BATCH_ROWS, _BATCH_BYTES = 256, 1 << 24
_LISTED_BYTES = 8  # of an element of a list, at least
# Encodings of Parquet whose texts Arrow can keep as a dictionary. In others, a few bytes may stand for a whole text.
_DICTIONARIES = frozenset({"PLAIN", "RLE", "BIT_PACKED", "PLAIN_DICTIONARY", "RLE_DICTIONARY"})
# The most bytes of one character.
_UTF8_BYTES = 4
# A row of CSV must fit into one block.
_CSV_BLOCK_BYTES = 1 << 23
# Markers before an Arrow file's stream, and after its footer, whose length is at the end.
_ARROW_FILE, _ARROW_HEAD_BYTES, _ARROW_TAIL_BYTES = b"ARROW1", 8, 10
_ARROW_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
# Longest first: UTF-32's begins like UTF-16's.
_OTHER_MARKS: Mapping[bytes, str] = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


@dataclass(frozen=True)
class WantedColumns:
    """`names` are read, and `beside` if a table has them. In a table without types, those in `texts` are text, whatever
    they look like. `missing` makes the error for a missing column, from the place, its name, and the existing columns.
    """

    names: Sequence[str]
    texts: Sequence[str]
    missing: Callable[[str, str, Sequence[str]], BadRequest]
    beside: Sequence[str] = ()

    def choose(self, place: str, there: Sequence[str]) -> list[str]:
        """Returns those of a table's columns that are read."""
        chosen = [*self.names, *(name for name in self.beside if name in there)]
        for name in chosen:
            if name not in there:
                raise self.missing(place, name, there)
            if there.count(name) > 1:
                raise unreadable(place, f"it has {there.count(name)} columns {name!r}", "columns with different names")
        return chosen


@dataclass(frozen=True)
class Row:
    """A row. `place` is for messages, `number` counts the rows of the file from 0."""

    place: str
    number: int
    columns: Mapping[str, Any]


def table_rows(file: DatasetFile, wanted: WantedColumns, reading: Reading) -> Iterator[Row]:
    """Yields the rows of a table file. Errors: BadRequest DATASET_UNREADABLE with file and place, LIMIT_EXCEEDED;
    StoreError if the store fails; ActstoreError CANCELLED once nobody waits, FILES_CHANGED.
    """
    what = {PARQUET: "Parquet", ARROW: "Arrow", CSV: "CSV", TSV: "TSV"}.get(file.kind.rows, "JSON")
    with _reading(file, f"it is not a complete {what} file", what):
        yield from _READERS[file.kind.rows](file, wanted, reading)


def plain_text(file: DatasetFile, reading: Reading) -> str:
    """Returns the text of a file that is one document. Errors: as `table_rows`."""
    reading.check()
    most = _UTF8_BYTES * reading.limits.document_characters
    with _reading(file, "it is not whole", "a readable file"), file.open_content() as source:
        data = source.read(most + 1)
    if len(data) > most:
        reading.check_document(file.name, len(data))
    text = _decode(data, file, 0)
    if "\0" in text:  # UTF-16 without a mark, or no text at all
        place = data.index(b"\0")
        raise unreadable(file.name, f"it has a zero byte at offset {place}, so it may be UTF-16", "UTF-8", place)
    return text


def _lines(file: DatasetFile, wanted: WantedColumns, reading: Reading) -> Iterator[Row]:
    with file.open_content() as source:
        yield from _line_rows(source, file, wanted, reading)


def _json(file: DatasetFile, wanted: WantedColumns, reading: Reading) -> Iterator[Row]:
    """An array of objects, or one object per line."""
    with file.open_content() as source:
        if not source.peek(1 << 12).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            yield from _line_rows(source, file, wanted, reading)
            return
        data = source.read(reading.limits.json_bytes + 1)
    reading.check_json(file.name, len(data))
    reading.check_json_values(file.name, data)
    found = _Json(file, wanted).parse(_decode(data, file, 0), "it")
    for number, row in enumerate(found):
        reading.check()
        if not isinstance(row, dict):
            raise unreadable(file.name, f"row {number} is not a JSON object", ROWS_OF_JSON)
        yield Row(f"{file.name} row {number}", number, row)


def _line_rows(source: IO[bytes], file: DatasetFile, wanted: WantedColumns, reading: Reading) -> Iterator[Row]:
    decoder = _Json(file, wanted)
    offset = count = 0
    for number, line in enumerate(iter(lambda: source.readline(reading.limits.json_bytes + 1), b""), start=1):
        reading.check()
        reading.check_json(file.name, len(line))
        reading.check_json_values(file.name, line)
        text = _decode(line, file, offset)
        if text and not text.isspace():
            row = decoder.parse(text, f"line {number}")
            if not isinstance(row, dict):
                raise unreadable(file.name, f"line {number} is not a JSON object", "one JSON object per line")
            yield Row(f"{file.name} line {number}", count, row)
            count += 1
        offset += len(line)


class _Json:
    """The values of one file; in objects, each requested key must occur once."""

    def __init__(self, file: DatasetFile, wanted: WantedColumns) -> None:
        self._file, self._wanted = file, frozenset((*wanted.names, *wanted.beside))
        self._decoder = json.JSONDecoder(object_pairs_hook=self._once)

    def parse(self, text: str, where: str) -> Any:
        try:
            return self._decoder.decode(text)
        except _RepeatedKeyError as error:
            what = f"{where} has the key {str(error)!r} more than once"
            raise unreadable(self._file.name, what, "keys with different names") from error
        except (ValueError, RecursionError) as error:
            raise unreadable(self._file.name, f"{where} is not JSON: {error}", "one JSON object per line") from error

    def _once(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            for name in sorted(self._wanted):
                if counts[name] > 1:
                    raise _RepeatedKeyError(name)
        return found


class _RepeatedKeyError(Exception):
    """A repeated key, of which `json` would keep the last."""


def _parquet(file: DatasetFile, wanted: WantedColumns, reading: Reading) -> Iterator[Row]:
    """A text that a file has once for many rows is in memory once, too; or in one row at a time."""
    with file.open() as source:
        footer = pq.ParquetFile(source)
        names = wanted.choose(file.name, footer.schema_arrow.names)
        encodings = _encodings(file, footer.metadata, frozenset(names), reading)
        texts = [name for name in names if pa.types.is_string(footer.schema_arrow.field(name).type)]
        shared = encodings <= _DICTIONARIES
        table = pq.ParquetFile(source, read_dictionary=texts if shared else None)
        yield from _batch_rows(file, table.iter_batches(_BATCH_ROWS if shared else 1, columns=names), names, reading)


def _encodings(file: DatasetFile, footer: pq.FileMetaData, names: frozenset[str], reading: Reading) -> set[str]:
    """How the columns are encoded. Errors: BadRequest LIMIT_EXCEEDED for parts that become far larger than they are."""
    found: set[str] = set()
    for group in range(footer.num_row_groups):
        for chunk in map(footer.row_group(group).column, range(footer.num_columns)):
            if chunk.path_in_schema.partition(".")[0] in names:
                place = f"{file.name} row group {group}, column {chunk.path_in_schema}"
                reading.check_expansion(place, chunk.total_compressed_size, chunk.total_uncompressed_size)
                found.update(chunk.encodings)
    return found


def _arrow(file: DatasetFile, wanted: WantedColumns, reading: Reading) -> Iterator[Row]:
    """The stream that `datasets` writes; or the file format, which is a stream followed by a footer."""
    with file.open() as source:
        is_file = source.read(len(_ARROW_FILE)) == _ARROW_FILE
        first = _ARROW_HEAD_BYTES if is_file else 0
        source.seek(first)
        for part in compressed_parts(source):
            reading.check()
            reading.check_expansion(f"a batch of {file.name}", part.stored, part.expanded)
        source.seek(first)
        reader = pa.ipc.open_stream(source)
        names = wanted.choose(file.name, reader.schema.names)
        yield from _batch_rows(file, _valid(reader), names, reading)
        _check_ended(file, source, is_file)


def _valid(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Checks that offsets and indices of a file lead into its own values. Errors: ArrowInvalid."""
    for batch in batches:
        batch.validate(full=True)
        yield batch


def _check_ended(file: DatasetFile, source: pa.NativeFile, is_file: bool) -> None:
    """A stream that was cut between two batches looks like a shorter one, and two joined streams look like the first
    one.
    """
    ended, end = source.tell(), source.size()
    if is_file:
        tail = source.read_at(_ARROW_TAIL_BYTES, end - _ARROW_TAIL_BYTES)
        end -= int.from_bytes(tail[:4], "little") + _ARROW_TAIL_BYTES if tail.endswith(_ARROW_FILE) else 0
    if ended != end:
        raise unreadable(
            file.name, "its Arrow stream ends before the end of the file", "one Arrow stream or Arrow file", ended
        )
    if source.read_at(len(_ARROW_STREAM_END), end - len(_ARROW_STREAM_END)) != _ARROW_STREAM_END:
        raise unreadable(
            file.name, "its Arrow stream is incomplete, so rows may be missing", "a stream that was closed", end
        )


def _csv(file: DatasetFile, wanted: WantedColumns, reading: Reading) -> Iterator[Row]:
    parse = pa.csv.ParseOptions(delimiter="\t" if file.kind.rows == TSV else ",", newlines_in_values=True)
    read = pa.csv.ReadOptions(block_size=_CSV_BLOCK_BYTES)

    def opened(**options: Any) -> pa.csv.CSVStreamingReader:
        source = file.open_content()
        _check_mark(source.read(4), file)
        source.close()
        convert = pa.csv.ConvertOptions(**options)
        return pa.csv.open_csv(file.open_content(), read, parse, convert)

    with opened() as header:
        names = wanted.choose(file.name, header.schema.names)
    types = dict.fromkeys(wanted.texts, pa.string())
    with opened(include_columns=names, column_types=types) as reader:
        yield from _batch_rows(file, reader, names, reading)


_READERS: Mapping[str, Callable[[DatasetFile, WantedColumns, Reading], Iterator[Row]]] = {
    LINES: _lines,
    JSON: _json,
    PARQUET: _parquet,
    ARROW: _arrow,
    CSV: _csv,
    TSV: _csv,
}


def _batch_rows(file: DatasetFile, batches: Any, names: list[str], reading: Reading) -> Iterator[Row]:
    number = 0
    for batch in batches:
        chosen = batch.select(names)
        longest = max((_longest(column, f"{file.name} from row {number} on", reading) for column in chosen), default=0)
        size = min(_BATCH_ROWS, max(1, _BATCH_BYTES // max(1, longest)))
        for first in range(0, len(chosen), size):
            reading.check()
            for columns in chosen.slice(first, size).to_pylist():
                yield Row(f"{file.name} row {number}", number, columns)
                number += 1


def _longest(column: pa.Array, place: str, reading: Reading) -> int:
    """The bytes of a column's longest value as a Python object, if that may be large. Errors: BadRequest LIMIT_EXCEEDED
    for a value that no document may have.
    """
    values = column.dictionary if pa.types.is_dictionary(column.type) else column
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        characters = pc.max(pc.utf8_length(values)).as_py() or 0
        reading.check_document(place, characters)
        return int(characters)
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        tokens = pc.max(pc.list_value_length(values)).as_py() or 0
        reading.check_tokens(place, tokens)
        return _LISTED_BYTES * int(tokens)
    return 0


@contextmanager
def _reading(file: DatasetFile, what: str, allowed: str) -> Iterator[None]:
    try:
        with held_still(file.stamp, "dataset", file.name):
            yield
    except UnicodeDecodeError as error:
        raise unreadable(file.name, f"a text is not UTF-8: {error}", "UTF-8") from error
    except (pa.ArrowException, OSError, EOFError, lzma.LZMAError) as error:
        raise file.failure(error, what, allowed) from error


def _check_mark(head: bytes, file: DatasetFile) -> None:
    for mark, name in _OTHER_MARKS.items():
        if head.startswith(mark):
            raise unreadable(file.name, f"its first bytes are those of {name}", "UTF-8", 0)


def _decode(data: bytes, file: DatasetFile, offset: int) -> str:
    if not offset:
        _check_mark(data, file)
        mark = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
        data, offset = data[mark:], mark
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        place = offset + error.start
        why = f"byte {data[error.start]:#04x} at offset {place} is not UTF-8"
        raise unreadable(file.name, why, "UTF-8", place) from error
