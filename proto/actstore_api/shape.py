"""How one kind of value is carried in a message: to it, back, and what neither way can be read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """`out` makes of a record's value what a message's field is given, `back` of the field's value the record's."""

    out: Callable[[Any], Any]
    back: Callable[[Any], Any]


class Unreadable(ValueError):
    """What a message or a record says, and the contract does not allow; `field` is its path, such as model.name."""

    def __init__(self, why: str, value: object, allowed: str, field: str = "") -> None:
        super().__init__(f"{field}: {why}" if field else why)
        self.why, self.value, self.allowed, self.field = why, value, allowed, field

    def within(self, field: str) -> "Unreadable":
        """The same error as the record sees it that has what is wrong in this field."""
        path = f"{field}.{self.field}" if self.field else field
        return Unreadable(self.why, self.value, self.allowed, path)
