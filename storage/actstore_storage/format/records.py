"""Records: the bucket's small JSON objects, each of which contains its own hash.

A record is canonical JSON whose last member, `record_sha256`, is the SHA-256 of the same record without that member.
The hash is over the bytes in the bucket, so that checking it needs no re-encoding. Records before format version 4 have
no hash. They are still checked to be canonical JSON, as they were written, which detects a repeated member or a byte
after the end.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache, partial
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from actstore_storage.errors import BadRequest, damaged

_SEAL, _END = b',"record_sha256":"', b'"}'
_SEAL_BYTES = len(_SEAL) + 64 + len(_END)

Record = TypeVar("Record")
Check = Callable[[Any], None]


def canonical_json(value: object) -> bytes:
    """Writes JSON in its unique canonical form."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def seal(fields: Mapping[str, Any]) -> bytes:
    """Writes the record of these fields, at least one, with its hash."""
    text = canonical_json(fields)
    return text[:-1] + _SEAL + hashlib.sha256(text).hexdigest().encode() + _END


def unseal(data: bytes, key: str, build: Callable[[dict[str, Any]], Record], *, sealed: bool = False) -> Record:
    """Reads a record, and returns the result of `build` on its fields.

    `sealed`: it must have its hash; a record without one is damaged, and not one of an earlier format. Errors:
    CorruptObject with the key, also if `build` finds a missing or unknown field.
    """
    try:
        return build(_members(data, sealed))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, BadRequest) as error:
        raise damaged(key, error, kind="record") from error


def fields_in_common(record: Any, kind: type[Any]) -> dict[str, Any]:
    """The fields of a record that another kind has with the same name, with their values."""
    names = {field.name for field in fields(kind)}
    return {field.name: getattr(record, field.name) for field in fields(record) if field.name in names}


def as_record(found: Any, kind: type[Record]) -> Record:
    """Makes a dataclass from fields, which must be exactly its fields with the right types, at any depth.

    Errors: ValueError.
    """
    record = msgspec.convert(found, kind)
    if check := _check_of(kind):
        check(found)  # msgspec ignores fields that a dataclass does not have
    return record


def _new_check(kind: Any) -> Check | None:
    """A check that refuses unknown fields at any depth, for data of the right type; None for a type without
    dataclasses.
    """
    if is_dataclass(kind):
        return _check_fields(kind)
    inner = next((check for each in get_args(kind) if (check := _check_of(each))), None)
    if inner is None:
        return None
    return partial(_check_each, inner, iter if get_origin(kind) is tuple else dict.values)


_check_of: Callable[[Any], Check | None] = lru_cache(_new_check)


def _check_each(check: Check, each: Callable[[Any], Iterable[Any]], found: Any) -> None:
    for one in each(found):
        check(one)


def _check_fields(kind: Any) -> Check:
    names, hints = frozenset(field.name for field in fields(kind)), get_type_hints(kind)
    nested = {name: inner for name in names if (inner := _check_of(hints[name]))}

    def check(found: dict[str, Any]) -> None:
        if not found.keys() <= names:
            raise ValueError(f"it has unknown fields: {', '.join(sorted(found.keys() - names))}")
        for name, inner in nested.items():
            if name in found:
                inner(found[name])

    return check


def is_sealed(data: bytes) -> bool:
    """Whether there is a hash at the record's end, right or wrong."""
    return data[-_SEAL_BYTES:].startswith(_SEAL) and data.endswith(_END)


def _members(data: bytes, sealed: bool) -> dict[str, Any]:
    """Errors: ValueError."""
    if is_sealed(data):
        text = data[:-_SEAL_BYTES] + b"}"
        if hashlib.sha256(text).hexdigest().encode() != data[-64 - len(_END) : -len(_END)]:
            raise ValueError("its bytes do not match its record_sha256")
        found = _parsed(text)
    else:
        found = _parsed(data)
        if sealed:
            raise ValueError("it has no record_sha256, which every record of this format has")
        if canonical_json(found) != data:
            raise ValueError("it is not canonical JSON")
    if not isinstance(found, dict):
        raise TypeError("it is not a JSON object")
    return found


def _parsed(text: bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return json.loads(text)  # accepts infinities, too, which configurations of models may have
