"""Reading stored rows: activation vectors and tokens."""

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from actstore_api.records.terms import Provenance, Range, TokenClass

RowColumn = Literal["sequence", "position", "document", "token", "flags"]
ROW_COLUMNS: tuple[RowColumn, ...] = ("sequence", "position", "document", "token", "flags")


@dataclass(frozen=True)
class TokenSelection:
    """Which tokens of a run are used: those that meet every condition that is set.

    - `sequences`: those whose shard is not committed yet are left out. A range without any sequence of the run is
      refused; a range that goes past the last sequence is cut there.
    - `positions`: within a sequence. `documents` and `tokens` are ids; empty: all.
    """

    sequences: Range | None = None
    positions: Range | None = None
    documents: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class ReadActivations:
    """Asks for the activation vectors of one or several dense sites of a run, row by row.

    `sites` have short names or TransformerLens's long ones. `columns` are returned along with the vectors. `where`
    None: every row. No token class is left out by default: rows are returned as they are stored.
    """

    run: str
    sites: tuple[str, ...]
    columns: tuple[RowColumn, ...] = ROW_COLUMNS
    where: TokenSelection | None = None
    exclude: frozenset[TokenClass] = frozenset()


@dataclass(frozen=True)
class ReadActivationsAnswer:
    """Some of the rows, in order of (sequence, position). If the run stores only some positions, only those have rows.

    `rows` has the requested columns, in the order of ROW_COLUMNS, and `activation`: fixed_size_binary of d_model
    little-endian elements, whose field metadata has `dtype` (float32, bfloat16, float16) and `d_model`, the number of
    elements in a row. For several sites, there is one column per site, under its short name, instead of `activation`.
    Only the first message of the stream has a `provenance`.
    """

    rows: pa.Table
    provenance: Provenance | None = None


@dataclass(frozen=True)
class ReadTokens:
    """Asks for the tokens of a run and their texts, row by row. `where` and `exclude` are as in ReadActivations."""

    run: str
    where: TokenSelection | None = None
    exclude: frozenset[TokenClass] = frozenset()


@dataclass(frozen=True)
class ReadTokensAnswer:
    """Some of the rows, in order of (sequence, position).

    Columns: sequence, position, document, token, flags, text (of this token alone), source and row (of the token's
    document; see SampleExamplesAnswer). Only the first message of the stream has a `provenance`.
    """

    rows: pa.Table
    provenance: Provenance | None = None
