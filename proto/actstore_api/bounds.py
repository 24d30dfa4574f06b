"""The table of bounds: how much of everything a question may say. `check_bounds` refuses more, before any work begins.

Every text and every list of every question has an entry, for its message and field or for its field in all messages;
a test walks the contract's descriptors. Numbers have the range of `NUMBERS` where they have no entry. The bounds are
part of the contract and the same everywhere. Operators may set lower limits on work, such as cells of a sweep, in their
settings.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from actstore_api.codec import encode, message_of
from actstore_api.codec_table import SHAPES
from actstore_api.shape import Unreadable
from actstore_api.verbs import VERBS


@dataclass(frozen=True)
class Bound:
    """What one field may hold.

    Args:
        elements: The largest number of elements of a list.
        characters: The largest number of characters of a text, or of each text of a list.
        most: The largest number.
        least: The smallest number.
        distinct: Whether a list must not have an element twice, because its elements name things.
        printable: Whether a text is a name, which has no control characters.
        infinite: Whether a number may be infinite or NaN; what it means is checked elsewhere.
    """

    elements: int | None = None
    characters: int | None = None
    most: int | None = None
    least: int | None = None
    distinct: bool = False
    printable: bool = False
    infinite: bool = False

    def __str__(self) -> str:
        """What the reference says."""
        return ", ".join(
            [
                *([f"at most {self.elements:,} elements"] if self.elements is not None else []),
                *(["none of them twice"] if self.distinct else []),
                *([f"at most {self.characters:,} characters"] if self.characters is not None else []),
                *(["no control characters"] if self.printable else []),
                *([f"from {self.least:,}"] if self.least else []),
                *([f"at most {self.most:,}"] if self.most is not None else []),
            ]
        )


class OutOfBoundsError(Unreadable):
    """An error for more than a bound allows; it names both numbers."""

    reason = "LIMIT_EXCEEDED"


# What workers and storage compute with are signed numbers.
INT32_MAX, INT64_MAX = 2**31 - 1, 2**63 - 1
# As long as names in the store (`check_name`), and paths of several such names.
_NAME, _PATH = 128, 1024
# The largest models have some 130 layers with 128 heads, 7 sites with vectors in each; tenfold is allowed.
_LAYERS, _SITES = 1024, 4096
# One question is at most a megabyte (ACTSTORE_LIMITS_REQUEST_BYTES), so these are what fits into it.
_TEXT, _NUMBERS = 1 << 20, 1 << 17


def _names(elements: int, characters: int = _NAME) -> Bound:
    return Bound(elements=elements, characters=characters, distinct=True, printable=True)


_RUN = Bound(characters=_NAME, printable=True)
_FILE = Bound(characters=_PATH, printable=True)
_COLUMN = Bound(characters=255)
_INDICES = Bound(elements=_LAYERS, most=INT32_MAX, distinct=True)
_ANY_SEED = Bound(most=2**64 - 1)
_ANY_NUMBER = Bound(infinite=True)

# By the name of the field, or of its message and field, which counts first.
BOUNDS: Mapping[str, Bound] = {
    # Names of runs, and of files of models, SAEs and datasets.
    "run": _RUN,
    "rows_of": _RUN,
    # Whether one may be there twice depends on the question: checkpoints need different steps.
    "runs": replace(_names(256), distinct=False),
    "name": _FILE,
    "revision": _FILE,
    "sae": _FILE,
    "saes": _names(64, _PATH),
    "PatchSpan.name": Bound(characters=_NAME),
    "JointCells.name": Bound(characters=_NAME),
    # Sites, layers and heads. A site that is read has a file open in every shard.
    "site": _RUN,
    "sites": _names(_SITES),
    "dense_sites": _names(_SITES),
    "norm_sites": _names(_SITES),
    "ReadActivationsRequest.sites": _names(256),
    "receivers": _names(128),
    "layers": _INDICES,
    "heads": _INDICES,
    "directions": Bound(elements=2, distinct=True),
    # Columns and filters of datasets. A dataset's rows are compared with all filters.
    "text_field": _COLUMN,
    "tokens_field": _COLUMN,
    "source_field": _COLUMN,
    "column": _COLUMN,
    "row_filters": Bound(elements=64),
    "RowFilter.values": Bound(elements=4096),
    "FilterValue.text": Bound(characters=65_536),
    "FilterValue.real": _ANY_NUMBER,
    "FilterValue.integer": Bound(least=-INT64_MAX - 1, most=INT64_MAX),
    # Texts and tokens. The model's context is a further bound.
    "text": Bound(characters=_TEXT),
    "ids": Bound(elements=_TEXT, most=INT32_MAX),
    "texts": Bound(elements=4096),
    "corrupt": Bound(elements=1024),
    "pairs": Bound(elements=1024),
    "spans": Bound(elements=256),
    "joint": Bound(elements=1024),
    "cells": Bound(elements=1024),
    "only_positions": Bound(elements=_NUMBERS, most=INT32_MAX, distinct=True),
    # Features and directions.
    "features": Bound(elements=_NUMBERS, most=INT32_MAX, distinct=True),
    "SampleExamplesRequest.features": Bound(elements=256, most=INT32_MAX, distinct=True),
    "GetLogitLensRequest.features": Bound(elements=1024, most=INT32_MAX, distinct=True),
    "RunSweepRequest.features": Bound(elements=16_384, most=INT32_MAX, distinct=True),
    "Vector.elements": Bound(elements=65_536),
    "bounds": Bound(elements=16),
    "low": _ANY_NUMBER,
    "high": _ANY_NUMBER,
    "longest_unembedding": _ANY_NUMBER,
    # Which tokens.
    "documents": Bound(elements=_NUMBERS),
    "tokens": Bound(elements=_NUMBERS),
    "classes": Bound(elements=16, distinct=True),
    "columns": Bound(elements=16, distinct=True),
    # Numbers of a profile or a fit.
    "steps": Bound(elements=256),
    "Quantiles.values": Bound(elements=100),
    "edges": Bound(elements=1001),
    "seed": _ANY_SEED,
}

_UNSIGNED_64 = (FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_FIXED64)
_UNSIGNED_32 = (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_FIXED32)
# Of numbers without an entry, by their type; others may have every value of their type.
NUMBERS: Mapping[int, Bound] = {
    **dict.fromkeys(_UNSIGNED_32, Bound(most=INT32_MAX)),
    **dict.fromkeys(_UNSIGNED_64, Bound(most=INT64_MAX)),
}
_FREE = Bound()
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_REAL = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)
_WHOLE = (
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
)


def check_bounds(question: Any) -> None:
    """Checks a question, as a message or as a record.

    Errors: OutOfBoundsError with the field, its value and what is allowed; Unreadable for a number that is not finite,
    a name with a control character and an element that a list has twice.
    """
    message = question if isinstance(question, Message) else encode(question)
    _check_message(message, "")


def fields_of_questions() -> Iterator[FieldDescriptor]:
    """Yields every field of every message that a question consists of."""
    found: dict[str, Descriptor] = {}
    wanted: list[Any] = [message_of(verb.question).DESCRIPTOR for verb in VERBS.values()]
    while wanted:
        message: Descriptor = wanted.pop()
        if message.full_name not in found:
            found[message.full_name] = message
            wanted += [field.message_type for field in message.fields if field.message_type is not None]
    for message in found.values():
        yield from message.fields


def full_name(field: FieldDescriptor) -> str:
    """The names of the field's message and of the field."""
    message: Any = field.containing_type
    return f"{message.name}.{field.name}"


@cache
def bound_of(field: FieldDescriptor) -> Bound:
    """The bound of a field. Errors: LookupError for a text or a list without an entry in the table."""
    own = full_name(field)
    # A field of the same name may be a number in one message and a list in another.
    entries = (entry for entry in map(BOUNDS.get, (own, field.name)) if entry and _is_for(entry, field))
    found = next(entries, NUMBERS.get(field.type, _FREE))
    if field.is_repeated and found.elements is None:
        raise LookupError(f"{own} has no bound in actstore_api/bounds.py on its elements")
    if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES) and found.characters is None:
        raise LookupError(f"{own} has no bound in actstore_api/bounds.py on its characters")
    return found


def _is_for(entry: Bound, field: FieldDescriptor) -> bool:
    return (entry.elements is not None) == field.is_repeated and field.type != FieldDescriptor.TYPE_BOOL


def _check_message(message: Message, path: str) -> None:
    kind: Any = message.DESCRIPTOR
    for field, value in message.ListFields():
        inner = _path(kind, field, path)
        if field.is_repeated:
            _check_list(field, value, inner)
        elif field.message_type is not None:
            _check_message(value, inner)
        else:
            _check_values(field, (value,), inner)


def _path(message: Descriptor, field: FieldDescriptor, path: str) -> str:
    """The name that a record has for the field: a message that only wraps a value, or is a method's only field that is
    a message, is not a part of it.
    """
    if path and _wraps(message):
        return path
    is_whole = not path and len(message.fields) == 1 and field.message_type is not None and not field.is_repeated
    return "" if is_whole else f"{path}.{field.name}" if path else field.name


@cache
def _wraps(message: Descriptor) -> bool:
    if message.full_name in SHAPES:
        return False
    of_oneof = message.oneofs and len(message.oneofs[0].fields) == len(message.fields)
    return bool(of_oneof) or (len(message.fields) == 1 and message.fields[0].is_repeated)


def _check_list(field: FieldDescriptor, values: Sequence[Any], path: str) -> None:
    most = bound_of(field).elements or 0
    if len(values) > most:
        raise OutOfBoundsError(f"{len(values)} elements; the limit is {most}", len(values), f"at most {most}", path)
    if field.message_type is None:
        _check_values(field, values, path)
        return
    for number, value in enumerate(values):
        _check_message(value, f"{path}[{number}]")


def _check_values(field: FieldDescriptor, values: Sequence[Any], path: str) -> None:
    bound = bound_of(field)
    if field.type == FieldDescriptor.TYPE_STRING:
        _check_texts(bound, values, path)
    elif field.cpp_type in _REAL and not bound.infinite:
        _check_finite(values, path)
    elif field.cpp_type in _WHOLE:
        _check_whole(bound, values, path)
    if bound.distinct and len(set(values)) < len(values):
        ((twice, _),) = Counter(values).most_common(1)
        raise Unreadable(f"it has {_short(twice)} more than once", _short(twice), "each element once", path)


def _check_texts(bound: Bound, values: Sequence[str], path: str) -> None:
    most = bound.characters or 0
    longest = max(map(len, values), default=0)
    if longest > most:
        what = f"{longest} characters; the limit is {most}"
        raise OutOfBoundsError(what, f"{longest} characters", f"at most {most} characters", path)
    for text in values:
        if bound.printable and _CONTROL.search(text):
            raise Unreadable(f"{_short(text)} has a control character", _short(text), "no control characters", path)


def _check_finite(values: Sequence[float], path: str) -> None:
    for value in values:
        if not math.isfinite(value):
            raise Unreadable(f"{value} is not a finite number", value, "a finite number", path)


def _check_whole(bound: Bound, values: Sequence[int], path: str) -> None:
    if bound.most is not None and max(values, default=0) > bound.most:
        highest = max(values)
        raise OutOfBoundsError(f"{highest} is above the limit of {bound.most}", highest, f"at most {bound.most}", path)
    if bound.least is not None and min(values, default=bound.least) < bound.least:
        lowest = min(values)
        raise OutOfBoundsError(f"{lowest} is below {bound.least}", lowest, f"at least {bound.least}", path)


def _short(value: object) -> str:
    said = repr(value)
    return said if len(said) <= 100 else f"{said[:97]}..."
