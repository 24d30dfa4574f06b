"""A cache of answers that took long to compute. Nothing else depends on it.

An incomplete or damaged answer counts as missing: it is computed again, and replaced. So any writer may remove any
answer, also while another one writes or reads it.

A list of empty objects says in their names when each answer was stored, and its bytes. An answer is listed before it is
stored, and leaves the list after it is removed, so that none is left outside of it.
"""

import hashlib
import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actstore_storage.bucket import Bucket
from actstore_storage.errors import CorruptObject
from actstore_storage.format.keys import KEPT, KEPT_LIST, kept_entry_key, kept_folder, kept_key, kept_object_key
from actstore_storage.format.records import seal, unseal

_FORMAT = 2
_DAY_SECONDS = 86_400
_ENTRY = re.compile(rf"{KEPT_LIST}/(\d{{12}})-(\d{{15}})-([0-9a-f]+)")


@dataclass(frozen=True)
class KeptLimits:
    """How much is kept of all answers together; beyond it, the oldest are removed."""

    answers: int = 10_000
    bytes: int = 16 * 2**30
    days: int = 90


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


def keep(
    bucket: Bucket,
    sha256: str,
    answer: KeptAnswer,
    *,
    replace: bool = False,
    limits: KeptLimits = KeptLimits(),
    now: Callable[[], float] = time.time,
) -> None:
    """Stores an answer, and removes the oldest beyond the limits. The first one is kept, unless `replace` is set or it
    is incomplete. Errors: StoreError.
    """
    attempt, objects = uuid.uuid4().hex, {}
    written = {name: _parquet(table) for name, table in answer.tables.items()}
    bucket.put(kept_entry_key(int(now()), sum(map(len, written.values())), sha256), b"")
    for name, data in written.items():
        key = kept_object_key(sha256, attempt, name)
        bucket.put(key, data)
        objects[name] = {"key": key, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    _record(bucket, sha256, answer, objects, replace=replace)
    remove_oldest(bucket, limits, now)


def _record(bucket: Bucket, sha256: str, answer: KeptAnswer, objects: Mapping[str, Any], *, replace: bool) -> None:
    text = seal({"format": _FORMAT, "answer": sha256, "record": answer.record, "objects": objects})
    if bucket.put_if_absent(kept_key(sha256), text):
        return
    if replace or read_kept(bucket, sha256) is None:
        bucket.put(kept_key(sha256), text)
    remove_unnamed(bucket, sha256)


def remove_oldest(bucket: Bucket, limits: KeptLimits, now: Callable[[], float] = time.time) -> list[str]:
    """Removes the oldest answers until all that are left are within the limits, and returns their names. Of several
    entries of one answer, the newest counts. Errors: StoreError.
    """
    _list_unlisted(bucket, now)
    entries = sorted(_entries(bucket), reverse=True)
    oldest = int(now()) - limits.days * _DAY_SECONDS
    kept: set[str] = set()
    removed, size = [], 0
    for entry in entries:
        if entry.sha256 in kept:
            bucket.delete(entry.key)
            continue
        size += entry.size
        if entry.seconds >= oldest and len(kept) < limits.answers and size <= limits.bytes:
            kept.add(entry.sha256)
            continue
        size -= entry.size
        remove_kept(bucket, entry.sha256)
        bucket.delete(entry.key)
        removed.append(entry.sha256)
    return removed


@dataclass(frozen=True, order=True)
class _Entry:
    seconds: int
    size: int
    sha256: str
    key: str


def _entries(bucket: Bucket) -> list[_Entry]:
    """The list; names that are not of actstore are left out, and left alone."""
    found = ((key, _ENTRY.fullmatch(key)) for key in bucket.keys(KEPT_LIST))
    return [_Entry(int(match[1]), int(match[2]), match[3], key) for key, match in found if match]


def _list_unlisted(bucket: Bucket, now: Callable[[], float]) -> None:
    """Lists answers that an earlier version stored, as of today. Some stores list an emptied folder for a while."""
    listed = {entry.sha256 for entry in _entries(bucket)}
    for sha256 in set(bucket.folders(KEPT)) - listed:
        if manifest := _manifest(bucket, sha256):
            size = sum(item["bytes"] for item in manifest["objects"].values())
            bucket.put(kept_entry_key(int(now()), size, sha256), b"")


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
