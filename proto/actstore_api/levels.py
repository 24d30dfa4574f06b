"""How parts of different versions work together: the level of the contract, and what each level added.

A level is a number that grows with a release that adds a method, or a field of a question. Nothing is ever removed, so
a part answers every level up to its own. A part that is older than a field would ignore it, and answer another question
than it was asked. So whoever asks looks first what the question needs (`level_needed`), and compares it with the level
of who is to answer. Who asks also says its own level, in headers of each call; one that says none is not restricted.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

from actstore_api.shape import Unreadable

# The level of this code.
API_LEVEL = 2
# The lowest level of parts that this code works with.
OLDEST_LEVEL = 1
# Headers of each call: `python/0.3.0`, and the level of the caller.
CLIENT, LEVEL = "actstore-client", "actstore-api-level"

# Questions, and fields of questions (`Record.field`), that came after level 1, with their level. A test compares this
# with the contract of the last release.
SINCE: Mapping[str, int] = {
    "GetServiceInfo": 2,
    "GetWorkersInfo": 2,
}


class TooOldError(Unreadable):
    """Whoever is asked is older than the question, or whoever asks is older than allowed."""

    def __init__(self, message: str, reason: str, *, field: str, value: str, allowed: str) -> None:
        super().__init__(message, value, allowed)
        self.reason, self.field = reason, field


@cache
def own_version() -> str:
    """The version of actstore that runs."""
    return version("actstore")


def headers_of(part: str) -> tuple[tuple[str, str], ...]:
    """The headers by which a part says what it is."""
    return ((CLIENT, f"{part}/{own_version()}"), (LEVEL, str(API_LEVEL)))


def check_caller(headers: Mapping[str, str], part: str) -> None:
    """Refuses a caller whose level is too low. `part` is the part that checks, with its verb. Errors: TooOldError."""
    level = headers.get(LEVEL, "")
    if not level.isascii() or not level.isdecimal() or int(level[:9]) >= OLDEST_LEVEL:
        return
    caller = headers.get(CLIENT, "the caller")[:100]
    raise TooOldError(
        f"{caller} has API level {level[:9]}; the {part} version {own_version()}, and answers level {OLDEST_LEVEL} or "
        "higher",
        "CLIENT_TOO_OLD",
        field=LEVEL,
        value=level[:9],
        allowed=f"{OLDEST_LEVEL} or higher",
    )


def level_needed(question: object) -> int:
    """The lowest level of a part that can answer the question, as it is filled in."""
    return max(_levels(question))


def _levels(record: Any) -> Iterator[int]:
    kind = type(record).__name__
    yield SINCE.get(kind, OLDEST_LEVEL)
    for one in fields(record):
        value = getattr(record, one.name)
        if value is not None and value != one.default:
            yield SINCE.get(f"{kind}.{one.name}", OLDEST_LEVEL)
            for part in _records(value):
                yield from _levels(part)


def _records(value: object) -> Iterator[Any]:
    """The records in a field's value: one, several, or those of a mapping."""
    if is_dataclass(value):
        yield value
    elif isinstance(value, Mapping):
        yield from filter(is_dataclass, value.values())
    elif isinstance(value, tuple) and value and is_dataclass(value[0]):  # not token ids, of which there are thousands
        yield from value
