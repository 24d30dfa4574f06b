"""The base of all answers: Arrow tables that can be converted, printed and shown in a notebook."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from actstore._optional import library
from actstore._view import markup
from actstore._view import text as _text
from actstore_api.records.terms import Provenance

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

SHOWN_ROWS = 20
TOKEN_TEXT_COLUMNS = ("token", "text")
HASH_DIGITS = 8


@dataclass(frozen=True, repr=False)
class Table:
    """Rows under named columns. Iterating yields each row as a dict, and `len` counts the rows.

    Tables and all answers are plain data: they can be compared, copied and pickled, and libraries that read Arrow take
    them as they are, such as `pl.DataFrame(answer)`, `pa.table(answer)` and DuckDB.

    Attributes:
        table: The rows, as a `pyarrow.Table`.
    """

    table: pa.Table = field(kw_only=True)

    def to_arrow(self) -> pa.Table:
        """Return the rows as a `pyarrow.Table`."""
        return self.table

    def to_pandas(self) -> "pd.DataFrame":
        """Return the rows as a pandas DataFrame.

        Raises:
            MissingLibrary: pandas is not installed.
        """
        library("pandas", "pandas")
        frame: pd.DataFrame = self.to_arrow().to_pandas()
        return frame

    def to_polars(self) -> "pl.DataFrame":
        """Return the rows as a polars DataFrame.

        Raises:
            MissingLibrary: polars is not installed.
        """
        frame: pl.DataFrame = library("polars", "polars").from_arrow(self.to_arrow())
        return frame

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON. NaN and infinite numbers become None, since JSON has neither."""
        return {"rows": plain_rows(self.to_arrow())}

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Hand the rows to a library that reads Arrow, without a copy (the Arrow PyCapsule interface)."""
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self.to_arrow().to_pylist()

    def __repr__(self) -> str:
        lines = [self._title(), _text.grid(self._shown_columns(), self._shown()), *self._notes()]
        return "\n".join(line for line in lines if line)

    def _repr_html_(self) -> str:
        return (
            markup.heading(self._title())
            + markup.grid(self._shown_columns(), self._shown(), self._definitions())
            + "".join(map(markup.note, self._notes()))
        )

    def _title(self) -> str:
        return f"{len(self):,} rows"

    def _definitions(self) -> Mapping[str, str]:
        """What the numbers of each column are; a notebook shows it over the column."""
        return {}

    def _shown_columns(self) -> list[str]:
        names: list[str] = self.table.column_names
        return names

    def _shown(self) -> list[dict[str, Any]]:
        return [_shown_row(row) for row in self.table.slice(0, SHOWN_ROWS).to_pylist()]

    def _notes(self) -> list[str]:
        hidden = len(self) - SHOWN_ROWS
        return [f"… {hidden:,} more rows"] if hidden > 0 else []


def plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    return [{name: plain(value) for name, value in row.items()} for row in table.to_pylist()]


def plain(value: Any) -> Any:
    if isinstance(value, list):  # a vector
        return [plain(element) for element in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown_row(row: dict[str, Any]) -> dict[str, Any]:
    """Texts of tokens with their white space visible, hashes by their first digits."""
    shown = dict(row)
    for name, value in row.items():
        if name in TOKEN_TEXT_COLUMNS and isinstance(value, str):
            shown[name] = _text.visible(value)
        elif name.endswith("sha256") and isinstance(value, str):
            shown[name] = value[:HASH_DIGITS]
    return shown


def excluded_words(excluded: tuple[str, ...], sink_ratio: float | None) -> str:
    """Sinks are none where nobody looked for them."""
    blind = " (no sinks were looked for)" if "sink" in excluded and sink_ratio == 0 else ""
    return f"excluded: {', '.join(excluded) or 'no tokens'}{blind}"


@dataclass(frozen=True, repr=False)
class Answer(Table):
    """A table that says where its numbers come from and which tokens they leave out.

    Attributes:
        provenance: Model, weights, run and software that the numbers come from.
        excluded: Token classes that were left out, such as `bos`, in alphabetical order.
    """

    provenance: Provenance = field(kw_only=True)
    excluded: tuple[str, ...] = field(default=(), kw_only=True)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "excluded": list(self.excluded), "provenance": asdict(self.provenance)}

    @property
    def _left_out(self) -> str:
        """In words."""
        return excluded_words(self.excluded, self.provenance.sink_ratio)

    def _notes(self) -> list[str]:
        return [*super()._notes(), f"{self._left_out} · {self.provenance.summary}"]


@dataclass(frozen=True, repr=False)
class Listing(Table):
    """A list of runs, models, SAEs or datasets.

    Attributes:
        kind: What is listed, in words.
        note: What else may exist that the list cannot show, in words; empty if there is nothing to say.
    """

    kind: str
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | ({"note": self.note} if self.note else {})

    def _title(self) -> str:
        return f"{len(self):,} {self.kind}"

    def _notes(self) -> list[str]:
        return [*super()._notes(), *([self.note] if self.note else [])]


@dataclass(frozen=True, repr=False)
class Verdict(Table):
    """What a check of a store found, a row for each finding.

    Columns: kind (damaged, missing, unreadable, orphan, unknown, removed), key (of the object) and what (is wrong).

    Attributes:
        sound: Whether nothing is damaged, missing or unreadable. Orphans, which crashes leave behind, and objects that
            actstore did not write take space and do no harm.
        runs: Number of runs that were checked.
        shards: Number of shards that were checked.
        objects: Number of objects that were checked.
        bytes: Size of these objects together, in bytes.
    """

    sound: bool
    runs: int
    shards: int
    objects: int
    bytes: int

    def _title(self) -> str:
        state = "sound" if self.sound else "NOT SOUND"
        return f"{state}: {self.runs:,} runs, {self.shards:,} shards, {self.objects:,} objects, {self.bytes:,} bytes"
