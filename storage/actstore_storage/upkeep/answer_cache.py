"""A cache of answers that took long to compute. Nothing else depends on it.

An incomplete or damaged answer counts as missing: it is computed again, and replaced.
"""

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actstore_storage.bucket import Bucket
from actstore_storage.errors import CorruptObject
from actstore_storage.format.keys import kept_folder, kept_key, kept_object_key
from actstore_storage.format.records import seal, unseal

_FORMAT = 2


@dataclass(frozen=True)
class KeptAnswer:
    """A cached answer. `record` is plain JSON."""

    record: Mapping[str, Any]
    tables: Mapping[str, pa.Table]


def read_kept(bucket: Bucket, sha256: str) -> KeptAnswer | None:
    """Reads an answer; None if there is no complete one. Errors: StoreError."""
    manifest = _manifest(bucket, sha256)
    if manifest is None:
        return None
    tables = {}
    for name, item in manifest["objects"].items():
        data = _whole(bucket, item)
        if data is None:
            return None
        tables[name] = pq.ParquetFile(pa.BufferReader(data)).read()
    return KeptAnswer(manifest["record"], tables)


def is_kept(bucket: Bucket, sha256: str) -> bool:
    """Whether there is an answer, by its record only, without reading its objects. Errors: StoreError."""
    return _manifest(bucket, sha256) is not None


def keep(bucket: Bucket, sha256: str, answer: KeptAnswer, *, replace: bool = False) -> None:
    """Stores an answer. The first one is kept, unless `replace` is set or it is incomplete. Errors: StoreError."""
    attempt, objects = uuid.uuid4().hex, {}
    for name, table in answer.tables.items():
        key, data = kept_object_key(sha256, attempt, name), _parquet(table)
        bucket.put(key, data)
        objects[name] = {"key": key, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    text = seal({"format": _FORMAT, "answer": sha256, "record": answer.record, "objects": objects})
    if bucket.put_if_absent(kept_key(sha256), text):
        return
    if replace or read_kept(bucket, sha256) is None:
        bucket.put(kept_key(sha256), text)
    remove_unnamed(bucket, sha256)


def remove_unnamed(bucket: Bucket, sha256: str) -> list[str]:
    """Removes objects that the record does not name: of an answer that was replaced, or came second."""
    found = unnamed(bucket, sha256)
    for key in found:
        bucket.delete(key)
    return found


def unnamed(bucket: Bucket, sha256: str) -> list[str]:
    """The objects below an answer that its record does not name."""
    manifest = _manifest(bucket, sha256)
    named = {kept_key(sha256)} | ({item["key"] for item in manifest["objects"].values()} if manifest else set())
    return [key for key in bucket.keys(kept_folder(sha256)) if key not in named]


def remove_kept(bucket: Bucket, sha256: str) -> list[str]:
    """Removes a whole answer, beginning with the record that makes it visible."""
    bucket.delete(kept_key(sha256))
    return [kept_key(sha256), *remove_unnamed(bucket, sha256)]


def _manifest(bucket: Bucket, sha256: str) -> dict[str, Any] | None:
    key = kept_key(sha256)
    try:
        found = unseal(bucket.get(key), key, dict, sealed=True)
    except (KeyError, CorruptObject):
        return None
    return found if (found.get("format"), found.get("answer")) == (_FORMAT, sha256) else None


def _whole(bucket: Bucket, item: Mapping[str, Any]) -> bytes | None:
    try:
        data = bucket.get(item["key"])
    except KeyError:
        return None
    return data if hashlib.sha256(data).hexdigest() == item["sha256"] else None


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    data: bytes = sink.getvalue().to_pybytes()
    return data
