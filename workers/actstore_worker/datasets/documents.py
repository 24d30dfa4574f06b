"""Reads documents from the rows of tables, and from plain text.

A table has one document per row; a plain-text file is one document. Text must be UTF-8: a document that was silently
repaired would no longer be the original.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from actstore_storage.errors import BadRequest
from actstore_storage.format.specification import RowFilter
from actstore_storage.runs.document_sources import WHOLE
from actstore_worker.datasets.files import Dataset, DatasetFile
from actstore_worker.datasets.limits import Reading
from actstore_worker.datasets.row_filters import PreparedFilter, compares_text, no_field
from actstore_worker.datasets.rows import Row, WantedColumns, plain_text, table_rows

_ID_MAX = np.iinfo(np.int32).max
# The longest source of a document from a column, such as a URL or an identifier.
SOURCE_CHARACTERS_MAX = 4096
# What transformers' tokenizers return with token ids: 1 for a token, 0 for padding.
MASK_FIELD = "attention_mask"

# Of code that reads all of a dataset for itself, within the usual limits.
UNWATCHED = Reading()

TokenIds = Int[NDArray[np.int32], " token"]


@dataclass(frozen=True)
class DocumentQuery:
    """Which documents of a dataset are read, and which columns. With `tokens_field` they are tokenized already; with
    `source_field` a document's source is that column's value, instead of its file and row.
    """

    text_field: str = "text"
    tokens_field: str = ""
    source_field: str = ""
    row_filters: tuple[RowFilter, ...] = ()
    max_documents: int | None = None

    @property
    def columns(self) -> list[str]:
        """The columns of a table that are read."""
        named = [self.tokens_field or self.text_field, self.source_field, *(found.column for found in self.row_filters)]
        return list(dict.fromkeys(name for name in named if name))

    @property
    def wanted(self) -> WantedColumns:
        """Without types in a table, a text column is read as text."""
        texts = {found.column for found in self.row_filters if compares_text(found)}
        texts |= {self.text_field, self.source_field} - {""}
        return WantedColumns(self.columns, sorted(texts), self._missing, (MASK_FIELD,) if self.tokens_field else ())

    def field_of(self, column: str) -> str:
        """The field of the request that names a column."""
        for name in ("tokens_field", "text_field", "source_field"):
            if column == getattr(self, name):
                return f"dataset.{name}"
        return "dataset.row_filters"

    def _missing(self, place: str, column: str, there: Sequence[str]) -> BadRequest:
        return no_field(place, column, there, self.field_of(column))


@dataclass(frozen=True)
class Document:
    """One document. `number` counts the documents of the dataset from 0, including those that a filter leaves out.
    `source` is the document's file in the dataset, and `row` its row there, WHOLE for a file that is one document. With
    `source_field`, `source` is that column's value, and `row` is WHOLE.
    """

    number: int
    content: str | TokenIds
    source: str = ""
    row: int = WHOLE


def documents(dataset: Dataset, query: DocumentQuery, reading: Reading = UNWATCHED) -> Iterator[Document]:
    """Yields documents in a fixed order: files by path, rows as they are stored.

    Errors: BadRequest DATASET_UNREADABLE with file and place; ARGUMENT_INVALID for a filter on text without columns, or
    one that compares values of different kinds; LIMIT_EXCEEDED for a document that is too long; StoreError if the store
    of the files fails; ActstoreError CANCELLED once nobody waits.
    """
    numbered = enumerate(_documents(dataset, query, reading))
    passing = (Document(number, *found) for number, found in numbered if found is not None)
    yield from itertools.islice(passing, query.max_documents)


_Found = tuple[str | TokenIds, str, int]


def _documents(dataset: Dataset, query: DocumentQuery, reading: Reading) -> Iterator[_Found | None]:
    """Yields every document in order; None for one that a filter leaves out."""
    filters = tuple(map(PreparedFilter, query.row_filters))
    if dataset.table is not None:
        for row in _library_rows(dataset, query):
            reading.check()
            yield _document(row, dataset.name, query, filters, reading)
    for file in dataset.files:
        if file.kind.rows:
            for row in table_rows(file, query.wanted, reading):
                yield _document(row, file.name, query, filters, reading)
        else:
            _check_no_columns(file, query)
            text = plain_text(file, reading)
            reading.check_document(file.name, len(text))
            yield text, file.name, WHOLE


def _document(
    row: Row, file: str, query: DocumentQuery, filters: Sequence[PreparedFilter], reading: Reading
) -> _Found | None:
    if not all(each.passes(row.place, row.columns) for each in filters):
        return None
    content = _row_tokens(row, query.tokens_field) if query.tokens_field else _row_text(row, query.text_field)
    check = reading.check_tokens if query.tokens_field else reading.check_document
    check(row.place, len(content))
    if query.source_field:
        return content, _row_source(row, query.source_field), WHOLE
    return content, file, row.number


def _library_rows(dataset: Dataset, query: DocumentQuery) -> Iterator[Row]:
    names = query.wanted.choose(dataset.name, dataset.table.column_names)
    for number, columns in enumerate(dataset.table.select_columns(names)):
        yield Row(f"{dataset.name} row {number}", number, columns)


def _check_no_columns(file: DatasetFile, query: DocumentQuery) -> None:
    for column in query.columns:
        if column != query.text_field:
            raise BadRequest(
                f"{file.name} is plain text and has no columns",
                field=query.field_of(column),
                value=column,
                allowed="a dataset of JSON, Parquet, Arrow or CSV",
            )


def _row_text(row: Row, text_field: str) -> str:
    text = _value(row, text_field, "dataset.text_field")
    if not isinstance(text, str):
        raise _not_that(row, text_field, "dataset.text_field", "text", "a column of strings")
    return _unicode(row, text)


def _row_source(row: Row, source_field: str) -> str:
    """The source of a row; empty if it is missing."""
    value = _value(row, source_field, "dataset.source_field")
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        allowed = "a column of strings or whole numbers"
        raise _not_that(row, source_field, "dataset.source_field", "text or a whole number", allowed)
    text = str(value)
    if len(text) > SOURCE_CHARACTERS_MAX:
        raise BadRequest(
            f"{row.place}: {source_field!r} has {len(text)} characters",
            reason="LIMIT_EXCEEDED",
            field="dataset.source_field",
            value=source_field,
            allowed=f"at most {SOURCE_CHARACTERS_MAX}",
        )
    return _unicode(row, text)


def _row_tokens(row: Row, tokens_field: str) -> TokenIds:
    ids = _value(row, tokens_field, "dataset.tokens_field")
    whole = isinstance(ids, list) and all(type(token) is int and 0 <= token <= _ID_MAX for token in ids)
    if not whole:
        allowed = "a column of lists of whole numbers from 0"
        raise _not_that(row, tokens_field, "dataset.tokens_field", "a list of token ids", allowed)
    return _without_padding(row, np.asarray(ids, dtype=np.int32))


def _without_padding(row: Row, ids: TokenIds) -> TokenIds:
    """The token ids without padding, if the row has an attention mask: the model reads no others."""
    if row.columns.get(MASK_FIELD) is None:
        return ids
    mask = row.columns[MASK_FIELD]
    known = isinstance(mask, list) and len(mask) == len(ids) and all(value in (0, 1) for value in mask)
    places = np.flatnonzero(mask) if known else np.empty(0)
    if not known or (np.diff(places) != 1).any():
        raise BadRequest(
            f"{row.place}: its {MASK_FIELD} is not valid: its 1s must be contiguous, with padding only before or after",
            reason="DATASET_UNREADABLE",
            field="dataset.tokens_field",
            value=MASK_FIELD,
            allowed="a 1 for each token and a 0 for padding",
        )
    return ids[places]


def _value(row: Row, column: str, field: str) -> Any:
    if column not in row.columns:
        raise no_field(row.place, column, row.columns, field)
    return row.columns[column]


def _unicode(row: Row, text: str) -> str:
    """JSON can contain half of an escaped surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(
            f"{row.place} is not UTF-8: {error}",
            reason="DATASET_UNREADABLE",
            field="dataset",
            value=row.place,
            allowed="UTF-8",
        ) from error
    return text


def _not_that(row: Row, column: str, field: str, wanted: str, allowed: str) -> BadRequest:
    return BadRequest(
        f"{row.place}: {column!r} is {type(row.columns[column]).__name__}, not {wanted}",
        reason="DATASET_UNREADABLE",
        field=field,
        value=column,
        allowed=allowed,
    )
