"""`--print-config`: every setting with its value and its source, as TOML that a process reads again."""

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import tomli_w

from actstore_storage.settings.reading import DEFAULT, Found, FoundSettings

_HIDDEN = "***"


def printed(settings: FoundSettings) -> str:
    """One line a setting. What has no value, and each secret, stands in a comment."""
    return "\n".join(_lines(settings)) + "\n"


def _lines(settings: FoundSettings) -> Iterator[str]:
    table: tuple[str, ...] = ()
    for path, found in sorted(settings.found.items(), key=lambda each: each[0][:-1]):
        if path[:-1] != table:
            table = path[:-1]
            yield f"\n[{'.'.join(table)}]"
        yield _line(found)


def _line(found: Found) -> str:
    name, source = found.setting.path[-1], found.source
    if found.missing and not found.setting.path[:-1]:  # a group may be absent
        return f"# {name} is required"
    if found.missing or found.value is None or (found.setting.secret and source == DEFAULT):
        return f"# {name} is not set"
    if found.setting.secret:
        return f'# {name} = "{_HIDDEN}"  # {source}'
    return f"{tomli_w.dumps({name: _plain(found.value)}).strip()}  # {source}"


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value
