"""Reads the records of models and SAEs, one or all."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.side_by_side import read_side_by_side
from actstore_storage.errors import corrupt_object
from actstore_storage.format.records import as_record, unseal


class Registered(Protocol):
    """A record that contains its key."""

    @property
    def key(self) -> str: ...


Record = TypeVar("Record", bound=Registered)


def read_all_registered(bucket: Bucket, keys: Sequence[str], kind: type[Record]) -> list[Record]:
    """Reads all existing records. Errors: CorruptObject."""

    def read(key: str) -> Record | None:
        try:
            return read_registered(bucket, key, kind)
        except KeyError:
            return None

    return [record for record in read_side_by_side(read, keys) if record is not None]


def read_registered(bucket: Bucket, key: str, kind: type[Record]) -> Record:
    """Reads a record. Errors: KeyError if there is none; CorruptObject, also for a record under another key."""
    record = unseal(bucket.get(key), key, lambda fields: as_record(fields, kind))
    if record.key != key:
        raise corrupt_object(key, f"{key} holds the record of {record.key}")
    return record
