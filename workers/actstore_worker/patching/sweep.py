"""Sweeps: every cell of a grid patched in its turn, in both directions, and checked against itself."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from jaxtyping import Float
from torch import Tensor

from actstore_storage.errors import BadRequest
from actstore_storage.sites import Site
from actstore_storage.snapshot import Provenance
from actstore_worker.model import LanguageModel
from actstore_worker.patching.attribution import estimate_effects
from actstore_worker.patching.audit import Audit, Auditor
from actstore_worker.patching.direct import Share, direct_shares
from actstore_worker.patching.kernel import FullForward, Kernel, Patch
from actstore_worker.patching.metrics import SMALLEST_DIFFERENCE, Metrics, Values
from actstore_worker.patching.pairs import PairTokens
from actstore_worker.patching.plan import Entry, SweepPlan, plan_sweep
from actstore_worker.patching.recording import Recording, record, zeroed
from actstore_worker.patching.request import PatchingLimits, SweepRequest
from actstore_worker.patching.resumed import Resumed, Unresumable
from actstore_worker.patching.screening import Screened, choose_cells, exact_count, rank_agreement
from actstore_worker.patching.tables import ComputedCells, baseline_table, cell_table, direct_table, token_table
from actstore_worker.prompts import token_texts
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


@dataclass(frozen=True)
class Prompt:
    """One prompt of a pair, unpatched: its run, its metrics against the other's, and its parts' direct shares."""

    recording: Recording
    metrics: Metrics
    texts: list[str]
    shares: list[Share]


@dataclass(frozen=True)
class Pair:
    tokens: PairTokens
    clean: Prompt
    corrupt: Prompt

    def sides(self, direction: str) -> tuple[Prompt, Prompt]:
        """The base run, and the source run."""
        return (self.corrupt, self.clean) if direction == "denoise" else (self.clean, self.corrupt)

    @property
    def answers(self) -> tuple[int, int]:
        return self.tokens.clean_answer, self.tokens.corrupt_answer


def run_sweep(
    model: LanguageModel, request: SweepRequest, limits: PatchingLimits, kernel: Kernel | None = None
) -> Iterator[SweepProgress | SweepResult]:
    """Progress after each slice, then one result. Errors: BadRequest, before the first patched run; AUDIT_FAILED where
    patched runs are not what the whole model makes of the same prompts.
    """
    plan = plan_sweep(model, request, limits)
    pairs = [_pair(model, plan, tokens) for tokens in plan.pairs]
    _check_apart(pairs[0])
    kernel = kernel or _kernel(model)
    auditor = Auditor(model, limits.audited_cells)
    screened = yield from _screen(model, plan, limits, pairs)
    total = sum(len(chosen.exact) for chosen in screened.values()) * len(pairs)
    tables, ranked, done = [], [], 0
    for number, pair in enumerate(pairs):
        for direction, chosen in screened.items():
            parts = []
            for metrics in _patched(kernel, plan, limits, auditor, pair, direction, chosen.exact):
                parts.append(metrics)
                done += len(metrics.rank)
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
        provenance=live_provenance(model),
    )


def _screen(
    model: LanguageModel, plan: SweepPlan, limits: PatchingLimits, pairs: Sequence[Pair]
) -> Generator[SweepProgress, None, dict[str, Screened]]:
    """By direction. Without a screen every cell is computed."""
    if plan.screen is None:
        return {direction: Screened(np.arange(len(plan.grid))) for direction in plan.directions}
    unchanged = np.array([_unchanged(plan, tokens) for tokens in plan.pairs])
    total = exact_count(unchanged, plan.screen.exact_cells) * len(pairs) * len(plan.directions)
    screened = {}
    for direction in plan.directions:
        estimates = np.zeros(unchanged.shape)
        for number, pair in enumerate(pairs):
            wanted = np.flatnonzero(~unchanged[number])
            if len(wanted):
                base, source = pair.sides(direction)
                patches = [plan.grid[i].cells for i in wanted]
                estimates[number, wanted] = estimate_effects(
                    model,
                    base.recording,
                    _values(plan, source),
                    pair.answers,
                    patches,
                    plan.screen,
                    limits.tokens_per_slice,
                )
            yield SweepProgress(0, total)
        screened[direction] = choose_cells(estimates, unchanged, plan.screen.exact_cells)
    return screened


def _ranked(
    plan: SweepPlan, number: int, pair: Pair, direction: str, found: Metrics, chosen: Screened
) -> tuple[Values, Values]:
    """Of the cells that were computed: estimates, and effects on the logit difference."""
    base, _ = pair.sides(direction)
    if chosen.estimates is None:
        return np.zeros(0), np.zeros(0)
    computed = ~np.array(_unchanged(plan, pair.tokens))[chosen.exact]
    effects = found.logit_difference - base.metrics.logit_difference
    return chosen.estimates[number, chosen.exact][computed], effects[computed]


def _table(plan: SweepPlan, number: int, pair: Pair, direction: str, found: Metrics, chosen: Screened) -> pa.Table:
    base, source = pair.sides(direction)
    # Of the source run to itself there is no divergence, and of the base run to it what its own metrics say.
    at_source = replace(source.metrics, kl=np.zeros(1))
    computed = ComputedCells(found, base.metrics, at_source, chosen)
    return cell_table(plan, number, direction, base.texts, computed, _unchanged(plan, pair.tokens))


def _kernel(model: LanguageModel) -> Kernel:
    """The full forward pass for a model whose layers want to be told what we do not know; the answer says so."""
    try:
        return Resumed(model)
    except Unresumable:
        return FullForward(model)


def _pair(model: LanguageModel, plan: SweepPlan, tokens: PairTokens) -> Pair:
    sites = plan.sites | {Site(layer, "z") for layer in range(model.layer_count)}
    clean, corrupt = (record(model, ids, sites) for ids in (tokens.clean, tokens.corrupt))
    answers = tokens.clean_answer, tokens.corrupt_answer
    prompts = []
    for recording, other in ((clean, corrupt), (corrupt, clean)):
        metrics = Metrics.of(recording.logits[None], answers, other.logits)
        texts, shares = token_texts(model, recording.tokens.tolist()), direct_shares(model, recording, answers)
        prompts.append(Prompt(recording, metrics, texts, shares))
    return Pair(tokens, *prompts)


def _patched(
    kernel: Kernel,
    plan: SweepPlan,
    limits: PatchingLimits,
    auditor: Auditor,
    pair: Pair,
    direction: str,
    exact: npt.NDArray[np.intp],
) -> Iterator[Metrics]:
    """Metrics of those cells of the plan's grid, slice by slice. A slice has one run more, in which nothing is
    replaced.
    """
    base, source = pair.sides(direction)
    values = _values(plan, source)
    size = max(1, limits.tokens_per_slice // plan.length)
    for first in range(0, len(exact), size):
        entries = [plan.grid[i] for i in exact[first : first + size]]
        patches = [Patch(base.recording, values, entry.cells) for entry in entries]
        wanted = [i for i, entry in enumerate(entries) if not _is_unchanged(entry, plan, pair.tokens)]
        logits = _logits(kernel, auditor, base.recording, patches, wanted)
        yield Metrics.of(logits, pair.answers, source.recording.logits)


def _values(plan: SweepPlan, source: Prompt) -> Recording:
    """What replaces the base run's activations."""
    return zeroed(source.recording) if plan.source == "zero" else source.recording


def _unchanged(plan: SweepPlan, tokens: PairTokens) -> list[bool]:
    return [_is_unchanged(entry, plan, tokens) for entry in plan.grid]


def _is_unchanged(entry: Entry, plan: SweepPlan, tokens: PairTokens) -> bool:
    """Up to the first difference of the prompts both runs are one: nothing is replaced by anything else."""
    return plan.source == "prompt" and all(cell.position < tokens.first_difference for cell in entry.cells)


def _logits(
    kernel: Kernel, auditor: Auditor, base: Recording, patches: list[Patch], wanted: list[int]
) -> Float[Tensor, "patch vocabulary"]:
    unpatched = base.logits.expand(len(patches), -1)
    if not wanted:
        return unpatched
    chosen = [patches[i] for i in wanted]
    found = kernel.run([*chosen, replace(patches[0], cells=())])
    auditor.see(chosen, found[:-1], found[-1])
    if len(chosen) == len(patches):
        return found[:-1]
    logits = unpatched.clone()
    logits[wanted] = found[:-1]
    return logits


def _check_apart(pair: Pair) -> None:
    clean, corrupt = (float(prompt.metrics.logit_difference[0]) for prompt in (pair.clean, pair.corrupt))
    if abs(clean - corrupt) < SMALLEST_DIFFERENCE:
        raise BadRequest(
            f"the model tells the prompts not apart by these answers: the logit difference is {clean:.6g} on the clean "
            f"prompt and {corrupt:.6g} on the corrupt one, so no effect can be normalised",
            reason="PROMPTS_INDISTINGUISHABLE",
            field="corrupt",
            value=f"{abs(clean - corrupt):.6g}",
            allowed=f"a change of at least {SMALLEST_DIFFERENCE:g}",
        )
