"""A filter of a run's tokens."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actstore_storage.errors import BadRequest
from actstore_storage.format.commit import Commit
from actstore_storage.format.specification import RunRecord
from actstore_storage.format.tokens import kept_classes, kept_rows
from actstore_storage.runs.snapshot import Snapshot


@dataclass(frozen=True, kw_only=True)
class TokenFilter:
    """Rows that meet every condition that is set. Ranges of sequences and positions are half-open."""

    first_sequence: int = 0
    end_sequence: int | None = None
    tokens: tuple[int, ...] = ()
    documents: tuple[int, ...] = ()
    first_position: int | None = None
    end_position: int | None = None
    exclude: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for field in ("first_sequence", "end_sequence", "first_position", "end_position"):
            value = getattr(self, field)
            if value is not None and value < 0:
                raise BadRequest(f"{field} is {value}", field=field, value=value, allowed="0 or more")
        kept_classes(self.exclude)  # refuses others

    def check(self, record: RunRecord) -> None:
        """Errors: BadRequest for ranges of sequences, or positions, that the run cannot have."""
        sequences = self.first_sequence, self.end_sequence
        positions = self.first_position or 0, self.end_position
        _check_some("sequences", sequences, record.sequences_total, f"run {record.run}")
        longest = record.specification.context_length
        _check_some("positions", positions, longest, f"sequences of run {record.run}")

    def commits(self, snapshot: Snapshot) -> list[Commit]:
        """The commits of shards that may have rows that pass. Errors: as `check`."""
        self.check(snapshot.record)
        total = snapshot.record.sequences_total
        end = total if self.end_sequence is None else min(self.end_sequence, total)
        return snapshot.commits_of(range(self.first_sequence, end))

    def mask(self, tokens: pa.Table) -> npt.NDArray[np.bool_]:
        """Which rows of a shard's tokens pass."""
        return self.mask_of(_Columns(*(tokens[name].to_numpy() for name in _Columns.__dataclass_fields__)))

    def mask_of(self, rows: "TokenColumns") -> npt.NDArray[np.bool_]:
        keep: npt.NDArray[np.bool_] = kept_rows(rows.flags, self.exclude) & (rows.sequence >= self.first_sequence)
        if self.end_sequence is not None:
            keep &= rows.sequence < self.end_sequence
        if self.tokens:
            keep &= np.isin(rows.token, self.tokens)
        if self.documents:
            keep &= np.isin(rows.document, self.documents)
        if self.first_position is not None:
            keep &= rows.position >= self.first_position
        if self.end_position is not None:
            keep &= rows.position < self.end_position
        return keep


class TokenColumns(Protocol):
    """The columns that a filter uses, with equal length, one row per token."""

    @property
    def sequence(self) -> npt.NDArray[np.int64]: ...

    @property
    def position(self) -> npt.NDArray[np.int32]: ...

    @property
    def document(self) -> npt.NDArray[np.int64]: ...

    @property
    def token(self) -> npt.NDArray[np.int32]: ...

    @property
    def flags(self) -> npt.NDArray[np.uint8]: ...


@dataclass(frozen=True)
class _Columns:
    sequence: npt.NDArray[np.int64]
    position: npt.NDArray[np.int32]
    document: npt.NDArray[np.int64]
    token: npt.NDArray[np.int32]
    flags: npt.NDArray[np.uint8]


EVERY_ROW = TokenFilter()


def _check_some(field: str, asked: tuple[int, int | None], total: int, what: str) -> None:
    """`asked`: the first, and the end (None: no end). At least one of them must be below `total`."""
    first, end = asked
    if asked == (0, None) or (first < total and (end is None or first < end)):
        return
    backwards = end is not None and end <= first
    raise BadRequest(
        f"the range of {field} is empty: first is {first} and end is {end}"
        if backwards
        else f"{what} has no {field} from {first} on",
        field=field,
        value=f"{first} to {'the last' if end is None else end - 1}",
        allowed=f"0 to {total - 1}" if total else "none: the run has no token",
    )
