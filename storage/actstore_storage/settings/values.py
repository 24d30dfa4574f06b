"""Texts of the environment, and values of the file, become values of a setting's type."""

import os
import typing
from pathlib import Path
from typing import Any

import msgspec

# What a value may be: in a variable, and in the file.
_ALLOWED = {
    bool: ("0 or 1", "true or false"),
    int: ("a whole number", "a whole number"),
    float: ("a number", "a number"),
    str: ("text", "text in quotes"),
    Path: ("a path", "a path in quotes"),
    (tuple, Path): (f"paths, separated by {os.pathsep!r}", "a list of paths"),
    (tuple, str): ("texts, separated by spaces", "a list of texts"),
}


class Unfit(Exception):
    """A value is not of a setting's type; the text says what is allowed."""


def from_text(text: str, kind: Any) -> Any:
    """The value that a variable's text means. Errors: Unfit."""
    return _converted(_split(text, kind), kind, in_file=False)


def from_file(value: Any, kind: Any) -> Any:
    """The value of a key of the file, which has a type already. Errors: Unfit."""
    return _converted(value, kind, in_file=True)


def _converted(value: Any, kind: Any, *, in_file: bool) -> Any:
    try:
        return msgspec.convert(value, kind, strict=in_file, dec_hook=_path)
    except (msgspec.ValidationError, OverflowError):
        raise Unfit(_allowed(kind, in_file=in_file)) from None


def _split(text: str, kind: Any) -> str | list[str]:
    if typing.get_origin(kind) is not tuple:
        return text
    return [part for part in text.split(os.pathsep) if part] if Path in typing.get_args(kind) else text.split()


def _path(kind: type, value: object) -> object:
    """Absolute, because Ray's workers run in folders of their own."""
    if kind is Path and isinstance(value, str):
        return Path(value).expanduser().absolute()
    raise msgspec.ValidationError


def _allowed(kind: Any, *, in_file: bool) -> str:
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    known = _ALLOWED.get((tuple, typing.get_args(kind)[0]) if origin is tuple else kind)
    return known[in_file] if known else " or ".join(repr(each.value) for each in kind)
