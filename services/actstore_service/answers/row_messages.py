"""Encodes stored rows as messages of bounded size."""

from collections.abc import Iterable, Iterator

import pyarrow as pa

from actstore_api.records.terms import Provenance
from actstore_api.rows import encode_rows


def row_messages(provenance: Provenance, batches: Iterable[pa.RecordBatch], batch_bytes: int) -> Iterator[bytes]:
    """Yields messages of at most about `batch_bytes`. The first has the provenance, and may have no rows but their
    schema.
    """
    parts = (part for batch in batches for part in slices(batch, batch_bytes))
    for number, part in enumerate(parts):
        yield encode_rows(part, None if number else provenance)


def slices(batch: pa.RecordBatch, bytes_max: int) -> Iterator[pa.RecordBatch]:
    """Yields the same rows in batches of at most about `bytes_max` bytes; at least one batch, for the schema."""
    rows_max = max(1, batch.num_rows * bytes_max // max(1, batch.nbytes))
    for first in range(0, max(1, batch.num_rows), rows_max):
        yield batch.slice(first, rows_max)
