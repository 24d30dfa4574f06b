"""Opens objects that a commit or an index names, and distinguishes damaged objects from failures of the store."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from actstore_storage.bucket import Bucket, told_apart
from actstore_storage.errors import damaged
from actstore_storage.format.commit import Commit
from actstore_storage.format.products import ObjectRecord
from actstore_storage.parquet.pages import footer_bytes, footer_of

# Bytes at an object's end that are read first: more than most footers have, and as many as Arrow reads.
_END_BYTES = 64 << 10


@contextmanager
def open_product(
    bucket: Bucket, commit: Commit, product: str, *, verify: bool = True, footer: pq.FileMetaData | None = None
) -> Iterator[pq.ParquetFile]:
    """Opens one object of a shard, as `open_record`."""
    with open_record(bucket, commit.objects[product], _owner(commit), verify=verify, footer=footer) as file:
        yield file


@contextmanager
def open_product_source(bucket: Bucket, commit: Commit, product: str) -> Iterator[pa.NativeFile]:
    """Opens the bytes of one object of a shard, as `open_product`."""
    record, owner = commit.objects[product], _owner(commit)
    with reading_errors(bucket, record, owner), open_source(bucket, record, owner) as source:
        yield source


@contextmanager
def open_record(
    bucket: Bucket, record: ObjectRecord, owner: str, *, verify: bool = True, footer: pq.FileMetaData | None = None
) -> Iterator[pq.ParquetFile]:
    """Opens an object that a record names. Raises CorruptObject, here or while the block reads, if the bytes do not
    match the record.

    Without `verify` the pages' checksums are not computed, for code that has read the same pages before. `footer`: the
    one that was read before and is kept.
    """
    with reading_errors(bucket, record, owner), open_source(bucket, record, owner) as source:
        if footer is None and record.footer_sha256:
            footer = _footer(source, record, owner)
        yield pq.ParquetFile(source, metadata=footer, page_checksum_verification=verify)


def open_source(bucket: Bucket, record: ObjectRecord, owner: str) -> pa.NativeFile:
    """Opens the bytes of an object, as many as its record says. Errors of the store are not yet distinguished."""
    source = bucket.open(record.key)
    if source.size() != record.bytes:
        found = source.size()
        source.close()
        raise damaged(record.key, f"it has {found} bytes, but its record says {record.bytes}", owner=owner)
    return source


def _footer(source: pa.NativeFile, record: ObjectRecord, owner: str) -> pq.FileMetaData:
    """Reads the footer in one read, as Arrow does, and checks its bytes."""
    source.seek(max(0, record.bytes - _END_BYTES))
    end = source.read()
    try:
        if footer_bytes(end) > len(end):
            source.seek(max(0, record.bytes - footer_bytes(end)))
            end = source.read()
        footer = footer_of(end)
    except ValueError as error:
        raise damaged(record.key, error, owner=owner) from error
    if hashlib.sha256(footer).hexdigest() != record.footer_sha256:
        raise damaged(record.key, "its footer does not match the hash in its record", owner=owner)
    return pq.read_metadata(pa.BufferReader(footer))


@contextmanager
def reading_errors(bucket: Bucket, record: ObjectRecord, owner: str) -> Iterator[None]:
    """Distinguishes errors in the block: failures of the store, or CorruptObject for a damaged object."""
    try:
        yield
    except KeyError:
        raise damaged(record.key, "it is missing", owner=owner) from None
    except (OSError, pa.ArrowException) as error:
        raise told_apart(bucket, error, damaged(record.key, error, owner=owner)) from error


def at_least_one(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Passes batches on, and an empty one for its schema if there are none."""
    first = next(batches, None)
    yield pa.RecordBatch.from_pylist([], schema) if first is None else first
    yield from batches


def _owner(commit: Commit) -> str:
    return f"run {commit.run}, shard {commit.shard}"
