"""A feature's activations above 0, each with its token."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Entries:
    """Columns of equal length, one row per activation. The strongest come first, ties by sequence, then position, if a
    function says that they are in order.
    """

    activation: npt.NDArray[np.float32]
    sequence: npt.NDArray[np.int64]
    position: npt.NDArray[np.int32]
    document: npt.NDArray[np.int64]
    token: npt.NDArray[np.int32]
    flags: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.activation)

    def take(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_] | slice) -> "Entries":
        return Entries(*(getattr(self, name)[rows] for name in COLUMNS))

    def in_order(self) -> "Entries":
        return self.take(np.lexsort((self.position, self.sequence, -self.activation)))

    @classmethod
    def concatenated(cls, parts: Sequence["Entries"]) -> "Entries":
        parts = parts or [_NONE]
        if len(parts) == 1:
            return parts[0]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS))


COLUMNS = tuple(field.name for field in fields(Entries))
_TYPES: tuple[Any, ...] = (np.float32, np.int64, np.int32, np.int64, np.int32, np.uint8)
_NONE = Entries(*(np.empty(0, kind) for kind in _TYPES))
