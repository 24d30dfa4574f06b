"""Stored rows as they lie in the bucket."""

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from actstore_api.records.terms import Provenance, Range, TokenClass

RowColumn = Literal["sequence", "position", "document", "token", "flags"]
ROW_COLUMNS: tuple[RowColumn, ...] = ("sequence", "position", "document", "token", "flags")


@dataclass(frozen=True)
class TokenSelection:
    """Which tokens of a run are looked at: those that pass every part that is given.

    Of `sequences`, those that no committed shard holds are left out; a range in which the run has no sequence is
    refused, and one that goes past the last sequence ends there. `positions` are those in their sequence. `documents`
    and `tokens` are ids; empty: all.
    """

    sequences: Range | None = None
    positions: Range | None = None
    documents: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class ReadActivations:
    """Asks for vectors of one dense site or several of a run, row by row.

    `sites` have short names or TransformerLens's long ones. `columns` come beside the vectors. `where` None: every row.
    No class of tokens is left out unless it is named, for rows come as they are stored.
    """

    run: str
    sites: tuple[str, ...]
    columns: tuple[RowColumn, ...] = ROW_COLUMNS
    where: TokenSelection | None = None
    exclude: frozenset[TokenClass] = frozenset()


@dataclass(frozen=True)
class ReadActivationsAnswer:
    """Some of the rows, in order of (sequence, position); of a run that stores some positions only, those.

    `rows` has the columns that were asked for, in the order of ROW_COLUMNS, and `activation`: fixed_size_binary of
    d_model little-endian elements, whose field metadata has `dtype` (float32, bfloat16, float16) and `d_model`, the
    elements of a row. Of several sites, a column a site under its short name instead. `provenance` comes first only.
    """

    rows: pa.Table
    provenance: Provenance | None = None


@dataclass(frozen=True)
class ReadTokens:
    """Asks for the tokens of a run and their texts, row by row; `where` and `exclude` as of ReadActivations."""

    run: str
    where: TokenSelection | None = None
    exclude: frozenset[TokenClass] = frozenset()


@dataclass(frozen=True)
class ReadTokensAnswer:
    """Some of the rows, in order of (sequence, position).

    Columns sequence, position, document, token, flags, and `text`: the token's own text; then source and row of its
    document, as of SampleExamplesAnswer. `provenance` comes with the first only.
    """

    rows: pa.Table
    provenance: Provenance | None = None
