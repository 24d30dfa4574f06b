"""Where documents come from: the rows of tables, and plain text.

A JSONL or Parquet file has a document a row; a plain-text file is one document. Text is UTF-8 or refused: a document
that is silently repaired is no longer what its name says.
"""

import itertools
import json
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int
from numpy.typing import NDArray

from actstore_storage.errors import BadRequest
from actstore_storage.specification import RowFilter
from actstore_worker.dataset_files import Dataset, DatasetFile, unreadable

# A document is tokenised whole, so it must fit into memory several times over.
DOCUMENT_BYTES_MAX = 1 << 28
_PARQUET_BATCH_ROWS = 256
_ID_MAX = np.iinfo(np.int32).max
COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda value, allowed: value in allowed,
    "not in": lambda value, allowed: value not in allowed,
}

TokenIds = Int[NDArray[np.int32], " token"]
_Row = tuple[str, Mapping[str, Any]]  # where it lies, for messages; its columns


@dataclass(frozen=True)
class DocumentQuery:
    """Which documents of a dataset, and what of them. With `tokens_field` they are tokenised already."""

    text_field: str = "text"
    tokens_field: str = ""
    row_filters: tuple[RowFilter, ...] = ()
    max_documents: int | None = None

    @property
    def columns(self) -> list[str]:
        """Those of a table that are read."""
        content = self.tokens_field or self.text_field
        return list(dict.fromkeys([content, *(found.column for found in self.row_filters)]))


@dataclass(frozen=True)
class Document:
    """`number` is its place in the dataset, which documents that a filter leaves out have too."""

    number: int
    content: str | TokenIds


def documents(dataset: Dataset, query: DocumentQuery) -> Iterator[Document]:
    """In a fixed order: files by path, rows as they lie.

    Errors: BadRequest DATASET_UNREADABLE with file and place; ARGUMENT_INVALID for a filter of text without columns,
    or one that compares what cannot be compared.
    """
    passing = (Document(number, found) for number, found in enumerate(_contents(dataset, query)) if found is not None)
    yield from itertools.islice(passing, query.max_documents)


def _contents(dataset: Dataset, query: DocumentQuery) -> Iterator[str | TokenIds | None]:
    """Of every document in its turn; None for one that a filter leaves out."""
    if dataset.table is not None:
        yield from (_content(place, row, query) for place, row in _library_rows(dataset, query))
    for file in dataset.files:
        if file.suffix == ".jsonl":
            yield from (_content(place, row, query) for place, row in _jsonl_rows(file))
        elif file.suffix == ".parquet":
            yield from (_content(place, row, query) for place, row in _parquet_rows(file, query))
        else:
            yield _plain_text(file, query)


def _content(place: str, row: Mapping[str, Any], query: DocumentQuery) -> str | TokenIds | None:
    if not all(_passes(place, row, found) for found in query.row_filters):
        return None
    if query.tokens_field:
        return _row_tokens(place, row, query.tokens_field)
    return _row_text(place, row, query.text_field)


def _passes(place: str, row: Mapping[str, Any], found: RowFilter) -> bool:
    """A missing value passes nothing, as with pyarrow's filters."""
    if found.column not in row:
        raise _no_field(place, found.column, row, "dataset.filters")
    value = row[found.column]
    if value is None:
        return False
    try:
        return bool(COMPARISONS[found.comparison](value, found.value))
    except TypeError as error:
        raise BadRequest(
            f"{place}: {found.column} is {value!r}, which does not compare with {found.value!r} by {found.comparison}",
            field="dataset.filters",
            value=f"{found.column} {found.comparison} {found.value!r}",
            allowed=f"a value like {type(value).__name__}",
        ) from error


def _jsonl_rows(file: DatasetFile) -> Iterator[_Row]:
    offset = 0
    with file.open() as lines:
        for number, line in enumerate(iter(lambda: lines.readline(DOCUMENT_BYTES_MAX + 1), b""), start=1):
            _check_size(file, len(line))
            if line.strip():
                yield f"{file.name} line {number}", _json_row(_decode(line, file, offset), file, number)
            offset += len(line)


def _json_row(line: str, file: DatasetFile, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise unreadable(file.name, f"line {number} is not JSON: {error}", "a JSON object a line") from error
    if not isinstance(row, dict):
        raise unreadable(file.name, f"line {number} is not a JSON object", "a JSON object a line")
    return row


def _parquet_rows(file: DatasetFile, query: DocumentQuery) -> Iterator[_Row]:
    try:
        with file.open() as source:
            table = pq.ParquetFile(source)
            there = table.schema_arrow.names
            for column in query.columns:
                if column not in there:
                    raise _missing_column(file.name, column, there, query)
            number = 0
            for batch in table.iter_batches(_PARQUET_BATCH_ROWS, columns=query.columns):
                for row in batch.to_pylist():
                    yield f"{file.name} row {number}", row
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file.name, f"it is not a whole Parquet file: {error}", "Parquet") from error
    except UnicodeDecodeError as error:
        raise unreadable(file.name, f"a text is not UTF-8: {error}", "UTF-8") from error


def _library_rows(dataset: Dataset, query: DocumentQuery) -> Iterator[_Row]:
    for column in query.columns:
        if column not in dataset.table.column_names:
            raise _missing_column(dataset.name, column, dataset.table.column_names, query)
    for number, row in enumerate(dataset.table.select_columns(query.columns)):
        yield f"{dataset.name} row {number}", row


def _plain_text(file: DatasetFile, query: DocumentQuery) -> str:
    if query.tokens_field or query.row_filters:
        field = "dataset.tokens_field" if query.tokens_field else "dataset.filters"
        raise BadRequest(
            f"{file.name} is plain text, without columns",
            field=field,
            value=query.tokens_field or query.row_filters[0].column,
            allowed="a dataset of JSONL or Parquet",
        )
    try:
        with file.open() as source:
            data = source.read(DOCUMENT_BYTES_MAX + 1)
    except OSError as error:
        raise unreadable(file.name, str(error), "a readable file") from error
    _check_size(file, len(data))
    return _decode(data, file, 0)


def _row_text(place: str, row: Mapping[str, Any], text_field: str) -> str:
    if text_field not in row:
        raise _no_field(place, text_field, row, "dataset.text_field")
    text = row[text_field]
    if not isinstance(text, str):
        raise BadRequest(
            f"{place}: {text_field!r} is {type(text).__name__}, not text",
            reason="DATASET_UNREADABLE",
            field="dataset.text_field",
            value=text_field,
            allowed="a column of strings",
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can escape half of a surrogate pair
        raise _not_text(place, error) from error
    return text


def _row_tokens(place: str, row: Mapping[str, Any], tokens_field: str) -> TokenIds:
    if tokens_field not in row:
        raise _no_field(place, tokens_field, row, "dataset.tokens_field")
    ids = row[tokens_field]
    whole = isinstance(ids, list) and all(type(token) is int and 0 <= token <= _ID_MAX for token in ids)
    if not whole:
        raise BadRequest(
            f"{place}: {tokens_field!r} is not a list of token ids",
            reason="DATASET_UNREADABLE",
            field="dataset.tokens_field",
            value=tokens_field,
            allowed="a column of lists of whole numbers from 0",
        )
    return np.asarray(ids, dtype=np.int32)


def _check_size(file: DatasetFile, size: int) -> None:
    if size > DOCUMENT_BYTES_MAX:
        raise BadRequest(
            f"{file.name} has a document of more than {DOCUMENT_BYTES_MAX} bytes, the limit",
            reason="LIMIT_EXCEEDED",
            field="dataset",
            value=f"at least {size}",
            allowed=f"at most {DOCUMENT_BYTES_MAX}",
        )


def _not_text(place: str, error: UnicodeError) -> BadRequest:
    return BadRequest(
        f"{place} is not UTF-8: {error}", reason="DATASET_UNREADABLE", field="dataset", value=place, allowed="UTF-8"
    )


def _decode(data: bytes, file: DatasetFile, offset: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        place = offset + error.start
        why = f"byte {data[error.start]:#04x} at offset {place} is not UTF-8"
        raise unreadable(file.name, why, "UTF-8", place) from error


def _missing_column(place: str, column: str, there: list[str], query: DocumentQuery) -> BadRequest:
    if column not in (query.tokens_field, query.text_field):
        return _no_field(place, column, there, "dataset.filters")
    return _no_field(place, column, there, "dataset.tokens_field" if query.tokens_field else "dataset.text_field")


def _no_field(place: str, column: str, there: Any, field: str) -> BadRequest:
    return BadRequest(
        f"{place} has no field {column!r}; it has: {', '.join(there) or 'none'}",
        reason="DATASET_UNREADABLE",
        field=field,
        value=column,
        allowed=sorted(there),
    )
