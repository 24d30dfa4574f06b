"""Answers for people at a terminal. Tokens come from anywhere: nothing that steers a terminal or hides gets through."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from actstore_api.records.terms import one_line

_VISIBLE = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍"}
_EIGHTHS = "▁▂▃▄▅▆▇█"
CELL_CHARACTERS = 60
SOURCE_CHARACTERS = 100


def visible(text: str) -> str:
    """White space as `·`, `↵`, `⇥`; control, bidirectional and zero-width characters as their escape."""
    return "".join(_VISIBLE.get(character) or one_line(character) for character in text)


def number(value: object) -> str:
    """Four significant digits for fractions, thousands apart for whole numbers."""
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return _cell(value)


def source(row: Mapping[str, Any]) -> str:
    """Where an example's document comes from: a file and a row of it, or the value of a column; empty if not known."""
    text = one_line(row.get("source") or "")
    if len(text) > SOURCE_CHARACTERS:
        text = f"{text[: SOURCE_CHARACTERS - 1]}…"
    number_of_row = row.get("row")
    return text if number_of_row is None else f"{text} row {number_of_row}"


def _cell(value: object) -> str:
    text = one_line(str(value))
    return text if len(text) <= CELL_CHARACTERS else text[: CELL_CHARACTERS - 1] + "…"


def grid(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Aligned columns under their names; columns of numbers to the right."""
    rows = list(rows)
    numeric = {name: all(isinstance(row[name], int | float | None) for row in rows) for name in columns}
    cells = [[number(row[name]) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if numeric[name] else cell.ljust(width)
            for name, cell, width in zip(columns, line, widths, strict=True)
        ).rstrip()
        for line in [list(columns), *cells]
    ]
    return "\n".join(lines)


def window(texts: Sequence[str], peak: int) -> str:
    """A window of tokens on one line, the strongest between « and »."""
    return "".join(f"«{visible(text)}»" if i == peak else visible(text) for i, text in enumerate(texts))


def spark(counts: Sequence[int]) -> str:
    """A histogram on one line, a character a bin; on a square-root scale, so that rare strong ones stay visible."""
    top = max(counts, default=0)
    return "".join(" " if not count else _EIGHTHS[math.ceil(8 * (count / top) ** 0.5) - 1] for count in counts)
