"""What the client checks by itself: types that the wire could not carry, with the same errors whatever it talks to."""

from collections.abc import Iterable, Sequence

from actstore._errors import refused

TOKEN_CLASSES = ("bos", "special", "sink")
DEFAULT_EXCLUSION = frozenset({"bos"})
DIRECTIONS = ("denoise", "noise")
MAXIMUM_COUNT = 2**32 - 1


def count(value: int, field: str, *, maximum: int = MAXIMUM_COUNT, reason: str = "ARGUMENT_INVALID") -> int:
    """A whole number that fits the wire's unsigned field; numpy's integers are welcome."""
    try:
        whole = value.__index__()
    except AttributeError:
        whole = -1
    if isinstance(value, bool) or not 0 <= whole <= maximum:
        message = f"{field} {value!r} is not a whole number from 0 to {maximum}"
        raise refused(message, field, repr(value), f"0..{maximum}", reason)
    return whole


def optional_count(value: int | None, field: str) -> int | None:
    return None if value is None else count(value, field)


def names(values: Iterable[str] | str | None, field: str) -> tuple[str, ...]:
    """Several names; one string counts as one name, never as its letters."""
    found = (values,) if isinstance(values, str) else tuple(values or ())
    for name in found:
        text(name, field)
    return found


def text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise refused(f"{field} must be text, not {type(value).__name__}", field, repr(value), "a string")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise refused(f"{field} is not Unicode text: {error.reason}", field, repr(value), "UTF-8") from None
    return value


def fractions(values: Iterable[float] | None, field: str) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values or ())
    except (TypeError, ValueError):
        raise refused(f"{field} must be numbers", field, repr(values), "numbers between 0 and 1") from None


def tristate(value: bool | None, field: str) -> bool | None:
    if value not in (None, True, False):
        raise refused(f"{field} is True, False or None", field, repr(value), "True, False, None")
    return value


def choices(values: Iterable[str] | str | None, field: str, allowed: Sequence[str]) -> tuple[str, ...]:
    found = names(values, field)
    for name in found:
        if name not in allowed:
            raise refused(f"{field} has no {name!r}: choose from {', '.join(allowed)}", field, name, allowed)
    return found


def exclusion(values: Iterable[str] | str | None) -> frozenset[str]:
    """None is the default, BOS; an empty collection leaves nothing out."""
    return DEFAULT_EXCLUSION if values is None else frozenset(choices(values, "exclude", TOKEN_CLASSES))


def layer_range(layers: Sequence[int] | None) -> tuple[int, int] | None:
    """The first and last layer, both included."""
    if layers is None:
        return None
    if len(layers) != 2:
        message = "layers is a pair: the first and the last layer, both included"
        raise refused(message, "layers", repr(layers), "(first, last)")
    return count(layers[0], "layers"), count(layers[1], "layers")


def sequence_range(sequences: object) -> tuple[int, int | None]:
    """(first sequence, how many or None for all that follow) of a range or slice with step 1."""
    if sequences is None:
        return 0, None
    if not isinstance(sequences, range | slice):
        message = "sequences is a range or a slice, such as range(10)"
        raise refused(message, "sequences", repr(sequences), "range or slice")
    if sequences.step not in (None, 1):
        raise refused(f"sequences {sequences} has a step other than 1", "sequences", repr(sequences), "step 1")
    first = count(sequences.start or 0, "sequences")
    if sequences.stop is None:
        return first, None
    return first, max(count(sequences.stop, "sequences") - first, 0)
