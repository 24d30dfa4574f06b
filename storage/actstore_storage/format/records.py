"""Records: the bucket's small JSON objects, each of which carries its own hash.

A record is canonical JSON whose last member, `record_sha256`, is the SHA-256 of the same record without that member. It
is over the bytes as they lie in the bucket, so that reading it costs one hash and nothing is written again to compare.
Records of before format version 4 have no hash. They are still checked to be canonical JSON, as they were written: a
doubled member, or a byte behind the end, is noticed.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from actstore_storage.errors import BadRequest, CorruptObject

_SEAL, _END = b',"record_sha256":"', b'"}'
_SEAL_BYTES = len(_SEAL) + 64 + len(_END)

Record = TypeVar("Record")


def canonical_json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def seal(fields: Mapping[str, Any]) -> bytes:
    """The record of these fields, of which there is at least one."""
    text = canonical_json(fields)
    return text[:-1] + _SEAL + hashlib.sha256(text).hexdigest().encode() + _END


def unseal(data: bytes, key: str, build: Callable[[dict[str, Any]], Record], *, sealed: bool = False) -> Record:
    """What `build` makes of a record's fields.

    `sealed`: it has to have its hash, so that a record without one is damaged, and not one of an earlier format.
    Errors: CorruptObject with the key, also where `build` finds a field too many or too few.
    """
    try:
        return build(_fields(data, sealed))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, BadRequest) as error:
        raise CorruptObject(f"record {key} is damaged: {error}", field="object", value=key) from error


def is_sealed(data: bytes) -> bool:
    """Whether there is a hash at the record's end, right or wrong."""
    return data[-_SEAL_BYTES:].startswith(_SEAL) and data.endswith(_END)


def _fields(data: bytes, sealed: bool) -> dict[str, Any]:
    """Errors: ValueError."""
    if is_sealed(data):
        text = data[:-_SEAL_BYTES] + b"}"
        if hashlib.sha256(text).hexdigest().encode() != data[-64 - len(_END) : -len(_END)]:
            raise ValueError("its bytes are not those that its record_sha256 was made of")
        fields = json.loads(text)
    else:
        fields = json.loads(data)
        if sealed:
            raise ValueError("it has no record_sha256, which every record of this format has")
        if canonical_json(fields) != data:
            raise ValueError("it is not canonical JSON")
    if not isinstance(fields, dict):
        raise TypeError("it is no JSON object")
    return fields
