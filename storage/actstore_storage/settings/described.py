"""What can be set: each field of frozen settings, with its key in the file and its variable in the environment.

The fields are the one place where a setting is defined. A field that is a frozen dataclass itself is a group: a table
of the file, and a part of the variable's name. A field with `repr=False` is a secret, and is never shown.
"""

import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any, TypeGuard

PREFIX = "ACTSTORE_"


@dataclass(frozen=True)
class Setting:
    """One field of the settings, or of one of their groups."""

    path: tuple[str, ...]
    kind: Any
    """Its type, without None."""
    default: Any = field(repr=False)
    """`dataclasses.MISSING` if it is required."""
    secret: bool

    @property
    def key(self) -> str:
        """Its key in the file: `limits.request_bytes` is `request_bytes` of the table `[limits]`."""
        return ".".join(self.path)

    @property
    def variable(self) -> str:
        return PREFIX + "_".join(self.path).upper()


def settings_of(record: type, above: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Yields each setting of frozen settings, those of their groups last."""
    groups = []
    for one, kind in fields_of(record):
        if is_group(kind):
            groups.append((kind, (*above, one.name)))
        else:
            yield Setting((*above, one.name), kind, default_of(one), secret=not one.repr)
    for kind, path in groups:
        yield from settings_of(kind, path)


def fields_of(record: type) -> Iterator[tuple["Field[Any]", Any]]:
    """Yields each field with its type, which is never a text, and never includes None."""
    hints = typing.get_type_hints(record)
    for one in fields(record):
        yield one, _without_none(hints[one.name])


def is_group(kind: object) -> TypeGuard[type]:
    return is_dataclass(kind)


def default_of(one: "Field[Any]") -> Any:
    return one.default if one.default_factory is MISSING else one.default_factory()


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) not in (types.UnionType, typing.Union):
        return kind
    (rest,) = (each for each in typing.get_args(kind) if each is not types.NoneType)
    return rest
