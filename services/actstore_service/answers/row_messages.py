"""Encodes stored rows as messages of bounded size."""

from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa

from actstore_api.records.terms import Provenance
from actstore_api.rows import encode_rows


def row_messages(
    provenance: Provenance, batches: Iterable[pa.RecordBatch], bytes_max: Callable[[], int]
) -> Iterator[bytes]:
    """Yields messages of at most about `bytes_max()`, which may change. The first has the provenance, and may have no
    rows but their schema.
    """
    parts = (part for batch in batches for part in slices(batch, bytes_max))
    for number, part in enumerate(parts):
        yield encode_rows(part, None if number else provenance)


def slices(batch: pa.RecordBatch, bytes_max: Callable[[], int]) -> Iterator[pa.RecordBatch]:
    """Yields the same rows in batches of at most about `bytes_max()` bytes; at least one batch, for the schema."""
    first = 0
    while not first or first < batch.num_rows:
        rows_max = max(1, batch.num_rows * bytes_max() // max(1, batch.nbytes))
        yield batch.slice(first, rows_max)
        first += rows_max
