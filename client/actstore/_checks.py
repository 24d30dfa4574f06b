"""What the client checks by itself: types that the wire could not carry, with the same errors whatever it talks to."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from actstore._errors import ActstoreError, refused
from actstore_api.records.terms import ModelReference, Prompt, TokenReference

MAXIMUM_COUNT, MAXIMUM_TOKEN, MAXIMUM_SEED = 2**32 - 1, 2**31 - 1, 2**32 - 1
Word = TypeVar("Word", bound=str)
Each = TypeVar("Each")
# A text, or token ids in its place: a list, an array.
Text = str | Sequence[int] | NDArray[np.integer[Any]]


def count(value: int, field: str, *, maximum: int = MAXIMUM_COUNT, reason: str = "ARGUMENT_INVALID") -> int:
    """A whole number that fits the wire's unsigned field; numpy's integers are welcome."""
    try:
        whole = value.__index__()
    except (AttributeError, TypeError):
        whole = -1
    if isinstance(value, bool) or not 0 <= whole <= maximum:
        message = f"{field} {value!r} is not a whole number from 0 to {maximum}"
        raise refused(message, field, repr(value), f"0..{maximum}", reason)
    return whole


def optional_count(value: int | None, field: str) -> int | None:
    return None if value is None else count(value, field)


def several(values: object) -> bool:
    """Whether these are several things, each of which counts: not a text's letters, bytes, or a mapping's keys."""
    return isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping)


def names(values: Iterable[str] | str | None, field: str) -> tuple[str, ...]:
    """Several names; one string counts as one name, never as its letters."""
    if not (values is None or isinstance(values, str) or several(values)):
        raise refused(f"{field} must be text, not {type(values).__name__}", field, repr(values), "a string, or several")
    found = (values,) if isinstance(values, str) else () if values is None else tuple(values)
    for one in found:
        text(one, field)
    return found


def text(value: object, field: str) -> str:
    """Text that can be sent."""
    if not isinstance(value, str):
        raise refused(f"{field} must be text, not {type(value).__name__}", field, repr(value), "a string")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise refused(f"{field} is not Unicode text: {error.reason}", field, repr(value), "UTF-8") from None
    return value


def name(value: object, field: str) -> str:
    """Text that names something, as the contract wants it."""
    found = text(value, field)
    if not found:
        raise refused(f"{field} is required", field, "", "a name")
    return found


def fractions(values: Iterable[float] | None, field: str) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in (() if values is None else values))
    except (TypeError, ValueError):
        raise refused(f"{field} must be numbers", field, repr(values), "numbers between 0 and 1") from None


def number(value: float, field: str, *, least: float | None = None) -> float:
    """Finite; numpy's numbers are welcome, and booleans are none."""
    allowed = "a finite number" if least is None else f"{least:g} or more"
    try:
        found = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found) or (least is not None and found < least):
        raise refused(f"{field} {value!r} is not {allowed}", field, repr(value), allowed)
    return found


def bound(value: object, field: str) -> tuple[float | None, float | None]:
    """(low, high), both included; None leaves a side open, and None for the pair leaves both."""
    if value is None:
        return None, None
    if not isinstance(value, tuple | list) or len(value) != 2:
        message = f"{field} must be a pair (the least and the greatest value); either may be None"
        raise refused(message, field, repr(value), "(low, high)")
    low, high = (None if side is None else number(side, field) for side in value)
    return low, high


def vector(values: object, field: str) -> tuple[float, ...]:
    """A direction: finite numbers, and at least one is not 0."""
    if not isinstance(values, Iterable) or not several(values):
        raise refused(f"{field} must be numbers", field, repr(values), "d_model numbers")
    found = tuple(number(value, field) for value in values)
    if not any(found):
        raise refused(f"{field} has no direction: all its numbers are 0", field, repr(found[:3]), "one that is not 0")
    return found


def words(value: object, field: str) -> str:
    """Text that is not empty."""
    found = text(value, field)
    if not found:
        raise refused(f"{field} is empty", field, "''", "text of at least one token")
    return found


def prompt(value: Any, field: str) -> Prompt:
    """Text that is not empty, or token ids: whole numbers, of numpy's or torch's too."""
    if isinstance(value, str):
        return words(value, field)
    plain = value.tolist() if hasattr(value, "tolist") else value
    if not several(plain):
        allowed = "a string, or whole numbers"
        raise refused(f"{field} must be text or token ids, not {type(value).__name__}", field, repr(value), allowed)
    ids = tuple(token(one, field) for one in plain)
    if not ids:
        raise refused(f"{field} has no token ids", field, "()", "text, or token ids, of at least one token")
    return ids


def prompts(values: Any, field: str) -> tuple[Prompt, ...]:
    """Checks prompts like `alike_prompts`; a single prompt counts as a list of one."""
    if isinstance(values, str):
        return (words(values, field),)
    if not several(values):
        allowed = "a string, token ids, or several of them"
        raise refused(f"{field} must be text or token ids, not {type(values).__name__}", field, repr(values), allowed)
    each: list[Any] = values.tolist() if hasattr(values, "tolist") else list(values)
    if each and not any(isinstance(one, Iterable) for one in each):
        return (prompt(each, field),)
    return some(alike_prompts(each, field), values, field, "at least one")


def alike_prompts(values: Iterable[Any], field: str) -> tuple[Prompt, ...]:
    """Checks each like `prompt`. All are texts, or all are token ids; a mixture is refused."""
    found = tuple(prompt(each, field) for each in values)
    if len({isinstance(each, str) for each in found}) > 1:
        raise refused(f"{field} mixes texts and token ids", field, "both", "only texts, or only token ids")
    return found


def token(value: Any, field: str) -> int:
    return count(value, field, maximum=MAXIMUM_TOKEN)


def answer(value: object, field: str) -> TokenReference:
    """Text of one token, or its id."""
    return text(value, field) if isinstance(value, str) else token(value, field)


def tristate(value: bool | None, field: str) -> bool | None:
    if not isinstance(value, bool | None):
        raise refused(f"{field} must be True, False or None", field, repr(value), "True, False, None")
    return value


def several_of(values: Iterable[str] | str | None, field: str, allowed: Sequence[Word]) -> tuple[Word, ...]:
    """Words out of those that are allowed; one string counts as one word, and None as none."""
    if not (values is None or isinstance(values, str) or several(values)):
        raise _not_among(values, field, allowed)
    found = (values,) if isinstance(values, str) else () if values is None else tuple(values)
    return tuple(one_of(word, field, allowed) for word in found)


def one_of(value: object, field: str, allowed: Sequence[Word]) -> Word:
    """A word out of those that are allowed. A list with a word in it is no word, and neither is None."""
    for word in allowed if isinstance(value, str) else ():
        if word == value:
            return word
    if several(value):
        choices = ", ".join(map(repr, allowed))
        raise refused(f"{field} must be one word, not several: {value!r}", field, repr(value), f"one of {choices}")
    raise _not_among(value, field, allowed)


def _not_among(value: object, field: str, allowed: Sequence[str]) -> ActstoreError:
    shown = value if isinstance(value, str) else repr(value)
    return refused(f"{field} has no {value!r}: choose from {', '.join(allowed)}", field, shown, allowed)


def whole_numbers(values: Iterable[int] | None, field: str, maximum: int = MAXIMUM_COUNT) -> tuple[int, ...]:
    """Checks numbers of layers, heads, documents and the like. None: none are named, which stands for all."""
    if not (values is None or several(values)):
        message = f"{field} must be a list of numbers, not {values!r}"
        raise refused(message, field, repr(values), f"{field}=[{values!r}]")
    return tuple(count(value, field, maximum=maximum) for value in (() if values is None else values))


def some(
    checked: tuple[Each, ...], given: object, field: str, allowed: str = "at least one; None for the default"
) -> tuple[Each, ...]:
    """What was chosen, at least one of them. The wire says "all" by an empty list, so only None may become one.

    Errors: BadRequest for an empty collection, which asks about nothing.
    """
    if given is not None and not checked:
        message = f"{field} is empty, so there is nothing to ask about"
        raise refused(message, field, repr(given), allowed)
    return checked


def some_numbers(values: Iterable[int] | None, field: str, maximum: int = MAXIMUM_COUNT) -> tuple[int, ...]:
    """At least one layer, head, feature or document; None stands for all that there are."""
    return some(whole_numbers(values, field, maximum), values, field)


def some_names(values: Iterable[str] | str | None, field: str) -> tuple[str, ...]:
    """At least one name; None stands for the default."""
    return some(names(values, field), values, field)


def switch(value: bool, field: str) -> bool:
    if not isinstance(value, bool):
        raise refused(f"{field} must be True or False", field, repr(value), "True, False")
    return value


def seed(value: int) -> int:
    """Checks the seed of what is drawn at random."""
    return count(value, "seed", maximum=MAXIMUM_SEED)


def of_model(model: str, revision: str, prepend_bos: bool | None) -> dict[str, Any]:
    """The fields of a question to a model about a text."""
    return {
        "model": ModelReference(name(model, "model"), text(revision, "revision")),
        "prepend_bos": tristate(prepend_bos, "prepend_bos"),
    }
