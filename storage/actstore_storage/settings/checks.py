"""Checks that frozen settings make of themselves. A refusal names the field; `reading` adds the variable or the key."""

from dataclasses import fields
from typing import Any

from actstore_storage.errors import SettingsError


def check_least(record: Any, least: float, *names: str) -> None:
    """Refuses a number below `least`, in the named fields or in all that are plain numbers."""
    for name in names or [one.name for one in fields(record)]:
        value = getattr(record, name)
        if isinstance(value, int | float) and not value >= least:  # so that nan is refused too
            raise SettingsError(
                f"{name} is {value}, and must be at least {least:g}",
                field=name,
                value=value,
                allowed=f"at least {least:g}",
            )


def check_positive(record: Any, *names: str) -> None:
    """Refuses a number that is not above 0, in the named fields or in all that are plain numbers."""
    for name in names or [one.name for one in fields(record)]:
        value = getattr(record, name)
        if isinstance(value, int | float) and not value > 0:
            raise SettingsError(f"{name} is {value}, and must be positive", field=name, value=value, allowed="above 0")
