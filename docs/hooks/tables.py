"""Markdown tables from plain values."""

from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Writes a Markdown table; a cell may hold any text, on several lines too.

    Args:
        heads: The columns' titles.
        rows: One sequence a row, as long as `heads`.

    Returns:
        The table, with a line break at its end.
    """
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def code(text: object) -> str:
    """Marks a text as code; an empty one stays empty."""
    return f"`{text}`" if str(text) else ""


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
