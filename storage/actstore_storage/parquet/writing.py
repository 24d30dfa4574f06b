"""Writes one Parquet object of a shard in whole row groups, and hashes the bytes."""

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pyarrow as pa
import pyarrow.parquet as pq

from actstore_storage.bucket import Bucket
from actstore_storage.format.products import ObjectFormat, ObjectRecord
from actstore_storage.parquet.pages import footer_of

# In each object's metadata: its identity.
_OF_KEY = "actstore.of"
# A page stays in a core's cache while it is encoded, checked and written: dense rows were written 1.6 times as fast as
# in pages of a megabyte, which is Arrow's default.
PAGE_BYTES = 256 << 10
# Bytes that are passed on together. Arrow writes the head of each page apart, and pages of few bytes where rows are
# narrow: one at a time, handing them to the other thread took longer than encoding them.
_PIECE_BYTES = 256 << 10
# Pieces that may wait for the digest; with more, the writer waits too.
_DIGEST_QUEUE = 64


class ObjectWriter:
    """Collects rows into row groups of `group_rows`. Row groups that arrive complete are not copied."""

    def __init__(self, stream: "DigestStream", layout: ObjectFormat) -> None:
        self._layout = layout
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self.rows = 0
        self._stream = stream
        self._parquet = pq.ParquetWriter(
            stream,
            layout.schema,
            compression=layout.compression,
            use_dictionary=list(layout.dictionaries) or False,
            write_statistics=list(layout.statistics) or False,
            write_page_index=bool(layout.statistics),
            write_page_checksum=True,
            data_page_size=PAGE_BYTES,
        )

    def write(self, columns: list[pa.Array]) -> None:
        """Columns of equal length in the schema's order. The caller may change them afterwards."""
        table = pa.Table.from_arrays(columns, schema=self._layout.schema)
        if not table.num_rows:
            return
        self.rows += table.num_rows
        self._pending.append(table)
        self._pending_rows += table.num_rows
        whole = self._pending_rows - self._pending_rows % self._layout.group_rows
        if whole:
            self._flush(whole)
        if self._pending:
            self._pending[-1] = _copied(self._pending[-1])

    def finish(self, of: str) -> None:
        """`of`: the object's identity, so that no other can be read in its place, even with the same number
        of bytes.
        """
        if self._pending_rows:
            self._flush(self._pending_rows)
        self._parquet.add_key_value_metadata({_OF_KEY: of})
        self._stream.keep_end()
        self._parquet.close()

    def abandon(self) -> None:
        """Closes pyarrow's writer now; otherwise it would write its footer when it is garbage-collected."""
        self._pending = []
        with suppress(OSError, pa.ArrowException):
            self._parquet.close()

    def _flush(self, rows: int) -> None:
        table = pa.concat_tables(self._pending)
        self._parquet.write_table(table.slice(0, rows), row_group_size=self._layout.group_rows)
        self._pending_rows -= rows
        self._pending = [table.slice(rows)] if self._pending_rows else []


class DigestStream:
    """A file for pyarrow that passes bytes on and computes their SHA-256 on its own thread.

    On the writer's thread the digest would add half of a dense write's time (1.8 GB/s against 1 GB/s). hashlib releases
    the interpreter's lock, so it runs in parallel with encoding and the file system.
    """

    closed = False
    abandoned = False  # from then on bytes are discarded

    def __init__(self, stream: pa.NativeFile, digester: ThreadPoolExecutor) -> None:
        self.bytes = 0
        self._stream, self._digester = stream, digester
        self._digest = hashlib.sha256()
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._waiting: deque[Future[None]] = deque()
        self._end: list[bytes] | None = None

    def write(self, data: bytes) -> int:
        if self.abandoned:
            return len(data)
        self._gathered.append(data)
        self._gathered_bytes += len(data)
        if self._gathered_bytes >= _PIECE_BYTES:
            self.pass_on()
        self.bytes += len(data)
        if self._end is not None:
            self._end.append(bytes(data))
        return len(data)

    def pass_on(self) -> None:
        """Writes and hashes what was gathered."""
        piece, self._gathered, self._gathered_bytes = b"".join(self._gathered), [], 0
        self._waiting.append(self._digester.submit(self._digest.update, piece))
        if len(self._waiting) > _DIGEST_QUEUE:
            self._waiting.popleft().result()
        self._stream.write(piece)

    def keep_end(self) -> None:
        """Keeps the bytes written from here on, which contain the footer."""
        self._end = []

    def flush(self) -> None:
        """Does nothing: the bucket's stream flushes when it ends."""

    def close(self) -> None:
        """Does nothing: the bucket ends its own stream."""

    @property
    def footer_sha256(self) -> str:
        return hashlib.sha256(footer_of(b"".join(self._end or ()))).hexdigest()

    @property
    def sha256(self) -> str:
        while self._waiting:
            self._waiting.popleft().result()
        return self._digest.hexdigest()


class OpenObject:
    """One object between its first row and its record."""

    def __init__(self, key: str, stream: pa.NativeFile, layout: ObjectFormat, digester: ThreadPoolExecutor) -> None:
        self._key = key
        self._digest = DigestStream(stream, digester)
        self._writer = ObjectWriter(self._digest, layout)
        self.write = self._writer.write

    def finish(self, of: str) -> ObjectRecord:
        """`of`: the object's identity, which is written to its footer."""
        self._writer.finish(of)
        digest = self._digest
        digest.pass_on()
        return ObjectRecord(self._key, digest.bytes, self._writer.rows, digest.sha256, digest.footer_sha256)

    def abandon(self) -> None:
        self._digest.abandoned = True
        self._writer.abandon()


@contextmanager
def open_object(bucket: Bucket, key: str, layout: ObjectFormat, digester: ThreadPoolExecutor) -> Iterator[OpenObject]:
    """Opens an object for writing. The object is in the bucket once the block ends without an exception; call `finish`
    before.
    """
    with bucket.create(key) as stream:
        item = OpenObject(key, stream, layout, digester)
        try:
            yield item
        except BaseException:
            item.abandon()
            raise


def _copied(table: pa.Table) -> pa.Table:
    """Rows in our own memory, because the caller may reuse its arrays."""
    [batch] = table.combine_chunks().to_batches()
    return pa.Table.from_batches([pa.ipc.read_record_batch(batch.serialize(), batch.schema)])
