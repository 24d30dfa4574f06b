"""Limits on the size of a sweep, and on how much of it is computed at once."""

from dataclasses import dataclass

from actstore_storage.settings.checks import check_positive


@dataclass(frozen=True)
class PatchingLimits:
    # Cells of one sweep, over all pairs and both directions. A larger sweep is refused.
    cells: int = 200_000
    # Pairs of prompts of one sweep. A sweep with more is refused.
    pairs: int = 256
    # Tokens of one slice, summed over its rows. Further rows wait for the next slice; at least one row always runs.
    tokens_per_slice: int = 8192
    # The audit recomputes cells with about this many tokens by full forward passes. More make sweeps slower and the
    # audit stronger.
    audited_cells: int = 4
    # Rows of a stored run that a sweep reads, to average them or to draw from them. Of more rows it takes this many.
    stored_rows: int = 16_384
    # Seconds that a slice aims to take. Other work waits this long for its turn, and a cancelled sweep runs this long
    # at most.
    slice_seconds: float = 0.25
    # The largest answer of a sweep that is cached, in bytes of its rows. A larger one is computed again each time.
    kept_bytes: int = 64 * 2**20
    # Answers that are cached in the bucket, all together. Beyond it, the oldest are removed.
    kept_answers: int = 10_000
    # Bytes of all cached answers together. Beyond it, the oldest are removed.
    kept_total_bytes: int = 16 * 2**30
    # Days that an answer is cached. Older ones are removed.
    kept_days: int = 90

    def __post_init__(self) -> None:
        check_positive(self)
