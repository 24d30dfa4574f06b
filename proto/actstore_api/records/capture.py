"""Running a model over text and storing what it shows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from actstore_api.records.common import ModelReference

# Of the first six one value, of the last two any number.
Comparison = Literal["==", "!=", "<", "<=", ">", ">=", "in", "not in"]
CaptureState = Literal["preparing", "running", "complete", "cancelled", "failed", "paused"]
PositionsKind = Literal["all", "last", "stride", "fraction", "feature"]


@dataclass(frozen=True)
class RowFilter:
    """Keeps the rows of a table dataset whose `column` compares so with `values`, as pyarrow's filters do.

    `values` is one; of `in` and `not in` any number.
    """

    column: str
    comparison: Comparison
    values: tuple[str | int | float | bool, ...]


@dataclass(frozen=True)
class DatasetReference:
    """The text of a capture.

    `name` is a file or a folder below one of the workers' dataset folders or dataset stores: tables (JSON lines, JSON
    arrays, Parquet, Arrow, CSV), or plain text; or `hf:OWNER/NAME[:CONFIG]:SPLIT`, a dataset of the Hugging Face hub,
    where the workers allow the hub.
    """

    name: str
    # The column of a table that holds the text. Empty: `text`.
    text_field: str = ""
    # Stop after the last whole sequence within this many tokens, BOS included. None: the whole dataset.
    max_tokens: int | None = None
    # The column that holds lists of token ids, of a dataset that is tokenized already. Empty: text is tokenized.
    tokens_field: str = ""
    # Rows of a table that do not pass all of these are left out. They keep their document ids.
    filters: tuple[RowFilter, ...] = ()
    # Stop after this many documents that pass the filters. None: the whole dataset.
    max_documents: int | None = None
    # The column that says where a document comes from: a URL, an identifier. Empty: its file and row do.
    source_field: str = ""


@dataclass(frozen=True)
class Positions:
    """Which tokens' vectors a capture stores; tokens, norms and features are of every token. Made by the methods below.

    `kind`: all; last (of each sequence); stride (positions divisible by `stride`); fraction (each token with this
    probability, by a hash of seed, sequence and position); feature (tokens where that feature of that SAE is active).
    """

    kind: PositionsKind = "all"
    stride: int = 1
    fraction: float = 1.0
    seed: int = 0
    sae: str = ""
    feature: int = 0

    @classmethod
    def last(cls) -> "Positions":
        """The last token of each sequence."""
        return cls("last")

    @classmethod
    def every(cls, stride: int) -> "Positions":
        """Positions divisible by `stride`."""
        return cls("stride", stride=stride)

    @classmethod
    def random(cls, fraction: float, seed: int = 0) -> "Positions":
        """Each token with this probability; the same ones for the same seed."""
        return cls("fraction", fraction=fraction, seed=seed)

    @classmethod
    def active(cls, sae: str, feature: int) -> "Positions":
        """Tokens on which the feature is active; `sae` is one of the capture's."""
        return cls("feature", sae=sae, feature=feature)
