"""Sweeps: every cell of a grid patched in its turn, in both directions, and checked against itself."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actstore_storage.snapshot import Provenance
from actstore_worker.model import LanguageModel
from actstore_worker.patching.attribution import estimate_effects
from actstore_worker.patching.audit import Audit, Auditor
from actstore_worker.patching.kernel import FullForward, Kernel
from actstore_worker.patching.metrics import Metrics, Values
from actstore_worker.patching.plan import Entry, SweepPlan, plan_sweep
from actstore_worker.patching.request import PatchingLimits, SweepRequest
from actstore_worker.patching.resumed import Resumed, Unresumable
from actstore_worker.patching.screening import Screened, choose_cells, exact_count, rank_agreement
from actstore_worker.patching.sources import Given, Replacing, given_to
from actstore_worker.patching.steps import Logits, Steps, Work, drive, patched
from actstore_worker.patching.stored_rows import TakenRows
from actstore_worker.patching.supplies import Supplies
from actstore_worker.patching.tables import ComputedCells, baseline_table, cell_table, direct_table, token_table
from actstore_worker.patching.unpatched import Pair, check_apart, run_pair
from actstore_worker.provenance import live_provenance


@dataclass(frozen=True)
class SweepProgress:
    cells_done: int
    cells_total: int


@dataclass(frozen=True)
class SweepResult:
    """Tables and numbers of proto SweepResult."""

    cells: pa.Table
    tokens: pa.Table
    baselines: pa.Table
    direct: pa.Table
    clean_logit_difference: float
    corrupt_logit_difference: float
    audit: Audit
    provenance: Provenance
    # Of the sources mean and resample.
    taken: TakenRows | None = None


def run_sweep(
    model: LanguageModel,
    request: SweepRequest,
    limits: PatchingLimits,
    kernel: Kernel | None = None,
    supplies: Supplies | None = None,
) -> Iterator[SweepProgress | SweepResult]:
    """`sweep_steps` with the whole model to itself."""
    kernel = kernel or fastest_kernel(model)
    return drive(model, kernel, sweep_steps(model, request, limits, kernel, supplies))


def fastest_kernel(model: LanguageModel) -> Kernel:
    """The full forward pass for a model whose layers want to be told what we do not know; the answer says so."""
    try:
        return Resumed(model)
    except Unresumable:
        return FullForward(model)


def sweep_steps(
    model: LanguageModel,
    request: SweepRequest,
    limits: PatchingLimits,
    kernel: Kernel,
    supplies: Supplies | None = None,
) -> Steps[SweepProgress | SweepResult, None]:
    """Progress after each slice, then one result. Errors: BadRequest, before the first patched run; AUDIT_FAILED where
    patched runs are not what the whole model makes of the same prompts. `kernel` is what will run the work.
    """
    plan = plan_sweep(model, request, limits, supplies)
    given = given_to(plan, model, limits, supplies)
    pairs = [run_pair(model, tokens, plan.sites) for tokens in plan.pairs]
    check_apart(pairs[0])
    auditor = Auditor(model, limits.audited_cells)
    screened = yield from _screen(model, plan, given, limits, pairs)
    total = sum(len(chosen.exact) for chosen in screened.values()) * len(pairs)
    tables, ranked, done = [], [], 0
    for number, pair in enumerate(pairs):
        for direction, chosen in screened.items():
            replacing, parts = _replacing(plan, given, pair, direction), []
            for entries in _slices(plan, limits, chosen.exact):
                parts.append((yield from _metrics(auditor, replacing, pair, entries)))
                done += len(entries)
                yield SweepProgress(done, total)
            found = Metrics.joined(parts)
            tables.append(_table(plan, number, pair, direction, found, chosen))
            ranked.append(_ranked(plan, number, pair, direction, found, chosen))
    first = pairs[0]
    yield SweepResult(
        cells=pa.concat_tables(tables),
        tokens=token_table(first.clean.texts, first.corrupt.texts),
        baselines=baseline_table([(pair.clean.metrics, pair.corrupt.metrics) for pair in pairs]),
        direct=direct_table([(pair.clean.shares, pair.corrupt.shares) for pair in pairs]),
        clean_logit_difference=float(first.clean.metrics.logit_difference[0]),
        corrupt_logit_difference=float(first.corrupt.metrics.logit_difference[0]),
        audit=auditor.verdict(kernel, rank_agreement(ranked)),
        provenance=live_provenance(model, plan.sae),
        taken=None if given.stored is None else given.stored.taken,
    )


def _screen(
    model: LanguageModel, plan: SweepPlan, given: Given, limits: PatchingLimits, pairs: Sequence[Pair]
) -> Generator[SweepProgress, Logits | None, dict[str, Screened]]:
    """By direction. Without a screen every cell is computed."""
    if plan.screen is None:
        return {direction: Screened(np.arange(len(plan.grid))) for direction in plan.directions}
    unchanged = np.array([_unchanged(plan, pair) for pair in pairs])
    total = exact_count(unchanged, plan.screen.exact_cells) * len(pairs) * len(plan.directions)
    screened = {}
    for direction in plan.directions:
        estimates = np.zeros(unchanged.shape)
        for number, pair in enumerate(pairs):
            wanted = np.flatnonzero(~unchanged[number])
            if len(wanted):
                replacing = _replacing(plan, given, pair, direction)
                estimates[number, wanted] = estimate_effects(
                    model,
                    replacing.base,
                    replacing.values,
                    pair.answers,
                    [replacing.patch(plan.grid[i]).cells for i in wanted],
                    plan.screen,
                    limits.tokens_per_slice,
                )
            yield SweepProgress(0, total)
        screened[direction] = choose_cells(estimates, unchanged, plan.screen.exact_cells)
    return screened


def _replacing(plan: SweepPlan, given: Given, pair: Pair, direction: str) -> Replacing:
    base, source = pair.sides(direction)
    return Replacing(plan, given, pair.tokens, direction, base.recording, source.recording)


def _slices(plan: SweepPlan, limits: PatchingLimits, exact: npt.NDArray[np.intp]) -> Iterator[list[Entry]]:
    size = max(1, limits.tokens_per_slice // plan.length)
    for first in range(0, len(exact), size):
        yield [plan.grid[i] for i in exact[first : first + size]]


def _metrics(
    auditor: Auditor, replacing: Replacing, pair: Pair, entries: Sequence[Entry]
) -> Generator[Work, Logits | None, Metrics]:
    logits = yield from _logits(auditor, replacing, entries)
    return Metrics.of(logits, pair.answers, replacing.source.logits)


def _logits(auditor: Auditor, replacing: Replacing, entries: Sequence[Entry]) -> Generator[Work, Logits | None, Logits]:
    """Of each entry. There is one run more, in which nothing is replaced."""
    plan = replacing.plan
    logits = replacing.base.logits.expand(len(entries), -1)
    wanted = [i for i, entry in enumerate(entries) if not plan.is_unchanged(entry, replacing.tokens)]
    if not wanted:
        return logits
    patches = [replacing.patch(entries[i]) for i in wanted]
    found = yield from patched([*patches, replace(patches[0], cells=())])
    yield from auditor.see(patches, found[:-1], found[-1])
    if len(wanted) == len(entries):
        return found[:-1]
    logits = logits.clone()
    logits[wanted] = found[:-1]
    return logits


def _unchanged(plan: SweepPlan, pair: Pair) -> list[bool]:
    return [plan.is_unchanged(entry, pair.tokens) for entry in plan.grid]


def _ranked(
    plan: SweepPlan, number: int, pair: Pair, direction: str, found: Metrics, chosen: Screened
) -> tuple[Values, Values]:
    """Of the cells that were computed: estimates, and effects on the logit difference."""
    base, _ = pair.sides(direction)
    if chosen.estimates is None:
        return np.zeros(0), np.zeros(0)
    computed = ~np.array(_unchanged(plan, pair))[chosen.exact]
    effects = found.logit_difference - base.metrics.logit_difference
    return chosen.estimates[number, chosen.exact][computed], effects[computed]


def _table(plan: SweepPlan, number: int, pair: Pair, direction: str, found: Metrics, chosen: Screened) -> pa.Table:
    base, source = pair.sides(direction)
    # Of the source run to itself there is no divergence, and of the base run to it what its own metrics say.
    at_source = replace(source.metrics, kl=np.zeros(1))
    computed = ComputedCells(found, base.metrics, at_source, chosen)
    return cell_table(plan, number, direction, base.texts, computed, _unchanged(plan, pair))
