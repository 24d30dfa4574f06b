"""Estimates a sweep: cells and token-layers by counting, bytes and seconds from a few of its rows."""

from collections.abc import Iterator
from dataclasses import fields

import numpy as np

from actstore_api.records.patching import RunSweep, SweepEstimate
from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.audit import TOKEN_LAYER_DECIMALS, Auditor
from actstore_worker.patching.estimates.screening import Screened, exact_count
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.inputs.supplies import Supplies
from actstore_worker.patching.kernels.full import Kernel
from actstore_worker.patching.legs import Leg, LegRun, legs
from actstore_worker.patching.metrics import Metrics, Values
from actstore_worker.patching.plan import SweepPlan, plan_sweep
from actstore_worker.patching.replacing import given_to
from actstore_worker.patching.serving.scheduler import Pace
from actstore_worker.patching.steps import Asking, Steps
from actstore_worker.patching.sweep import Kernels, kernels_of
from actstore_worker.patching.swept_pairs import Pairs, check_apart
from actstore_worker.patching.updates import NOTHING_CHECKED

# The number of the answer's rows from which the size of all is estimated.
_SIZED_ROWS = 256


def estimate_steps(
    model: LanguageModel,
    request: RunSweep,
    limits: PatchingLimits,
    kernels: Kernels,
    supplies: Supplies | None,
    pace: Pace,
) -> Steps[SweepEstimate, None]:
    """Yields the steps of one estimate. If the model's speed is unknown, one slice is run. Errors: those of the sweep,
    except AUDIT_FAILED.
    """
    plan = plan_sweep(model, request, limits, supplies)
    kernels = kernels_of(model, plan, kernels)
    # Nothing is read of a stored run, because the values of its rows do not matter here.
    pairs = Pairs(model, plan, given_to(plan, model))
    check_apart(pairs.first)
    leg = next(legs(pairs, {plan.directions[0]: Screened(np.arange(len(plan.grid)))}))
    if pace.seconds_per_token_layer is None:
        yield from _try_slice(leg, kernels, model.dtype, limits, pace)
    prices = list(_prices(pairs, kernels.fast))
    counted = [_dearest(found, plan) for found, _ in prices]
    token_layers = round(float(sum(found.sum() for found in counted)), TOKEN_LAYER_DECIMALS)
    full = sum(len(found) * length * model.layer_count for found, (_, length) in zip(counted, prices, strict=True))
    rows = len(plan.grid) * len(prices)
    yield SweepEstimate(
        cells=_cell_count(pairs),
        token_layers=token_layers,
        token_layers_full=float(full),
        bytes=round(rows * _row_bytes(leg)),
        seconds=token_layers * (pace.seconds_per_token_layer or 0.0),
    )


def _try_slice(leg: Leg, kernels: Kernels, dtype: str, limits: PatchingLimits, pace: Pace) -> Asking[None]:
    slices = LegRun(leg, kernels.fast, Auditor(kernels.slow, dtype, pace.budget, NOTHING_CHECKED), limits, pace.budget)
    wanted = np.flatnonzero(leg.wanted)
    if len(wanted):
        yield from slices.metrics(slices.next_slice(int(wanted[0])))


def _prices(pairs: Pairs, kernel: Kernel) -> Iterator[tuple[Values, int]]:
    """Returns for each pair and direction the token-layers of each row that can be run, and the tokens of
    the base run.
    """
    plan = pairs.plan
    for tokens, unchanged in zip(plan.pairs, pairs.unchanged, strict=True):
        for direction in plan.directions:
            length = len(tokens.base(direction))
            rows = np.flatnonzero(~unchanged)
            cells = (plan.cells(plan.grid[row], tokens, direction) for row in rows)
            yield np.array([kernel.price(found, length) for found in cells], np.float64), length


def _dearest(prices: Values, plan: SweepPlan) -> Values:
    """Returns an upper bound: which rows a screen selects is unknown before its estimates."""
    return prices if plan.screen is None else np.sort(prices)[::-1][: plan.screen.exact_cells]


def _cell_count(pairs: Pairs) -> int:
    plan = pairs.plan
    if plan.screen is None:
        return pairs.unchanged.size * len(plan.directions)
    return exact_count(pairs.unchanged, plan.screen.exact_cells) * len(plan.pairs) * len(plan.directions)


def _row_bytes(leg: Leg) -> float:
    rows = range(min(_SIZED_ROWS, len(leg.plan.grid)))
    table = leg.table(rows, Metrics(*(np.zeros(len(rows)) for _ in fields(Metrics))))
    return float(table.nbytes) / len(rows)
