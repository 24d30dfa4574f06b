"""Converts records to messages of the contract and back, by one set of rules; codec_table has the exceptions.

A record belongs to the message with its name, or its name and `Request`; `...Answer` belongs to `...Response`. Its
fields have the names of the message's fields, and their types say how each is converted:

- a number, a boolean or a text: as it is, but a Name may not be empty; `Literal` words: an enum, whose value names are
  a prefix and the word;
- a record: its message; a tuple, a frozenset or a mapping: a repeated field or a map, or a message that consists of
  such a field;
- a union: a oneof. The record's field has the oneof's name, or the name of a message that consists of a oneof.

None is not sent. A field that a message does not set (or, for some types, that is empty) has the record's default; if
there is no default the field is required, and Unreadable is raised.
"""

import operator
import types
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import partial, reduce
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, OneofDescriptor
from google.protobuf.message import Message

from actstore_api.codec_table import SHAPES, WORDS
from actstore_api.records.terms import NOT_EMPTY
from actstore_api.shape import Shape, Unreadable
from actstore_api.v1 import service_pb2

Record = TypeVar("Record")

_PACKAGE = service_pb2.DESCRIPTOR.package
_AS_IT_IS = Shape(lambda value: value, lambda value: value)
# Python's types of what a field can hold, but for whole numbers of several kinds.
_TYPES: Mapping[int, type] = {
    FieldDescriptor.CPPTYPE_STRING: str,
    FieldDescriptor.CPPTYPE_BOOL: bool,
    FieldDescriptor.CPPTYPE_DOUBLE: float,
    FieldDescriptor.CPPTYPE_FLOAT: float,
}


def encode(record: Any) -> Any:
    """Returns the message for a record. Errors: Unreadable for a word that the contract does not have."""
    form = _form(type(record))
    said: dict[str, Any] = {}
    for part in form.parts:
        value = getattr(record, part.name)
        if value is not None:
            said |= _told(part, part.out, value)
    return form.message(**said)


def decode(kind: type[Record], message: Message) -> Record:
    """Returns the record of this kind for a message.

    Errors: Unreadable for a missing required field, and for a number of an enum that this version does not know.
    """
    said: dict[str, Any] = {}
    for part in _form(kind).parts:
        said |= _told(part, part.back, message)
    return kind(**said)


def message_of(kind: type) -> type[Message]:
    """The message class for records of this kind."""
    pool = descriptor_pool.Default()
    for name in _message_names(kind.__name__):
        with suppress(KeyError):
            return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
    raise TypeError(f"the contract has no message for {kind.__name__}")


def _message_names(record: str) -> list[str]:
    if record.endswith("Answer"):
        return [f"{record.removesuffix('Answer')}Response"]
    return [f"{record}Request", record]


@dataclass(frozen=True)
class _Part:
    """One field of a record: `out` returns the fields of the message, `back` the argument of the record, if
    it is set.
    """

    name: str
    out: Callable[[Any], dict[str, Any]]
    back: Callable[[Message], dict[str, Any]]


@dataclass(frozen=True)
class _Form:
    message: type[Message]
    parts: tuple[_Part, ...]


def _told(part: _Part, way: Callable[[Any], dict[str, Any]], value: Any) -> dict[str, Any]:
    """Runs a part in either direction. An error names its field."""
    try:
        return way(value)
    except Unreadable as error:
        raise error.within(part.name) from None


_FORMS: dict[type, _Form] = {}


def _form(kind: type) -> _Form:
    if kind not in _FORMS:
        message, hints = message_of(kind), get_type_hints(kind, include_extras=True)
        parts = (_part(item, hints[item.name], message.DESCRIPTOR) for item in fields(kind))
        _FORMS[kind] = _Form(message, tuple(parts))
    return _FORMS[kind]


def _part(item: Field[Any], hint: Any, message: Any) -> _Part:
    absent, hint = _absence(item, hint), _without_none(hint)
    oneof = message.oneofs_by_name.get(item.name)
    if oneof is not None:
        return _oneof_part(item.name, _Choice(oneof, hint), absent)
    return _field_part(message.fields_by_name[item.name], _shape(hint, message.fields_by_name[item.name]), absent)


def _field_part(field: FieldDescriptor, shape: Shape, absent: "_Absence") -> _Part:
    # If absence cannot be distinguished from zero, and the record has no default, the value is zero.
    always = absent.required and not field.has_presence

    def back(message: Message) -> dict[str, Any]:
        if always or _is_said(message, field):
            return {field.name: shape.back(getattr(message, field.name))}
        return absent.back(_wanted(field))

    return _Part(field.name, lambda value: {field.name: shape.out(value)}, back)


def _wanted(field: FieldDescriptor) -> str:
    """What an error asks for if a required field is missing; for a message that consists of a oneof, one of its
    members.
    """
    within = field.message_type
    if within is None or not within.oneofs or len(within.oneofs[0].fields) < len(within.fields):
        return "a value"
    return _names(within.oneofs[0])


def _names(oneof: OneofDescriptor) -> str:
    return " or ".join(field.name for field in oneof.fields)


def _oneof_part(name: str, choice: "_Choice", absent: "_Absence") -> _Part:
    def back(message: Message) -> dict[str, Any]:
        member = message.WhichOneof(name)
        return absent.back(choice.names) if member is None else {name: choice.back(message, member)}

    return _Part(name, choice.out, back)


def _is_said(message: Message, field: FieldDescriptor) -> bool:
    return message.HasField(field.name) if field.has_presence else bool(getattr(message, field.name))


@dataclass(frozen=True)
class _Absence:
    """The value of a record's field if its message does not set it."""

    name: str
    has_default: bool
    may_be_none: bool

    @property
    def required(self) -> bool:
        return not (self.has_default or self.may_be_none)

    def back(self, allowed: str) -> dict[str, Any]:
        if self.required:
            raise Unreadable(f"{allowed} is required", "", allowed)
        return {} if self.has_default else {self.name: None}


def _absence(item: Field[Any], hint: Any) -> _Absence:
    has_default = item.default is not MISSING or item.default_factory is not MISSING
    return _Absence(item.name, has_default, types.NoneType in get_args(hint))


def _without_none(hint: Any) -> Any:
    """The type hint of the value, without None."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    return reduce(operator.or_, (each for each in get_args(hint) if each is not types.NoneType))


def _shape(hint: Any, field: FieldDescriptor) -> Shape:
    """The shape of a field that is repeated, a map, or single."""
    if field.has_presence or not _is_collection(hint):
        return _single(hint, field)
    return _collection(hint, field)


def _is_collection(hint: Any) -> bool:
    return get_origin(hint) in (tuple, frozenset, Mapping)


def _collection(hint: Any, field: FieldDescriptor) -> Shape:
    kind, element_hint = get_origin(hint), get_args(hint)[0]
    if kind is Mapping:
        return Shape(dict, dict)
    element = _single(element_hint, field)
    order = sorted if kind is frozenset else list
    if element is _AS_IT_IS:  # in one step, because there may be thousands
        return Shape(order, kind)
    return Shape(
        lambda values: [element.out(value) for value in order(values)], lambda found: kind(map(element.back, found))
    )


def _single(hint: Any, field: FieldDescriptor) -> Shape:
    if field.enum_type is not None:
        return _words(hint, field.enum_type)
    if field.message_type is not None:
        return _message(hint, field.message_type)
    return _NOT_EMPTY if get_origin(hint) is Annotated and NOT_EMPTY in get_args(hint) else _AS_IT_IS


def _message(hint: Any, message: Descriptor) -> Shape:
    if message.full_name in SHAPES:
        return SHAPES[message.full_name]
    if is_dataclass(hint):
        return Shape(encode, partial(decode, hint))  # type: ignore[arg-type]  # a class, not an instance
    if _is_collection(hint):
        return _wrapped(hint, message)
    return _only_oneof(hint, message)


def _wrapped(hint: Any, message: Descriptor) -> Shape:
    """A message that consists of one repeated field represents its elements."""
    (field,) = message.fields
    inner, make = _collection(hint, field), message_factory.GetMessageClass(message)
    return Shape(
        lambda value: make(**{field.name: inner.out(value)}), lambda found: inner.back(getattr(found, field.name))
    )


def _only_oneof(hint: Any, message: Descriptor) -> Shape:
    """A message that consists of a oneof represents its member."""
    (oneof,) = message.oneofs
    choice, make = _Choice(oneof, hint), message_factory.GetMessageClass(message)

    def back(found: Message) -> Any:
        name = found.WhichOneof(oneof.name)
        if name is None:
            raise Unreadable(f"{choice.names} is required", "", choice.names)
        return choice.back(found, name)

    return Shape(lambda value: make(**choice.out(value)), back)


class _Choice:
    """The members of a oneof, by the type of their values."""

    def __init__(self, oneof: OneofDescriptor, hint: Any) -> None:
        hints = get_args(hint)
        members = {field: next(each for each in hints if _carries(field, each)) for field in oneof.fields}
        self.names = _names(oneof)
        self._by_name = {field.name: _single(each, field) for field, each in members.items()}
        self._by_type = {get_origin(each) or each: field.name for field, each in members.items()}

    def out(self, value: Any) -> dict[str, Any]:
        # Also by the type's bases: a text from a numpy array is numpy's own subclass of str.
        name = next((self._by_type[kind] for kind in type(value).__mro__ if kind in self._by_type), None)
        if name is None:
            raise Unreadable(f"{value!r} is not one of {self.names}", value, self.names)
        return {name: self._by_name[name].out(value)}

    def back(self, message: Message, name: str) -> Any:
        return self._by_name[name].back(getattr(message, name))


def _carries(field: FieldDescriptor, hint: Any) -> bool:
    """Whether the field is for values of this type."""
    if field.message_type is None:
        return hint is _TYPES.get(field.cpp_type, int)
    if is_dataclass(hint):
        return message_of(hint).DESCRIPTOR is field.message_type  # type: ignore[arg-type]  # a class, not an instance
    return _is_collection(hint) and len(field.message_type.fields) == 1


def _filled(value: str) -> str:
    if not value:
        raise Unreadable("a name is required", "", "a name")
    return value


_NOT_EMPTY = Shape(lambda value: value, _filled)


def _words(hint: Any, enum: EnumDescriptor) -> Shape:
    """A word is the name of the enum's value without the common prefix; 0 is not a word."""
    numbers = words_of(enum)
    back = {number: word for word, number in numbers.items()}
    allowed = ", ".join(get_args(hint))

    def number(word: str) -> int:
        if word not in numbers:
            raise Unreadable(f"{word!r} is not an allowed value", word, allowed)
        return numbers[word]

    def word(number: int) -> str:
        if number not in back:
            raise Unreadable(f"{number} is a number that this version does not know", number, allowed)
        return back[number]

    return Shape(number, word)


def words_of(enum: EnumDescriptor) -> Mapping[str, int]:
    """The numbers of an enum's values by their words."""
    prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
    unusual = WORDS.get(enum.full_name, {})
    short = {value.name.removeprefix(prefix): value.number for value in enum.values[1:]}
    return {unusual.get(name, name.lower()): number for name, number in short.items()}
