"""Limits on the size of a sweep, and on how much of it is computed at once."""

from dataclasses import dataclass

from actstore_storage.settings.checks import check_positive


@dataclass(frozen=True)
class PatchingLimits:
    # Cells of one sweep, over all pairs and both directions.
    cells: int = 200_000
    pairs: int = 256
    # Tokens of one slice, summed over its rows. At least one row always runs.
    tokens_per_slice: int = 8192
    # The audit recomputes cells with about this many tokens by full forward passes.
    audited_cells: int = 4
    # Rows of a stored run that a sweep reads, to average them or to draw from them.
    stored_rows: int = 16_384
    # The target duration of a slice. Other work waits this long for its turn, and a cancelled sweep runs this long at
    # most.
    slice_seconds: float = 0.25
    # The largest answer that is cached, in bytes of its rows.
    kept_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        check_positive(self)
