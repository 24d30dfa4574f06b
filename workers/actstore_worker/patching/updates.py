"""What processes tell each other of a sweep: rows as they come, and what another process needs to go on behind them.

Plain values, so that who hands them on loads no model's libraries.
"""

from dataclasses import dataclass

import pyarrow as pa

from actstore_api.records.patching import SweepProgress, SweepResult
from actstore_api.records.terms import Provenance
from actstore_storage.errors import ActstoreError


@dataclass(frozen=True)
class Checked:
    """What was seen so far. Errors are in a logit, the largest over the vocabulary. `token_layers` were computed for
    the cells, and `token_layers_full` would be by the whole model; what the check itself costs is in neither.
    """

    audited_cells: int = 0
    largest_error: float = 0.0
    noise_floor: float = 0.0
    tolerance: float = 0.0
    token_layers: float = 0.0
    token_layers_full: float = 0.0


NOTHING_CHECKED = Checked()


@dataclass(frozen=True)
class Finished:
    """What of a sweep was handed out before, whoever computed it, and from what."""

    rows: pa.Table | None = None
    checked: Checked = NOTHING_CHECKED
    provenance: Provenance | None = None

    @property
    def cells(self) -> int:
        """Without rows that a screen left out."""
        return 0 if self.rows is None else self.rows.num_rows - self.rows["logit_difference"].null_count

    def check_goes_on(self, provenance: Provenance) -> None:
        """Errors: ActstoreError WORKERS_UNAVAILABLE where the rest would be computed from something else: files of the
        model or of the SAE may have been written since, and machines differ.
        """
        if self.rows is not None and self.provenance != provenance:
            raise interrupted("its model, SAE or machine has changed")


NOTHING_FINISHED = Finished()


@dataclass(frozen=True)
class CheckedCells:
    """Rows of the answer, in order, what the sweep's check of itself has seen up to there, and where they come from."""

    rows: pa.Table
    checked: Checked
    provenance: Provenance


SweepUpdate = SweepProgress | CheckedCells | SweepResult


def interrupted(why: str) -> ActstoreError:
    return ActstoreError(
        f"the sweep was interrupted and cannot continue, because {why}; start it again", reason="WORKERS_UNAVAILABLE"
    )
