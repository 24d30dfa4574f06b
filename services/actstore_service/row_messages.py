"""Sends stored rows in messages of bounded size, which are prepared ahead of the caller."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import pyarrow as pa

from actstore_api.records.terms import Provenance
from actstore_api.rows import encode_rows

# Messages that are prepared while one is sent.
_AHEAD = 8

Item = TypeVar("Item")


def row_messages(provenance: Provenance, batches: Iterable[pa.RecordBatch], batch_bytes: int) -> Iterator[bytes]:
    """Yields messages of at most about `batch_bytes`. The first has the provenance, and may have no rows but their
    schema.
    """
    parts = (part for batch in batches for part in slices(batch, batch_bytes))
    return ahead(encode_rows(part, None if number else provenance) for number, part in enumerate(parts))


def slices(batch: pa.RecordBatch, bytes_max: int) -> Iterator[pa.RecordBatch]:
    """Yields the same rows in batches of at most about `bytes_max` bytes; at least one batch, for the schema."""
    rows_max = max(1, batch.num_rows * bytes_max // max(1, batch.nbytes))
    for first in range(0, max(1, batch.num_rows), rows_max):
        yield batch.slice(first, rows_max)


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yields the same items, produced by a separate thread while the caller handles earlier ones."""
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
