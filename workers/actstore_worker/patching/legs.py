"""A leg is one pair of prompts in one direction: which rows of the grid are run, in which slices, and their results."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actstore_worker.patching.audit import Auditor, Chosen, choose_checks
from actstore_worker.patching.estimates.screening import Screened
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.kernels.full import Cell, Kernel, Patch
from actstore_worker.patching.metrics import Metrics, Values
from actstore_worker.patching.plan import SweepPlan
from actstore_worker.patching.replacing import Replacing
from actstore_worker.patching.steps import Asking, Budget, Logits, patched
from actstore_worker.patching.swept_pairs import Pair, Pairs
from actstore_worker.patching.tables import ComputedCells, cell_table
from actstore_worker.patching.updates import Finished, interrupted

# Rows that are sent at once: about a MiB.
ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Leg:
    """One pair and direction. The rows `chosen` are computed. Rows that are `unchanged` are the base run's, and cost
    nothing.
    """

    plan: SweepPlan
    number: int
    pair: Pair
    replacing: Replacing
    chosen: Screened
    unchanged: npt.NDArray[np.bool_]

    @cached_property
    def exact(self) -> npt.NDArray[np.bool_]:
        found = np.zeros(len(self.plan.grid), dtype=bool)
        found[self.chosen.exact] = True
        return found

    @cached_property
    def wanted(self) -> npt.NDArray[np.bool_]:
        """The rows that are run."""
        return self.exact & ~self.unchanged

    @property
    def length(self) -> int:
        """The number of tokens of the base run."""
        return len(self.replacing.base.tokens)

    def cells(self, row: int) -> tuple[Cell, ...]:
        return self.plan.cells(self.plan.grid[row], self.pair.tokens, self.replacing.direction)

    def begun(self, finished: Finished, place: int) -> list[pa.Table]:
        """Returns the rows that an earlier process finished, for the leg at that index.

        Errors: ActstoreError WORKERS_UNAVAILABLE if they belong to another selection by a screen: estimates may differ
        in the last bit between machines.
        """
        rows = len(self.plan.grid)
        if finished.rows is None or finished.rows.num_rows <= place * rows:
            return []
        found = finished.rows.slice(place * rows, rows)
        computed = found["logit_difference"].is_valid().to_numpy()
        if not np.array_equal(computed, self.exact[: found.num_rows]):
            raise interrupted("its screen now selects other cells")
        return [found]

    def next_slice(self, first: int, kernel: Kernel, budget: float, most: int) -> range:
        """Returns the next rows from `first` on, of which at most `most` are run, within the budget; at least one."""
        price, runs = 0.0, 0
        end = min(len(self.plan.grid), first + ROWS_AT_ONCE)
        for row in range(first, end):
            if not self.wanted[row]:
                continue
            price += kernel.price(self.cells(row), self.length)
            if runs and (runs == most or price > budget):
                return range(first, row)
            runs += 1
        return range(first, end)

    def table(self, rows: range, found: Metrics) -> pa.Table:
        """Returns the rows as a table. `found` has the rows that were computed exactly."""
        base, source = self.pair.sides(self.replacing.direction)
        part, estimates = slice(rows.start, rows.stop), self.chosen.estimates
        computed = ComputedCells(
            rows,
            self.unchanged[part],
            self.exact[part],
            found,
            base.metrics,
            # The divergence of the source run from itself is 0, and that of the base run is among its own metrics.
            replace(source.metrics, kl=np.zeros(1)),
            None if estimates is None else estimates[self.number, part],
        )
        return cell_table(self.plan, self.number, self.replacing.direction, base.texts, computed)

    def ranked(self, table: pa.Table) -> tuple[Values, Values]:
        """Returns estimates, and effects on the logit difference, of the rows that were run. `table` has all rows."""
        if self.chosen.estimates is None:
            return np.zeros(0), np.zeros(0)
        base, _ = self.pair.sides(self.replacing.direction)
        effects = table["logit_difference"].to_numpy()[self.wanted] - base.metrics.logit_difference
        return self.chosen.estimates[self.number, self.wanted], effects


def legs(pairs: Pairs, screened: Mapping[str, Screened]) -> Iterator[Leg]:
    """Returns each pair in each direction."""
    for number, pair in enumerate(pairs.each()):
        for direction, chosen in screened.items():
            yield Leg(pairs.plan, number, pair, pairs.replacing(pair, direction), chosen, pairs.unchanged[number])


class LegRun:
    """Runs slices of a leg, and audits them."""

    def __init__(self, leg: Leg, kernel: Kernel, auditor: Auditor, limits: PatchingLimits, budget: Budget) -> None:
        self._leg, self._kernel, self._auditor, self._budget = leg, kernel, auditor, budget
        self._most = max(1, limits.tokens_per_slice // leg.length)
        place = f"{leg.number} {leg.replacing.direction}"
        self._checks: Chosen = choose_checks(np.flatnonzero(leg.wanted), self._most, limits.audited_cells, place)

    def next_slice(self, first: int) -> range:
        return self._leg.next_slice(first, self._kernel, self._budget(), self._most)

    def metrics(self, rows: range) -> Asking[Metrics]:
        """Returns the metrics of the rows that were computed exactly."""
        logits = yield from self._logits([row for row in rows if self._leg.exact[row]])
        return Metrics.of(logits, self._leg.pair.answers, self._leg.replacing.source.logits)

    def _logits(self, rows: Sequence[int]) -> Asking[Logits]:
        leg = self._leg
        logits = leg.replacing.base.logits.expand(len(rows), -1)
        places = [place for place, row in enumerate(rows) if leg.wanted[row]]
        if not places:
            return logits
        found = yield from self._run([rows[place] for place in places])
        if len(places) == len(rows):
            return found
        logits = logits.clone()
        logits[places] = found
        return logits

    def _run(self, rows: Sequence[int]) -> Asking[Logits]:
        """Runs a slice. If a control is due, one more run is added, in which cells are replaced by their own values, in
        the same way as the first patch.
        """
        leg = self._leg
        patches: list[Patch] = [leg.replacing.patch(leg.plan.grid[row]) for row in rows]
        controls = [replace(patches[0], source=leg.replacing.base)] if self._checks.controls.intersection(rows) else []
        ran = yield from patched([*patches, *controls], self._kernel)
        prices = [self._kernel.price(patch.cells, leg.length) for patch in (*patches, *controls)]
        share = sum(prices[: len(patches)]) / sum(prices) if sum(prices) else 0.0
        whole = len(patches) * leg.length * (len(leg.replacing.base.residuals) - 1)
        self._auditor.count(ran.token_layers * share, whole)
        audited = [place for place, row in enumerate(rows) if row in self._checks.audited]
        logits = ran.logits[: len(patches)]
        yield from self._auditor.see(patches, logits, audited, ran.logits[-1] if controls else None)
        return logits
