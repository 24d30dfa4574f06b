"""Filters of table rows, like pyarrow's, except that they never compare values of different kinds."""

import math
import operator
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from actstore_storage.errors import BadRequest
from actstore_storage.format.specification import RowFilter

COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda value, allowed: value in allowed,
    "not in": lambda value, allowed: value not in allowed,
}
_SEVERAL = ("in", "not in")
_COMPARED = ("text", "number", "truth")
_FIELD = "dataset.row_filters"


def check_filter(found: RowFilter) -> None:
    """Refuses a filter that could not be compared with any column: BadRequest."""
    if found.comparison not in COMPARISONS:
        raise _invalid(found.comparison, list(COMPARISONS))
    several = found.comparison in _SEVERAL
    if several != isinstance(found.value, tuple):
        raise _invalid(_told(found), "any number of values with `in` and `not in`, one with the others")
    kinds = {_kind(value) for value in _values(found)}
    if len(kinds) > 1:
        raise _invalid(_told(found), f"values of one kind, not a mix of {' and '.join(sorted(kinds))}")
    if any(isinstance(value, float) and math.isnan(value) for value in _values(found)):
        raise _invalid(_told(found), "a number other than NaN, which is equal to nothing")


class PreparedFilter:
    """A filter that is compared with many rows: each takes the same time, however many values the filter has."""

    def __init__(self, found: RowFilter) -> None:
        self._found = found
        self._kinds = {_kind(value) for value in _values(found)}
        self._wanted = _wanted(found, _values(found))
        # A decimal is compared with the number as written, and not with its nearest binary fraction.
        self._exact = _wanted(found, tuple(map(_exact, _values(found))))
        self._compare = COMPARISONS[found.comparison]

    def passes(self, place: str, row: Mapping[str, Any]) -> bool:
        """Whether a row passes. A missing value never passes, as with pyarrow's filters.

        Errors: BadRequest for a column that does not exist, and for a value of another kind than the filter's.
        """
        if self._found.column not in row:
            raise no_field(place, self._found.column, row, _FIELD)
        value = row[self._found.column]
        if value is None:
            return False
        kind = _kind(value)
        if self._kinds and (self._kinds != {kind} or kind not in _COMPARED):
            raise _unlike(place, self._found, value, kind)
        return self._compare(value, self._exact if isinstance(value, Decimal) else self._wanted)


def compares_text(found: RowFilter) -> bool:
    """Whether the filter's values are text."""
    return any(isinstance(value, str) for value in _values(found))


def no_field(place: str, column: str, there: Any, field: str) -> BadRequest:
    """Makes the error for a column that a row does not have; `there` are those that it has."""
    return BadRequest(
        f"{place} has no field {column!r}; it has: {', '.join(there) or 'none'}",
        reason="DATASET_UNREADABLE",
        field=field,
        value=column,
        allowed=sorted(there),
    )


def _values(found: RowFilter) -> tuple[Any, ...]:
    return found.value if isinstance(found.value, tuple) else (found.value,)


def _wanted(found: RowFilter, values: tuple[Any, ...]) -> Any:
    if found.comparison not in _SEVERAL:
        return values[0]
    return frozenset(values) if values else ()  # to which any value may be compared, also a list


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "truth"
    if isinstance(value, int | float | Decimal):
        return "number"
    return "text" if isinstance(value, str) else type(value).__name__


def _exact(value: Any) -> Any:
    return Decimal(str(value)) if isinstance(value, float) else value


def _told(found: RowFilter) -> str:
    return f"{found.column} {found.comparison} {found.value!r}"


def _unlike(place: str, found: RowFilter, value: Any, kind: str) -> BadRequest:
    allowed = f"a {kind}, like the column's values" if kind in _COMPARED else "a column of text, numbers or booleans"
    return BadRequest(
        f"{place}: {found.column} is {value!r} ({kind}), which cannot be compared with {found.value!r} by "
        f"{found.comparison}",
        field=_FIELD,
        value=_told(found),
        allowed=allowed,
    )


def _invalid(value: object, allowed: object) -> BadRequest:
    return BadRequest(f"{_FIELD} cannot be {value!r}", field=_FIELD, value=value, allowed=allowed)
