"""One pair of prompts in one direction: which rows of the grid are run, in which slices, and what becomes of them."""

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

# Rows that are handed out at once: about a MiB.
ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Leg:
    """Of the rows `chosen` are wanted. Those that are `unchanged` are the base run's, and cost nothing."""

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
        """Rows that are run."""
        return self.exact & ~self.unchanged

    @property
    def length(self) -> int:
        """Tokens of the base run."""
        return len(self.replacing.base.tokens)

    def cells(self, row: int) -> tuple[Cell, ...]:
        return self.plan.cells(self.plan.grid[row], self.pair.tokens, self.replacing.direction)

    def begun(self, finished: Finished, place: int) -> list[pa.Table]:
        """Rows of before, of the leg at that place.

        Errors: ActstoreError WORKERS_UNAVAILABLE where they are of another choice of a screen: estimates of another
        machine may be others in the last bit.
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
        """Rows from `first` on, of which at most `most` are run, for no more than the budget; one at least."""
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
        """`found`: of those rows that are exact."""
        base, source = self.pair.sides(self.replacing.direction)
        part, estimates = slice(rows.start, rows.stop), self.chosen.estimates
        computed = ComputedCells(
            rows,
            self.unchanged[part],
            self.exact[part],
            found,
            base.metrics,
            # Of the source run to itself there is no divergence, and of the base run to it what its own metrics say.
            replace(source.metrics, kl=np.zeros(1)),
            None if estimates is None else estimates[self.number, part],
        )
        return cell_table(self.plan, self.number, self.replacing.direction, base.texts, computed)

    def ranked(self, table: pa.Table) -> tuple[Values, Values]:
        """Of the rows that were run: estimates, and effects on the logit difference. `table` has all rows."""
        if self.chosen.estimates is None:
            return np.zeros(0), np.zeros(0)
        base, _ = self.pair.sides(self.replacing.direction)
        effects = table["logit_difference"].to_numpy()[self.wanted] - base.metrics.logit_difference
        return self.chosen.estimates[self.number, self.wanted], effects


def legs(pairs: Pairs, screened: Mapping[str, Screened]) -> Iterator[Leg]:
    """Each pair in each direction."""
    for number, pair in enumerate(pairs.each()):
        for direction, chosen in screened.items():
            yield Leg(pairs.plan, number, pair, pairs.replacing(pair, direction), chosen, pairs.unchanged[number])


class LegRun:
    """Runs slices of a leg, and has them checked."""

    def __init__(self, leg: Leg, kernel: Kernel, auditor: Auditor, limits: PatchingLimits, budget: Budget) -> None:
        self._leg, self._kernel, self._auditor, self._budget = leg, kernel, auditor, budget
        self._most = max(1, limits.tokens_per_slice // leg.length)
        place = f"{leg.number} {leg.replacing.direction}"
        self._checks: Chosen = choose_checks(np.flatnonzero(leg.wanted), self._most, limits.audited_cells, place)

    def next_slice(self, first: int) -> range:
        return self._leg.next_slice(first, self._kernel, self._budget(), self._most)

    def metrics(self, rows: range) -> Asking[Metrics]:
        """Of those rows that are exact."""
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
        """Where it is the turn of one, there is one run more, in which cells are replaced by what is there: it goes the
        way of the first patch.
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
