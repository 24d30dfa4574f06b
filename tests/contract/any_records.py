"""Any record of any kind, made from its type hints and the limits of its message's fields."""

import operator
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache, reduce
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pyarrow as pa
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st

from actstore_api.codec import message_of
from actstore_api.records.capture import Positions

_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_TABLES = [
    pa.table({}),
    pa.table({"layer": pa.array([], pa.int32())}),
    pa.table({"layer": pa.array([0, None], pa.int32()), "text": ["a", None], "ids": pa.array([[1], []])}),
]
_POSITIONS = st.one_of(
    st.just(Positions()),
    st.just(Positions.last()),
    st.integers(0, 2**32 - 1).map(Positions.every),
    st.builds(Positions.random, st.floats(0, 1), st.integers(0, 2**64 - 1)),
    st.builds(Positions.active, st.text(), st.integers(0, 2**32 - 1)),
)


@cache
def any_record(kind: type) -> st.SearchStrategy[Any]:
    hints, message = get_type_hints(kind, include_extras=True), message_of(kind).DESCRIPTOR
    made = {item.name: _any_field(item, hints[item.name], message) for item in fields(kind)}
    return st.builds(kind, **made)


def _any_field(item: Field[Any], hint: Any, message: Descriptor) -> st.SearchStrategy[Any]:
    """What is not said is read as the default, so that nothing else stands for it."""
    oneof, field = message.oneofs_by_name.get(item.name), message.fields_by_name.get(item.name)
    may_be_absent, hint = _without_none(hint)
    if oneof is not None:
        found = _any_choice(hint, list(oneof.fields))
    else:
        assert field is not None
        found = _any_value(hint, field)
        if default_of(item) and not field.has_presence:
            found = found.filter(bool)
    return st.none() | found if may_be_absent else found


def default_of(item: Field[Any]) -> Any:
    if item.default_factory is not MISSING:
        return item.default_factory()
    return None if item.default is MISSING else item.default


def _without_none(hint: Any) -> tuple[bool, Any]:
    if get_origin(hint) not in (Union, types.UnionType):
        return False, hint
    left = tuple(each for each in get_args(hint) if each is not types.NoneType)
    return len(left) < len(get_args(hint)), reduce(operator.or_, left)


def _any_value(hint: Any, field: FieldDescriptor) -> st.SearchStrategy[Any]:
    kind = get_origin(hint)
    if kind is Mapping:
        key, value = field.message_type.fields
        return st.dictionaries(_any_value(str, key), _any_value(get_args(hint)[1], value), max_size=3)
    if kind in (tuple, frozenset):
        field = field.message_type.fields[0] if field.has_presence else field
        element = _any_value(get_args(hint)[0], field)
        return st.frozensets(element) if kind is frozenset else st.lists(element, max_size=3).map(tuple)
    if kind in (Union, types.UnionType):
        return _any_choice(hint, list(field.message_type.fields))
    return _any_single(hint, field)


def _any_choice(hint: Any, members: list[FieldDescriptor]) -> st.SearchStrategy[Any]:
    """Of a oneof, whose fields are told apart by what they are of."""
    return st.one_of(*(_any_value(each, next(m for m in members if _is_of(each, m))) for each in get_args(hint)))


def _is_of(hint: Any, field: FieldDescriptor) -> bool:
    if is_dataclass(hint):
        return field.message_type is not None and field.message_type.name == message_of(hint).DESCRIPTOR.name
    if get_origin(hint) is tuple:
        return field.message_type is not None and len(field.message_type.fields) == 1
    kinds = {str: "string", bool: "bool", float: "double", int: "int"}
    return field.message_type is None and kinds[hint] in _type_name(field)


def _type_name(field: FieldDescriptor) -> str:
    names = {
        FieldDescriptor.CPPTYPE_STRING: "string",
        FieldDescriptor.CPPTYPE_BOOL: "bool",
        FieldDescriptor.CPPTYPE_DOUBLE: "double",
    }
    return names.get(field.cpp_type, "int")


def _any_single(hint: Any, field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) is Annotated:
        return st.text(min_size=1)
    if hint is pa.Table:
        return st.sampled_from(_TABLES)
    if hint is Positions:
        return _POSITIONS
    if is_dataclass(hint):
        return any_record(hint)  # type: ignore[arg-type]  # a class, not an instance
    if hint is int:
        return st.integers(*_INTEGERS[field.cpp_type])
    if hint is float:
        return st.floats(allow_nan=False, width=32 if field.cpp_type == FieldDescriptor.CPPTYPE_FLOAT else 64)
    return {str: st.text(), bool: st.booleans()}[hint]
