"""The sources of documents: a file of the dataset and a row in it, or the value of a source column.

Sources are stored with the tokens, in the same object, so that showing tokens needs no other object. Runs captured by
early versions have none.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

# Instead of a row number: the document is its whole file, or its source is a column's value.
WHOLE = -1
SOURCE_COLUMNS = ("source", "row")
# The fields in answers; null if a run does not have them, and no row for WHOLE.
SOURCE_FIELDS = (pa.field("source", pa.string()), pa.field("row", pa.int64()))


@dataclass(frozen=True)
class DocumentSources:
    """The sources of documents with these numbers, which ascend. Columns of equal length; `source` has strings."""

    numbers: npt.NDArray[np.int64]
    source: npt.NDArray[np.object_]
    row: npt.NDArray[np.int64]

    def take(self, documents: npt.NDArray[np.int64]) -> "DocumentSources":
        """The sources of these documents, each given once. Errors: ValueError for one that does not exist."""
        numbers = np.unique(documents)
        places = self._places(numbers)
        return DocumentSources(numbers, self.source[places], self.row[places])

    def columns(self, documents: npt.NDArray[np.int64]) -> list[pa.Array]:
        """Source and row of each of these documents, in their order, which may repeat."""
        places = self._places(documents)
        return [self._texts.take(pa.array(places)), pa.array(self.row[places])]

    @cached_property
    def _texts(self) -> pa.StringArray:
        return pa.array(self.source, pa.string())

    def _places(self, documents: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        places = np.searchsorted(self.numbers, documents)
        there = places < len(self.numbers)
        if not there.all() or (self.numbers[places] != documents).any():
            raise ValueError("a document's source is empty")
        return places


def source_columns(file: pq.ParquetFile) -> tuple[str, ...]:
    """The columns of sources that an object of tokens has."""
    return SOURCE_COLUMNS if SOURCE_COLUMNS[0] in file.schema_arrow.names else ()


def source_of(tokens: pa.Table, place: int) -> tuple[str | None, int | None]:
    """Source and row of one row of a shard's tokens, as in SOURCE_FIELDS."""
    if SOURCE_COLUMNS[0] not in tokens.column_names:
        return None, None
    source, row = (tokens[name][place].as_py() for name in SOURCE_COLUMNS)
    return source, None if row == WHOLE else row


def answered(tokens: pa.Table) -> list[pa.Array]:
    """Source and row of each row of a shard's tokens, as in SOURCE_FIELDS."""
    if SOURCE_COLUMNS[0] not in tokens.column_names:
        return [pa.nulls(len(tokens), field.type) for field in SOURCE_FIELDS]
    source, row = (tokens[name].combine_chunks() for name in SOURCE_COLUMNS)
    return [source, pa.array(row.to_numpy(), mask=row.to_numpy() == WHOLE)]
