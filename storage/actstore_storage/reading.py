"""Opening the objects that a commit names, and telling a damaged object from a store that fails."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from actstore_storage.bucket import Bucket
from actstore_storage.commit import Commit
from actstore_storage.errors import CorruptObject


@contextmanager
def open_product(bucket: Bucket, commit: Commit, product: str, *, verify: bool = True) -> Iterator[pq.ParquetFile]:
    """Raises CorruptObject, here or while the block reads, where the bytes are not what the commit says.

    Without `verify` the pages' checksums are not computed: for who has read the same pages before.
    """
    record = commit.objects[product]
    try:
        with bucket.open(record.key) as source:
            if source.size() != record.bytes:
                raise _corrupt(commit, record.key, f"it has {source.size()} bytes, its commit says {record.bytes}")
            yield pq.ParquetFile(source, page_checksum_verification=verify)
    except KeyError:
        raise _corrupt(commit, record.key, "it is not there") from None
    except (OSError, pa.ArrowException) as error:
        failure = bucket.store_error(error) if isinstance(error, OSError) else None
        raise failure or _corrupt(commit, record.key, str(error).strip()) from error


def _corrupt(commit: Commit, key: str, what: str) -> CorruptObject:
    message = f"object {key} of run {commit.run}, shard {commit.shard} is damaged: {what}"
    return CorruptObject(message, field="object", value=key)
