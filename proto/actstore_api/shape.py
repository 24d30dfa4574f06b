"""How one kind of value is carried in a message."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """`out` makes of a record's value what a message's field is given, `back` of the field's value the record's."""

    out: Callable[[Any], Any]
    back: Callable[[Any], Any]


class Unreadable(ValueError):
    """A message, or a value to be sent, that the contract does not allow. `field` is its path in the request."""

    def __init__(self, message: str, field: str, value: object, allowed: str) -> None:
        super().__init__(message)
        self.field, self.value, self.allowed = field, value, allowed

    def within(self, field: str) -> "Unreadable":
        """The same error, of a field of the message that `field` has."""
        return Unreadable(str(self), f"{field}.{self.field}" if self.field else field, self.value, self.allowed)
