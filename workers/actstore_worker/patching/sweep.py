"""Sweeps: every cell of a grid patched in its turn, in both directions, and checked against itself."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from actstore_storage.errors import BadRequest
from actstore_storage.snapshot import Provenance
from actstore_worker.model import LanguageModel
from actstore_worker.patching.audit import Audit, Auditor
from actstore_worker.patching.kernel import FullForward, Kernel, Patch
from actstore_worker.patching.metrics import SMALLEST_DIFFERENCE, Metrics
from actstore_worker.patching.plan import Entry, PairTokens, SweepPlan, plan_sweep
from actstore_worker.patching.recording import Recording, record, zeroed
from actstore_worker.patching.request import PatchingLimits, SweepRequest
from actstore_worker.patching.resumed import Resumed, Unresumable
from actstore_worker.patching.tables import baseline_table, cell_table, token_table
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
    clean_logit_difference: float
    corrupt_logit_difference: float
    audit: Audit
    provenance: Provenance


@dataclass(frozen=True)
class Prompt:
    """One prompt of a pair, unpatched: its run, and its metrics against the other's."""

    recording: Recording
    metrics: Metrics
    texts: list[str]


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
    tables, done = [], 0
    for number, pair in enumerate(pairs):
        for direction in plan.directions:
            parts = []
            for metrics in _patched(kernel, plan, limits, auditor, pair, direction):
                parts.append(metrics)
                done += len(metrics.rank)
                yield SweepProgress(done, plan.cell_count)
            tables.append(_table(plan, number, pair, direction, Metrics.joined(parts)))
    first = pairs[0]
    yield SweepResult(
        cells=pa.concat_tables(tables),
        tokens=token_table(first.clean.texts, first.corrupt.texts),
        baselines=baseline_table([(pair.clean.metrics, pair.corrupt.metrics) for pair in pairs]),
        clean_logit_difference=float(first.clean.metrics.logit_difference[0]),
        corrupt_logit_difference=float(first.corrupt.metrics.logit_difference[0]),
        audit=auditor.verdict(kernel),
        provenance=live_provenance(model),
    )


def _table(plan: SweepPlan, number: int, pair: Pair, direction: str, found: Metrics) -> pa.Table:
    base, source = pair.sides(direction)
    # Of the source run to itself there is no divergence, and of the base run to it what its own metrics say.
    at_source = replace(source.metrics, kl=np.zeros(1))
    unchanged = [is_unchanged(entry, plan, pair.tokens) for entry in plan.grid]
    return cell_table(plan, number, direction, base.texts, found, base.metrics, at_source, unchanged)


def _kernel(model: LanguageModel) -> Kernel:
    """The full forward pass for a model whose layers want to be told what we do not know; the answer says so."""
    try:
        return Resumed(model)
    except Unresumable:
        return FullForward(model)


def _pair(model: LanguageModel, plan: SweepPlan, tokens: PairTokens) -> Pair:
    clean, corrupt = (record(model, ids, plan.sites) for ids in (tokens.clean, tokens.corrupt))
    answers = tokens.clean_answer, tokens.corrupt_answer
    prompts = []
    for recording, other in ((clean, corrupt), (corrupt, clean)):
        metrics = Metrics.of(recording.logits[None], answers, other.logits)
        prompts.append(Prompt(recording, metrics, token_texts(model, recording.tokens.tolist())))
    return Pair(tokens, *prompts)


def _patched(
    kernel: Kernel, plan: SweepPlan, limits: PatchingLimits, auditor: Auditor, pair: Pair, direction: str
) -> Iterator[Metrics]:
    """Metrics of the plan's cells, slice by slice, in the grid's order. A slice has one run more, in which nothing is
    replaced.
    """
    base, source = pair.sides(direction)
    values = zeroed(source.recording) if plan.source == "zero" else source.recording
    size = max(1, limits.tokens_per_slice // plan.length)
    for first in range(0, len(plan.grid), size):
        entries = plan.grid[first : first + size]
        patches = [Patch(base.recording, values, entry.cells) for entry in entries]
        wanted = [i for i, entry in enumerate(entries) if not is_unchanged(entry, plan, pair.tokens)]
        logits = _logits(kernel, auditor, base.recording, patches, wanted)
        yield Metrics.of(logits, pair.answers, source.recording.logits)


def is_unchanged(entry: Entry, plan: SweepPlan, tokens: PairTokens) -> bool:
    """Up to the first difference of the prompts both runs are one: nothing is replaced by anything else."""
    return plan.source == "prompt" and all(cell.position < tokens.first_difference for cell in entry.cells)


def _logits(
    kernel: Kernel, auditor: Auditor, base: Recording, patches: list[Patch], wanted: list[int]
) -> Float[Tensor, "patch vocabulary"]:
    logits = base.logits.expand(len(patches), -1).clone()
    if wanted:
        nothing = replace(patches[0], cells=())
        *found, control = kernel.run([*(patches[i] for i in wanted), nothing])
        logits[wanted] = torch.stack(found)
        auditor.see([patches[i] for i in wanted], logits[wanted], control)
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
