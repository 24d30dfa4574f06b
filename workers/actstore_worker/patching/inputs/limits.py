"""How large a sweep may be, and how much of it is computed at once."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class PatchingLimits:
    # Cells of one sweep, all pairs and both directions together.
    cells: int = 200_000
    pairs: int = 256
    # Tokens, summed over the rows, of one slice; at least one row always runs.
    tokens_per_slice: int = 8192
    # Cells of so many tokens' worth that are computed again by the full forward pass.
    audited_cells: int = 4
    # Rows of a stored run that a sweep looks at, to take their mean or to draw from them.
    stored_rows: int = 16_384
    # How long a slice should take: so long others wait for their turn, and a sweep that nobody wants any more goes on.
    slice_seconds: float = 0.25
    # Of the rows of an answer that is kept for who asks for the same.
    kept_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        if min(asdict(self).values()) <= 0:
            raise ValueError(f"limits of patching must be positive: {self}")
