"""Turns records into protobuf's JSON for their messages, and back, for data that is stored or read by people.

Fields have the contract's own names. Absent and default values are left out.
"""

from typing import Any, TypeVar

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from actstore_api.codec import decode, encode, message_of

Record = TypeVar("Record")


def to_json(record: Any) -> dict[str, Any]:
    """Write a record as plain JSON. Errors: Unreadable, as encode."""
    return MessageToDict(encode(record), preserving_proto_field_name=True)


def from_json(kind: type[Record], said: dict[str, Any]) -> Record:
    """Read the record of this kind from plain JSON.

    Errors: ValueError for fields that its message does not have, and for invalid values; as decode.
    """
    message = message_of(kind)()
    try:
        ParseDict(said, message)
    except ParseError as error:
        raise ValueError(str(error)) from error
    return decode(kind, message)
