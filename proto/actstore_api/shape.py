"""How one kind of value is converted to a message and back, and the error for values that cannot be."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """`out` converts a record's value to a message's field, `back` the reverse."""

    out: Callable[[Any], Any]
    back: Callable[[Any], Any]


class Unreadable(ValueError):
    """An error for a value that the contract does not allow; `field` is its path, such as model.name. `reason` is a key
    of the table of reasons.
    """

    reason = "ARGUMENT_INVALID"

    def __init__(self, why: str, value: object, allowed: str, field: str = "") -> None:
        super().__init__(f"{field}: {why}" if field else why)
        self.why, self.value, self.allowed, self.field = why, value, allowed, field

    def within(self, field: str) -> "Unreadable":
        """The same error for the record that contains this field."""
        path = f"{field}.{self.field}" if self.field else field
        return Unreadable(self.why, self.value, self.allowed, path)
