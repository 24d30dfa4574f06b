"""Sweeps from senders to receivers: against plain hooks, and what is refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from actstore_api.records.patching import (
    CellReference,
    JointCells,
    PatchSpan,
    PromptPair,
    RunSweep,
    Screen,
    SweepEstimate,
)
from actstore_api.records.terms import ModelReference, Range
from actstore_storage.errors import ActstoreError
from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.kernels.full import FullForward
from actstore_worker.patching.plan import plan_sweep
from actstore_worker.patching.serving.estimate import estimate_steps
from actstore_worker.patching.serving.scheduler import Pace
from actstore_worker.patching.steps import drive
from actstore_worker.patching.sweep import Kernels, WholeSweep, fastest_kernel, run_sweep
from tests.worker.conftest import SWEPT
from tests.worker.paths.plain_paths import PlainPaths

PAIR = PromptPair("When Mary and John went , Mary gave", "When Mary and John went , John gave", "John", "Mary")
REQUEST = RunSweep(ModelReference("model"), (PAIR,), receivers=("logits",))
LIMITS = PatchingLimits(tokens_per_slice=63)


def sweep(model: LanguageModel, request: RunSweep) -> WholeSweep:
    *_, result = run_sweep(model, request, LIMITS)
    assert isinstance(result, WholeSweep)
    return result


@pytest.mark.parametrize("mlps", ["recomputed", "frozen"])
@pytest.mark.parametrize("receivers", [("q.1.0", "v.1.1", "mlp_in.2"), ("logits",)], ids="+".join)
@pytest.mark.parametrize("kind", SWEPT)
def test_rows_are_those_of_plain_hooks(
    swept_models: dict[str, LanguageModel], kind: str, receivers: tuple[str, ...], mlps: str
) -> None:
    model = swept_models[kind]
    result = sweep(model, replace(REQUEST, receivers=receivers, path_mlps=mlps, sites=("resid_pre", "mlp_out", "z")))
    clean, corrupt = (torch.tensor(ids) for ids in (ids_of(model, PAIR.clean), ids_of(model, PAIR.corrupt)))
    twins = {"denoise": PlainPaths(model.module, corrupt, clean), "noise": PlainPaths(model.module, clean, corrupt)}
    john, mary = (model.tokenizer.convert_tokens_to_ids(word) for word in ("John", "Mary"))
    places = [((int(text.split(".")[1]), text.split(".")[0].replace("mlp_in", "mlp_out")), head_of(text))
              for text in receivers if text != "logits"]  # fmt: skip
    checked = 0
    for row in result.cells.to_pylist():
        sender, position = (row["layer"], row["site"]), [row["position"]]
        twin, through = twins[row["direction"]], mlps == "recomputed"
        if places:
            logits = twin.patched(sender, row["head"], position, places, through_mlps=through)
        else:
            logits = twin.direct(sender, row["head"], position, through_mlps=through)
        assert row["logit_difference"] == pytest.approx(float(logits[john] - logits[mary]), abs=3e-5)
        checked += not row["unchanged"]
    assert checked
    assert result.audit.audited_cells
    assert result.audit.kernel == "resumed"


def head_of(receiver: str) -> int | None:
    parts = receiver.split(".")
    return int(parts[2]) if len(parts) > 2 else None


def ids_of(model: LanguageModel, text: str) -> list[int]:
    return [0, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize("kind", SWEPT)
def test_what_reaches_no_receiver_is_unchanged_and_costs_nothing(
    swept_models: dict[str, LanguageModel], kind: str
) -> None:
    result = sweep(swept_models[kind], REQUEST)
    rows = result.cells.to_pylist()
    last = max(row["position"] for row in rows)
    assert {row["position"] for row in rows if not row["unchanged"]} == {last}
    base = {"denoise": result.corrupt_logit_difference, "noise": result.clean_logit_difference}
    assert all(row["logit_difference"] == base[row["direction"]] for row in rows if row["unchanged"])


@pytest.mark.parametrize("kind", SWEPT)
def test_senders_are_those_that_some_receiver_hears(swept_models: dict[str, LanguageModel], kind: str) -> None:
    """One of them is enough."""
    of_first = {("resid_pre", 0), ("resid_pre", 1), ("attn_out", 0), ("mlp_out", 0), ("z", 0)}
    of_second = of_first | {("resid_pre", 2), ("attn_out", 1), ("mlp_out", 1), ("z", 1)}
    for receivers, senders in ((("q.1.0", "k.1"), of_first), (("q.1.0", "k.2"), of_second)):
        grid = plan_sweep(swept_models[kind], replace(REQUEST, receivers=receivers), LIMITS).grid
        assert {(entry.site, entry.layer) for entry in grid} == senders


@pytest.mark.parametrize(
    ("change", "senders"),
    [
        (
            {"receivers": ("q.2",), "layers": (0, 1), "sites": ("z", "mlp_out")},
            {("z", 0), ("z", 1), ("mlp_out", 0), ("mlp_out", 1)},
        ),
        ({"receivers": ("mlp_in.0",), "layers": (0,), "sites": ("attn_out",)}, {("attn_out", 0)}),
        ({"receivers": ("q.0",), "sites": ("embedding",)}, {("embedding", None)}),
    ],
)
def test_whoever_is_asked_for_and_heard_sends(
    swept_models: dict[str, LanguageModel], change: dict[str, Any], senders: set[tuple[str, int | None]]
) -> None:
    """Of several layers and kinds each; and attention is heard by the MLP of its own layer."""
    grid = plan_sweep(swept_models["gpt2"], replace(REQUEST, **change), LIMITS).grid
    assert {(entry.site, entry.layer) for entry in grid} == senders


@pytest.mark.parametrize("kind", SWEPT)
def test_from_the_last_layer_there_is_no_other_path(swept_models: dict[str, LanguageModel], kind: str) -> None:
    """What its attention writes reaches the logits directly, and through its MLP alone."""
    model = swept_models[kind]
    ordinary = replace(REQUEST, sites=("attn_out", "z", "mlp_out"), layers=(model.layer_count - 1,), positions="last")
    found, expected = sweep(model, ordinary), sweep(model, replace(ordinary, receivers=()))
    for name in ("logit_difference", "kl", "loss"):
        assert found.cells[name].to_pylist() == pytest.approx(expected.cells[name].to_pylist(), abs=3e-5)


@pytest.mark.parametrize("source", ["prompt", "zero"])
def test_senders_take_what_any_patch_takes(swept_models: dict[str, LanguageModel], source: str) -> None:
    """All that attention of the first layer reads is what z is made of."""
    for model in swept_models.values():
        everywhere = replace(REQUEST, sites=("embedding",), positions="all", source=source)
        found = sweep(model, replace(everywhere, receivers=("q.0", "k.0", "v.0"))).cells["logit_difference"]
        assert found.null_count == 0
        if source == "prompt":
            whole = replace(everywhere, sites=("z",), layers=(0,), heads=())
            cells = [
                CellReference(f"z.0.{head}", position) for head in range(model.head_count) for position in range(9)
            ]
            joint = replace(whole, receivers=(), sites=(), layers=(), positions="each",
                            joint=(JointCells("all", tuple(cells)),))  # fmt: skip
            expected = sweep(model, joint).cells["logit_difference"]
            assert found.to_pylist() == pytest.approx(expected.to_pylist(), abs=3e-5)


@pytest.mark.parametrize("kind", SWEPT)
@pytest.mark.parametrize("change", [
    {}, {"receivers": ("q.1", "k.2.0")}, {"receivers": ("mlp_in.1",), "positions": "all"},
    {"receivers": ("v.2",), "source": "zero", "sites": ("embedding", "pattern"), "path_mlps": "frozen"},
    {
        "receivers": ("logits",),
        "pairs": (PromptPair("When Mary gave John", "When John and Mary gave Mary", "John", "Mary"),),
        "spans": (PatchSpan("end", Range(3, 5), Range(5, 7)), PatchSpan("start", Range(0, 2), Range(0, 2))),
    },
])  # fmt: skip
def test_token_layers_are_those_that_were_said(
    swept_models: dict[str, LanguageModel], kind: str, change: dict[str, Any]
) -> None:
    model, request = swept_models[kind], replace(REQUEST, **change)
    kernels = Kernels(fastest_kernel(model), FullForward(model))
    (found,) = drive(estimate_steps(model, request, LIMITS, kernels, None, Pace(0.25)))
    result = sweep(model, request)
    assert isinstance(found, SweepEstimate)
    assert (found.token_layers, found.cells) == (result.audit.token_layers, result.cells.num_rows)


@pytest.mark.parametrize(
    ("change", "reason", "field", "value", "allowed"),
    [
        ({"receivers": ("x.1",)}, "SITE_UNKNOWN", "receivers", "x.1", "q.0..2"),
        ({"receivers": ("q.3",)}, "SITE_UNKNOWN", "receivers", "q.3", "q.0..2"),
        ({"receivers": ("q.1.4",)}, "SITE_UNKNOWN", "receivers", "q.1.4", "heads 0..3"),
        ({"receivers": ("k.1.2",)}, "SITE_UNKNOWN", "receivers", "k.1.2", "heads 0..1"),
        ({"receivers": ("mlp_in.1.0",)}, "SITE_UNKNOWN", "receivers", "mlp_in.1.0", "mlp_in.LAYER"),
        ({"receivers": ("q.1", "logits")}, "ARGUMENT_INVALID", "receivers", "q.1, logits", "logits alone"),
        ({"receivers": ("q.1",) * 129}, "LIMIT_EXCEEDED", "receivers", "129", "at most 128"),
        ({"receivers": ("q.0",), "sites": ("attn_out",)}, "ARGUMENT_INVALID", "sites", "attn_out", "before a receiver"),
        ({"receivers": ("q.1",), "layers": (0, 2)}, "ARGUMENT_INVALID", "layers", "2", "before a receiver"),
        ({"receivers": ("q.0.1", "k.2"), "layers": (1,)}, "ARGUMENT_INVALID", "receivers", "q.0.1", "after a sender"),
        ({"receivers": ("mlp_in.0", "k.2"), "layers": (1,)}, "ARGUMENT_INVALID", "receivers", "mlp_in.0", "after a"),
        ({"sites": ("q",)}, "SITE_UNKNOWN", "sites", "q", "resid_pre"),
        (
            {"joint": (JointCells("two", (CellReference("z.0.0", 1), CellReference("z.0.1", 1))),)},
            "ARGUMENT_INVALID",
            "joint",
            "two",
            "none",
        ),
        ({"window_layers": 2}, "ARGUMENT_INVALID", "window_layers", "2", "none, if there are receivers"),
        ({"screen": Screen(3)}, "ARGUMENT_INVALID", "screen", "3", "none, if there are receivers"),
        ({"receivers": (), "path_mlps": "frozen"}, "ARGUMENT_INVALID", "receivers", "", "receivers, with path_mlps"),
    ],
)
def test_what_receivers_are_refused_for(
    swept_models: dict[str, LanguageModel], change: dict[str, Any], reason: str, field: str, value: str, allowed: str
) -> None:
    with pytest.raises(ActstoreError) as refusal:
        plan_sweep(swept_models["llama-grouped"], replace(REQUEST, **change), LIMITS)
    assert (refusal.value.reason, refusal.value.details["field"]) == (reason, field)
    assert str(refusal.value.details["value"]) == value
    assert allowed in str(refusal.value.details["allowed"])
