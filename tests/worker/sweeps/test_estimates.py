"""What a sweep is said to take, against what it then took."""

from dataclasses import replace
from typing import Any

import pytest

from actstore_api.records.patching import PatchSpan, PromptPair, RunSweep, Screen, SweepEstimate
from actstore_api.records.terms import ModelReference, Range
from actstore_storage.errors import ActstoreError
from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.kernels.full import FullForward, Kernel
from actstore_worker.patching.serving.estimate import estimate_steps
from actstore_worker.patching.serving.scheduler import Pace
from actstore_worker.patching.steps import Work, drive, run_work
from actstore_worker.patching.sweep import Kernels, WholeSweep, fastest_kernel, run_sweep
from tests.worker.conftest import SWEPT

PAIR = PromptPair("When Mary and John went , Mary gave", "When Mary and John went , John gave", "John", "Mary")
LATE = PromptPair("When Mary and John went , John gave", "When Mary and John went , Mary gave", "Mary", "John")
REQUEST = RunSweep(ModelReference("model"), (PAIR, LATE))
LIMITS = PatchingLimits(tokens_per_slice=63)


def estimate(
    model: LanguageModel, request: RunSweep, kernel: Kernel | None = None, pace: Pace | None = None
) -> SweepEstimate:
    kernels = Kernels(kernel or fastest_kernel(model), FullForward(model))
    (found,) = drive(estimate_steps(model, request, LIMITS, kernels, None, pace or Pace(0.25)))
    assert isinstance(found, SweepEstimate)
    return found


def sweep(model: LanguageModel, request: RunSweep, kernel: Kernel | None = None) -> WholeSweep:
    *_, result = run_sweep(model, request, LIMITS, kernel)
    assert isinstance(result, WholeSweep)
    return result


@pytest.mark.parametrize("kind", SWEPT)
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"source": "zero", "directions": ("noise",)},
        {"sites": ("resid_pre", "resid_post"), "window_layers": 2},
        {"sites": ("q",), "positions": "last"},
        {"sites": ("attn_out", "embedding"), "positions": "all"},
        {
            "sites": ("resid_pre", "mlp_out"),
            "pairs": (PromptPair("When Mary gave John", "When John and Mary gave Mary", "John", "Mary"),),
            "spans": (PatchSpan("end", Range(3, 5), Range(5, 7)), PatchSpan("start", Range(0, 2), Range(0, 2))),
        },
    ],
)
def test_token_layers_are_those_that_are_then_computed(
    swept_models: dict[str, LanguageModel], kind: str, change: dict[str, Any]
) -> None:
    request = replace(REQUEST, **change)
    found, result = estimate(swept_models[kind], request), sweep(swept_models[kind], request)
    assert found.token_layers == result.audit.token_layers
    assert found.token_layers_full == result.audit.token_layers_full
    assert found.cells == result.cells.num_rows
    assert found.bytes == pytest.approx(result.cells.nbytes, rel=0.1)


def test_the_full_forward_has_no_shorter_way(swept_models: dict[str, LanguageModel]) -> None:
    found = estimate(swept_models["gpt2"], REQUEST, FullForward(swept_models["gpt2"]))
    result = sweep(swept_models["gpt2"], REQUEST, FullForward(swept_models["gpt2"]))
    assert found.token_layers == found.token_layers_full == result.audit.token_layers


def test_a_screen_is_priced_at_most(swept_models: dict[str, LanguageModel]) -> None:
    request = replace(REQUEST, screen=Screen(5))
    found, result = estimate(swept_models["neox"], request), sweep(swept_models["neox"], request)
    assert found.cells == result.cells["rank"].is_valid().to_numpy().sum()
    assert 0 < result.audit.token_layers <= found.token_layers < estimate(swept_models["neox"], REQUEST).token_layers


def test_seconds_are_at_the_speed_that_was_seen(swept_models: dict[str, LanguageModel]) -> None:
    pace = Pace(0.25)
    pace.observe(1000, 2.0)
    found = estimate(swept_models["neox"], REQUEST, pace=pace)
    assert found.seconds == pytest.approx(found.token_layers * 0.002)


def test_without_a_speed_a_slice_is_run_and_with_one_none(swept_models: dict[str, LanguageModel]) -> None:
    model = swept_models["neox"]
    kernels, pace = Kernels(fastest_kernel(model), FullForward(model)), Pace(0.25)
    assert _works(model, kernels, pace)
    pace.observe(1000, 2.0)
    assert _works(model, kernels, pace) == []


def _works(model: LanguageModel, kernels: Kernels, pace: Pace) -> list[Work]:
    steps, ran, found = estimate_steps(model, REQUEST, LIMITS, kernels, None, pace), None, []
    while isinstance(step := steps.send(ran), Work):
        found.append(step)
        ran = run_work(step)
    return found


@pytest.mark.parametrize(
    ("change", "limits", "reason", "value", "allowed"),
    [
        ({}, PatchingLimits(cells=647), "LIMIT_EXCEEDED", "648", "at most 647"),
        ({"layers": (3,)}, LIMITS, "LAYER_OUT_OF_RANGE", "3", "0..2"),
        ({"pairs": (replace(PAIR, corrupt=PAIR.clean),)}, LIMITS, "PROMPTS_INDISTINGUISHABLE", "0", None),
    ],
)
def test_what_the_sweep_refuses_is_refused(
    swept_models: dict[str, LanguageModel],
    change: dict[str, Any],
    limits: PatchingLimits,
    reason: str,
    value: str,
    allowed: str | None,
) -> None:
    model, request = swept_models["neox"], replace(REQUEST, **change)
    kernels = Kernels(fastest_kernel(model), FullForward(model))
    refusals = []
    for steps in (
        drive(estimate_steps(model, request, limits, kernels, None, Pace(0.25))),
        run_sweep(model, request, limits),
    ):
        with pytest.raises(ActstoreError) as refusal:
            list(steps)
        refusals.append((refusal.value.reason, refusal.value.details))
    assert refusals[0] == refusals[1]
    assert (refusals[0][0], refusals[0][1]["value"]) == (reason, value)
    assert allowed is None or refusals[0][1]["allowed"] == allowed
