"""Sweeps: every cell of a grid patched in its turn, and how far each moves the model from one answer to the other."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
from jaxtyping import Float
from torch import Tensor

from actstore_storage.errors import BadRequest
from actstore_storage.snapshot import Provenance
from actstore_worker.model import LanguageModel
from actstore_worker.patching.kernel import FullForward, Kernel, Recording, record
from actstore_worker.patching.plan import PatchingLimits, SweepPlan, SweepRequest, plan_sweep
from actstore_worker.prompts import token_texts
from actstore_worker.provenance import live_provenance

# Below this, a normalised effect would be float32 noise (about 1e-5 in a logit) blown up.
SMALLEST_LOGIT_DIFFERENCE = 1e-3

_CELL_SCHEMA = pa.schema(
    [
        pa.field("direction", pa.string(), nullable=False),
        pa.field("site", pa.string(), nullable=False),
        pa.field("layer", pa.int32(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),
        pa.field("head", pa.int32()),
        pa.field("token", pa.string(), nullable=False),
        pa.field("logit_difference", pa.float64(), nullable=False),
        pa.field("normalised", pa.float64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class SweepProgress:
    cells_done: int
    cells_total: int


@dataclass(frozen=True)
class SweepResult:
    """Tables and numbers of proto SweepResult."""

    cells: pa.Table
    tokens: pa.Table
    clean_logit_difference: float
    corrupt_logit_difference: float
    provenance: Provenance


@dataclass(frozen=True)
class _Side:
    """One of the two prompts. `difference`: logit(clean answer) - logit(corrupt answer) at its last position."""

    recording: Recording
    difference: float
    texts: list[str]


def run_sweep(
    model: LanguageModel, request: SweepRequest, limits: PatchingLimits, kernel: Kernel | None = None
) -> Iterator[SweepProgress | SweepResult]:
    """Progress after each slice, then one result. Errors: BadRequest, before the first patched run."""
    plan = plan_sweep(model, request, limits)
    sites = {cell.site for cell in plan.cells}
    clean, corrupt = (_side(model, plan, record(model, tokens, sites)) for tokens in (plan.clean, plan.corrupt))
    if abs(clean.difference - corrupt.difference) < SMALLEST_LOGIT_DIFFERENCE:
        raise _indistinguishable(clean.difference, corrupt.difference)
    tables = []
    for number, direction in enumerate(plan.directions):
        base, source = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
        values: list[float] = []
        for slice_values in _patched(kernel or FullForward(model), plan, base, source, limits):
            values += slice_values
            yield SweepProgress(number * len(plan.cells) + len(values), len(plan.directions) * len(plan.cells))
        tables.append(_cell_table(plan, direction, base, source, values))
    tokens = pa.table(
        {
            "position": pa.array(range(len(plan.clean)), pa.int32()),
            "clean": pa.array(clean.texts, pa.string()),
            "corrupt": pa.array(corrupt.texts, pa.string()),
        }
    )
    yield SweepResult(pa.concat_tables(tables), tokens, clean.difference, corrupt.difference, live_provenance(model))


def _patched(
    kernel: Kernel, plan: SweepPlan, base: _Side, source: _Side, limits: PatchingLimits
) -> Iterator[list[float]]:
    """Patched logit differences in order of the plan's cells, slice by slice."""
    size = max(1, limits.tokens_per_slice // len(plan.clean))
    for first in range(0, len(plan.cells), size):
        logits = kernel.run(base.recording, plan.cells[first : first + size], source.recording)
        yield _logit_difference(plan, logits).tolist()


def _side(model: LanguageModel, plan: SweepPlan, recording: Recording) -> _Side:
    difference = float(_logit_difference(plan, recording.logits[None])[0])
    return _Side(recording, difference, token_texts(model, recording.tokens.tolist()))


def _logit_difference(plan: SweepPlan, logits: Float[Tensor, "row vocabulary"]) -> Float[Tensor, " row"]:
    return logits[:, plan.clean_answer].double() - logits[:, plan.corrupt_answer].double()


def _cell_table(plan: SweepPlan, direction: str, base: _Side, source: _Side, values: list[float]) -> pa.Table:
    span = source.difference - base.difference
    columns = [
        [direction] * len(values),
        [cell.site.kind for cell in plan.cells],
        [cell.site.layer for cell in plan.cells],
        [cell.position for cell in plan.cells],
        [cell.head for cell in plan.cells],
        [base.texts[cell.position] for cell in plan.cells],
        values,
        [(value - base.difference) / span for value in values],
    ]
    return pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, _CELL_SCHEMA, strict=True)],
        schema=_CELL_SCHEMA,
    )


def _indistinguishable(clean: float, corrupt: float) -> BadRequest:
    return BadRequest(
        f"the model tells the prompts not apart by these answers: the logit difference is {clean:.6g} on the clean "
        f"prompt and {corrupt:.6g} on the corrupt one, so no effect can be normalised",
        reason="PROMPTS_INDISTINGUISHABLE",
        field="corrupt",
        value=f"{abs(clean - corrupt):.6g}",
        allowed=f"a change of at least {SMALLEST_LOGIT_DIFFERENCE:g}",
    )
