"""From the bytes of a message to a question that may be answered: parsed, within its bounds, and permitted."""

from typing import Any

from google.protobuf.message import DecodeError, Message

from actstore_api.bounds import check_bounds
from actstore_api.codec import decode, message_of
from actstore_api.shape import Unreadable
from actstore_api.verbs import Verb
from actstore_service.access import Access, Principal
from actstore_service.calls.call import Call
from actstore_service.calls.failures import bad_request
from actstore_storage.errors import ActstoreError, BadRequest


class Questions:
    """Reads questions. It blocks for as long as parsing takes, so it runs on a thread of the call's class."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def read(self, call: Call, verb: Verb, message: bytes) -> Any:
        """Errors: ARGUMENT_INVALID for what is no such question, LIMIT_EXCEEDED beyond a bound, PERMISSION_DENIED."""
        question = _decoded(verb, _parsed(verb, message))
        call.run = str(getattr(question, "run", ""))
        self._access.permit(_caller(call), verb, question)
        return question

    def seen(self, call: Call, verb: Verb, answer: Any) -> Any:
        """The answer without what the caller may not see."""
        return self._access.visible(_caller(call), verb, answer)


def _caller(call: Call) -> Principal:
    if call.principal is None:
        raise ActstoreError("a question was read before its caller was known")
    return call.principal


def _parsed(verb: Verb, message: bytes) -> Message:
    # Not by gRPC's own deserializer: each message that it fails on leaks 19 kB for good and ends as INTERNAL.
    kind = message_of(verb.question)
    try:
        return kind.FromString(message)
    except DecodeError:
        raise BadRequest(
            f"the message of {len(message)} bytes is not a {kind.DESCRIPTOR.name}",
            field="message",
            value=f"{len(message)} bytes",
            allowed=f"a serialized {kind.DESCRIPTOR.full_name}",
        ) from None


def _decoded(verb: Verb, request: Message) -> Any:
    try:
        check_bounds(request)
        return decode(verb.question, request)
    except Unreadable as error:
        raise bad_request(error) from None
