"""Messages between processes about a sweep: rows as they are finished, and what another process needs to continue.

They are plain values, so that processes that forward them load no model libraries.
"""

from dataclasses import dataclass

import pyarrow as pa

from actstore_api.records.patching import SweepProgress, SweepResult
from actstore_api.records.terms import Provenance
from actstore_storage.errors import ActstoreError


@dataclass(frozen=True)
class Checked:
    """The audit so far. Errors are in logits, the largest over the vocabulary. `token_layers` were computed for the
    cells; full forward passes would take `token_layers_full`. Neither includes the audit.
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
    """The part of a sweep that was sent before, by any process, and the provenance of its rows."""

    rows: pa.Table | None = None
    checked: Checked = NOTHING_CHECKED
    provenance: Provenance | None = None

    @property
    def cells(self) -> int:
        """The number of computed cells, without those that a screen left out."""
        return 0 if self.rows is None else self.rows.num_rows - self.rows["logit_difference"].null_count

    def check_goes_on(self, provenance: Provenance) -> None:
        """Refuses to continue with other weights or on another kind of machine: files of the model or of the SAE may
        have changed. Errors: ActstoreError WORKERS_UNAVAILABLE.
        """
        if self.rows is not None and self.provenance != provenance:
            raise interrupted("its model, SAE or machine has changed")


NOTHING_FINISHED = Finished()


@dataclass(frozen=True)
class CheckedCells:
    """Rows of the answer, in order, the audit up to there, and their provenance."""

    rows: pa.Table
    checked: Checked
    provenance: Provenance


SweepUpdate = SweepProgress | CheckedCells | SweepResult


def interrupted(why: str) -> ActstoreError:
    return ActstoreError(
        f"the sweep was interrupted and cannot continue, because {why}; start it again", reason="WORKERS_UNAVAILABLE"
    )
