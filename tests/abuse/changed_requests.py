"""A valid question with one field changed to what decodes and is extreme: numbers at the ends of their types, numbers
that are none, empty and long texts and lists, numbers of enums that nobody knows.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from actstore_api.bounds import check_bounds
from actstore_api.shape import Unreadable
from tests.abuse.judging import REQUEST_BYTES, Outcome, check

_LIST, _DIGITS, _LONG_NAME, _LONG_TEXT = 60_000, 4300, 256, 200_000
_INFINITE = [float("nan"), float("inf"), float("-inf")]
_TEXTS = ["", "x" * _LONG_NAME, "a\0b", "resid_post." + "9" * _DIGITS, "x " * (_LONG_TEXT // 2)]
_VALUES: dict[int, Sequence[Any]] = {
    FieldDescriptor.CPPTYPE_INT32: [-(2**31), -1, 2**31 - 1],
    FieldDescriptor.CPPTYPE_INT64: [-(2**63), -1, 2**31, 2**63 - 1],
    FieldDescriptor.CPPTYPE_UINT32: [0, 2**31, 2**32 - 1],
    FieldDescriptor.CPPTYPE_UINT64: [0, 2**31, 2**63 - 1, 2**63],
    FieldDescriptor.CPPTYPE_DOUBLE: [*_INFINITE, -1.7e308, 1.7e308, 5e-324],
    FieldDescriptor.CPPTYPE_FLOAT: [*_INFINITE, 3.4e38],
    FieldDescriptor.CPPTYPE_BOOL: [False, True],
    FieldDescriptor.CPPTYPE_ENUM: [99, -1, 2**31 - 1],
    FieldDescriptor.CPPTYPE_STRING: _TEXTS,
}


def faults(message: Message, ask: Callable[[bytes], Outcome], secrets: tuple[str, ...]) -> list[str]:
    """Asks each changed question; returns what was wrong with the answers.

    What is beyond a bound must be refused as that: if it only fails later, work was done for it.
    """
    return [
        f"{what}: {fault}"
        for what, changed in changed_requests(message)
        if (fault := _fault(changed, ask(_fitting(changed)), secrets))
    ]


def _fault(question: Message, outcome: Outcome, secrets: tuple[str, ...]) -> str:
    try:
        check(outcome, secrets)
        check_bounds(question)
    except AssertionError as error:
        return str(error)
    except Unreadable as excess:
        said = outcome.failure and (outcome.failure.reason, outcome.failure.details.get("allowed"))
        return "" if said == (excess.reason, str(excess.allowed)) else f"{excess} is not what {outcome} says"
    return ""


def _fitting(question: Message) -> bytes:
    request = question.SerializeToString()
    assert len(request) < REQUEST_BYTES
    return request


def changed_requests(message: Message) -> Iterator[tuple[str, Message]]:
    """Yields what was changed, and the question with this change alone."""
    for field in message.DESCRIPTOR.fields:
        for what, value in _changes(message, field):
            changed = copy.deepcopy(message)
            changed.ClearField(field.name)
            if isinstance(value, list):
                getattr(changed, field.name).extend(value)
            elif isinstance(value, Message):
                getattr(changed, field.name).CopyFrom(value)
            elif value is not None:
                setattr(changed, field.name, value)
            yield f"{field.name}{what}", changed


def _changes(message: Message, field: FieldDescriptor) -> Iterator[tuple[str, Any]]:
    """Yields what is said of the field, and its value. None: it is absent."""
    yield " absent", None
    if field.message_type is None and field.is_repeated:
        yield from _lists(field)
    elif field.message_type is None:
        yield from ((f" = {_short(value)}", value) for value in _VALUES[field.cpp_type])
    elif field.is_repeated:
        yield from _lists_of_messages(list(getattr(message, field.name)) or [field.message_type._concrete_class()])
    else:
        for what, changed in changed_requests(getattr(message, field.name)):
            yield f".{what}", changed


def _lists(field: FieldDescriptor) -> Iterator[tuple[str, list[Any]]]:
    for value in _VALUES[field.cpp_type]:
        yield f" = [{_short(value)}]", [value]
    is_text = field.cpp_type == FieldDescriptor.CPPTYPE_STRING
    first = "a" if is_text else _VALUES[field.cpp_type][0]
    yield f" of {_LIST} equal ones", [first] * _LIST
    if is_text or field.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32):
        yield f" of {_LIST} different ones", [f"n{number}" if is_text else number for number in range(_LIST)]


def _lists_of_messages(said: list[Message]) -> Iterator[tuple[str, list[Message]]]:
    yield f" of {_LIST} empty ones", [type(said[0])()] * _LIST
    for number, one in enumerate(said):
        for what, changed in changed_requests(one):
            yield f"[{number}].{what}", [*said[:number], changed, *said[number + 1 :]]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 40 else f"{text[:20]}... of {len(text)} characters"
