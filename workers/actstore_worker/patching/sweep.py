"""Runs sweeps: patches every cell of a grid, in both directions, and audits the results."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actstore_api.records.patching import RunSweep, SweepProgress, SweepResult
from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.audit import Auditor
from actstore_worker.patching.estimates.attribution import estimate_effects
from actstore_worker.patching.estimates.screening import Screened, choose_cells, exact_count, rank_agreement
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.inputs.stored_rows import StoredReading, StoredRows
from actstore_worker.patching.inputs.supplies import Supplies, needed
from actstore_worker.patching.kernels.frozen_paths import FrozenPaths
from actstore_worker.patching.kernels.full import FullForward, Kernel
from actstore_worker.patching.kernels.layer_calls import Unresumable
from actstore_worker.patching.kernels.paths import Paths
from actstore_worker.patching.kernels.resumed import Resumed
from actstore_worker.patching.legs import LegRun, legs
from actstore_worker.patching.metrics import Values
from actstore_worker.patching.plan import SweepPlan, plan_sweep
from actstore_worker.patching.replacing import given_to
from actstore_worker.patching.steps import Budget, Ran, Steps, drive, unlimited
from actstore_worker.patching.swept_pairs import Pair, Pairs, check_apart
from actstore_worker.patching.updates import NOTHING_FINISHED, CheckedCells, Finished, SweepUpdate
from actstore_worker.provenance import live_provenance


@dataclass(frozen=True)
class WholeSweep(SweepResult):
    """A sweep's result with all rows, for callers in the same process."""

    cells: pa.Table


@dataclass(frozen=True)
class Kernels:
    """The kernel that computes cells, and the reference kernel of the audit."""

    fast: Kernel
    slow: Kernel


def run_sweep(
    model: LanguageModel,
    request: RunSweep,
    limits: PatchingLimits,
    kernel: Kernel | None = None,
    supplies: Supplies | None = None,
) -> Iterator[SweepProgress | WholeSweep]:
    """Runs `sweep_steps` to the end and returns all rows in one table. The model must not be shared meanwhile."""
    kernels = Kernels(kernel or fastest_kernel(model), FullForward(model))
    parts: list[pa.Table] = []
    updates: Iterator[SweepUpdate] = drive(sweep_steps(model, request, limits, kernels, supplies))
    for update in updates:
        if isinstance(update, CheckedCells):
            parts.append(update.rows)
        elif isinstance(update, SweepResult):
            yield WholeSweep(**vars(update), cells=pa.concat_tables(parts))
        else:
            yield update


def fastest_kernel(model: LanguageModel) -> Kernel:
    """Returns the kernel with partial forward passes, or the full one if the model's layers do not support them; the
    answer says which.
    """
    try:
        return Resumed(model)
    except Unresumable:
        return FullForward(model)


def kernels_of(model: LanguageModel, plan: SweepPlan, kernels: Kernels) -> Kernels:
    """Returns the kernels of a sweep. With receivers, they patch the receivers."""
    if plan.receivers is None:
        return kernels
    return Kernels(Paths(model, plan.receivers, kernels.fast), FrozenPaths(model, plan.receivers))


def sweep_steps(
    model: LanguageModel,
    request: RunSweep,
    limits: PatchingLimits,
    kernels: Kernels,
    supplies: Supplies | None = None,
    budget: Budget = unlimited,
    finished: Finished = NOTHING_FINISHED,
) -> Steps[SweepUpdate, None]:
    """Yields progress and rows after each slice, then the result. Errors: BadRequest, before the first patched run;
    AUDIT_FAILED if patched runs differ from full forward passes.
    """
    plan = plan_sweep(model, request, limits, supplies)
    provenance = live_provenance(model, plan.sae)
    finished.check_goes_on(provenance)
    kernels = kernels_of(model, plan, kernels)
    stored = yield from _stored_rows(model, plan, limits, supplies, finished.cells)
    pairs = Pairs(model, plan, given_to(plan, model, stored))
    check_apart(pairs.first)
    screened = yield from _screen(pairs, limits, finished.cells)
    auditor = Auditor(kernels.slow, model.dtype, budget, finished.checked)
    total, done, ranked = sum(len(chosen.exact) for chosen in screened.values()) * len(plan.pairs), finished.cells, []
    for number, leg in enumerate(legs(pairs, screened)):
        parts = leg.begun(finished, number)
        slices = LegRun(leg, kernels.fast, auditor, limits, budget)
        first = sum(part.num_rows for part in parts)
        yield SweepProgress(done, total)
        while first < len(plan.grid):
            rows = slices.next_slice(first)
            found = yield from slices.metrics(rows)
            parts.append(leg.table(rows, found))
            first, done = rows.stop, done + len(found.rank)
            yield CheckedCells(parts[-1], auditor.checked, provenance)
            yield SweepProgress(done, total)
        ranked.append(leg.ranked(pa.concat_tables(parts)))
    yield pairs.end(auditor.verdict(kernels.fast, rank_agreement(ranked)))


def _stored_rows(
    model: LanguageModel, plan: SweepPlan, limits: PatchingLimits, supplies: Supplies | None, done: int
) -> Generator[SweepProgress, Ran | None, StoredRows | None]:
    """Reads the rows for the sources mean and resample. Other work may run between sites."""
    if plan.stored is None:
        return None
    of_grid = len(plan.grid) if plan.screen is None else min(plan.screen.exact_cells, len(plan.grid))
    total = of_grid * len(plan.pairs) * len(plan.directions)
    bucket = needed(supplies).bucket
    reading = StoredReading.begin(bucket, model, plan.stored, plan.source, plan.length, limits.stored_rows)
    rows = {}
    for site in sorted(plan.sites, key=str):
        yield SweepProgress(done, total)
        rows[site] = reading.rows(site)
    return StoredRows(reading.taken, rows)


def _screen(
    pairs: Pairs, limits: PatchingLimits, done: int
) -> Generator[SweepProgress, Ran | None, dict[str, Screened]]:
    """Returns the selection for each direction. Without a screen every cell is computed."""
    plan, unchanged = pairs.plan, pairs.unchanged
    if plan.screen is None:
        return {direction: Screened(np.arange(len(plan.grid))) for direction in plan.directions}
    total = exact_count(unchanged, plan.screen.exact_cells) * len(plan.pairs) * len(plan.directions)
    estimates = {direction: np.zeros(unchanged.shape) for direction in plan.directions}
    for number in range(len(plan.pairs)):
        pair, wanted = pairs.get(number), np.flatnonzero(~unchanged[number])
        for direction in plan.directions if len(wanted) else ():
            estimates[direction][number, wanted] = _estimated(pairs, pair, direction, wanted, limits)
            yield SweepProgress(done, total)
    return {
        direction: choose_cells(found, unchanged, plan.screen.exact_cells) for direction, found in estimates.items()
    }


def _estimated(
    pairs: Pairs, pair: Pair, direction: str, wanted: npt.NDArray[np.intp], limits: PatchingLimits
) -> Values:
    plan, replacing = pairs.plan, pairs.replacing(pair, direction)
    assert plan.screen is not None  # noqa: S101  by `_screen`
    patches = [replacing.patch(plan.grid[row]).cells for row in wanted]
    base, values = replacing.base, replacing.values
    return estimate_effects(pairs.model, base, values, pair.answers, patches, plan.screen, limits.tokens_per_slice)
