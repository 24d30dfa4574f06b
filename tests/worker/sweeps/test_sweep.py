"""Sweeps against plain hooks: one cell at a time, a full forward with all logits, modules found by their own names."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from actstore_api.records.patching import CellReference, JointCells, PromptPair, RunSweep, SweepProgress
from actstore_api.records.terms import ModelReference
from actstore_storage.errors import ActstoreError
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.kernels.full import FullForward, Patch
from actstore_worker.patching.kernels.recording import Recording, record
from actstore_worker.patching.plan import DEFAULT_KINDS, plan_sweep
from actstore_worker.patching.sweep import WholeSweep, run_sweep
from tests.made_models.random_models import BUILDERS, CONTEXT_LENGTH, save_model

CLEAN, CORRUPT = "When Mary and John went , Mary gave", "When Mary and John went , John gave"
PAIR = PromptPair(CLEAN, CORRUPT, "John", "Mary")
REQUEST = RunSweep(ModelReference("model"), (PAIR,))
# Small enough that a sweep of these prompts takes many slices, and the last one is not full.
LIMITS = PatchingLimits(cells=10_000, tokens_per_slice=63)

NEOX_KINDS = "resid_pre, attn_out, mlp_out, resid_post, q, k, v, pattern, z, embedding, features"

# kind -> (module below the layer, whether the site is its input)
PARTS = {
    "neox": {"attn_out": ("attention", False), "mlp_out": ("mlp", False), "z": ("attention.dense", True)},
    "neox-sequential": {"attn_out": ("attention", False), "mlp_out": ("mlp", False), "z": ("attention.dense", True)},
    "gpt2": {"attn_out": ("attn", False), "mlp_out": ("mlp", False), "z": ("attn.c_proj", True)},
    "llama-grouped": {"attn_out": ("self_attn", False), "mlp_out": ("mlp", False), "z": ("self_attn.o_proj", True)},
}
LAYERS = {"neox": "gpt_neox.layers", "neox-sequential": "gpt_neox.layers", "gpt2": "transformer.h"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LanguageModel]:
    folder = tmp_path_factory.mktemp("models")
    for kind in BUILDERS:
        save_model(folder / kind, kind)
    save_model(folder / "no-bos", "gpt2", with_bos=False)
    catalog = ModelCatalog((folder,))
    return {kind: load_model(catalog.find_model(kind), device=torch.device("cpu")) for kind in (*BUILDERS, "no-bos")}


def sweep(model: LanguageModel, request: RunSweep = REQUEST, limits: PatchingLimits = LIMITS) -> WholeSweep:
    *_, result = run_sweep(model, request, limits)
    assert isinstance(result, WholeSweep)
    return result


def changed(change: dict[str, Any]) -> RunSweep:
    of_pair = {name: value for name, value in change.items() if name in PromptPair.__dataclass_fields__}
    others = {name: value for name, value in change.items() if name not in of_pair}
    return replace(REQUEST, **{"pairs": (replace(PAIR, **of_pair),), **others})


class PlainHooks:
    """The slow twin. Knows transformers' module names, and nothing of actstore."""

    def __init__(self, kind: str, model: LanguageModel) -> None:
        self.kind, self.module, self.tokenizer = kind, model.module, model.tokenizer
        self.activation = functools.cache(self.record)

    def tokens(self, text: str) -> Tensor:
        return torch.tensor([[0, *self.tokenizer(text, add_special_tokens=False)["input_ids"]]])

    def difference(self, tokens: Tensor) -> float:
        with torch.no_grad():
            logits = self.module(tokens).logits[0, -1].double()
        john, mary = (self.tokenizer.convert_tokens_to_ids(word) for word in ("John", "Mary"))
        return float(logits[john] - logits[mary])

    def hook(self, site: str, layer: int, edit: Callable[[Tensor], None]) -> RemovableHandle:
        block = self.module.get_submodule(LAYERS.get(self.kind, "model.layers"))[layer]
        path, is_input = ("", True) if site == "resid_pre" else PARTS[self.kind][site]
        module: nn.Module = block.get_submodule(path)
        if is_input:
            return module.register_forward_pre_hook(lambda _, inputs: edit(inputs[0]))
        return module.register_forward_hook(lambda _, __, output: edit(output[0] if type(output) is tuple else output))

    def record(self, tokens: Tensor, site: str, layer: int) -> Tensor:
        seen = []
        handle = self.hook(site, layer, lambda x: seen.append(x.clone()))
        self.difference(tokens)
        handle.remove()
        return seen[0]

    def patched(self, base: Tensor, source: Tensor, site: str, layer: int, position: int, head: int | None) -> float:
        there = self.activation(source, site, layer)
        d_head = there.shape[-1] // self.module.config.num_attention_heads
        width = slice(None) if head is None else slice(head * d_head, (head + 1) * d_head)

        def edit(x: Tensor) -> None:
            x[0, position, width] = there[0, position, width]

        handle = self.hook(site, layer, edit)
        found = self.difference(base)
        handle.remove()
        return found


@pytest.mark.parametrize("kind", BUILDERS)
def test_every_cell_equals_plain_hooks(models: dict[str, LanguageModel], kind: str) -> None:
    result, twin = sweep(models[kind]), PlainHooks(kind, models[kind])
    clean, corrupt = twin.tokens(CLEAN), twin.tokens(CORRUPT)
    difference = {"clean": twin.difference(clean), "corrupt": twin.difference(corrupt)}
    assert result.clean_logit_difference == pytest.approx(difference["clean"], abs=1e-5)
    assert result.corrupt_logit_difference == pytest.approx(difference["corrupt"], abs=1e-5)
    heads = models[kind].module.config.num_attention_heads
    rows = result.cells.to_pylist()
    assert len(rows) == 2 * 3 * 9 * (3 + heads)
    for row in rows:
        base, source = (corrupt, clean) if row["direction"] == "denoise" else (clean, corrupt)
        expected = twin.patched(base, source, row["site"], row["layer"], row["position"], row["head"])
        assert row["logit_difference"] == pytest.approx(expected, abs=1e-5), row
        low, high = (difference[name] for name in (("corrupt", "clean") if base is corrupt else ("clean", "corrupt")))
        assert row["normalized"] == pytest.approx((expected - low) / (high - low), abs=1e-5 / abs(high - low) * 4)


def test_grid_is_complete_and_in_order(models: dict[str, LanguageModel]) -> None:
    rows = sweep(models["neox"]).cells.to_pylist()
    expected = [
        (direction, kind, layer, position, head)
        for direction in ("denoise", "noise")
        for kind in DEFAULT_KINDS
        for layer in range(3)
        for position in range(9)
        for head in (range(3) if kind == "z" else [None])
    ]
    assert [(r["direction"], r["site"], r["layer"], r["position"], r["head"]) for r in rows] == expected


def test_tokens_are_those_of_the_base_run(models: dict[str, LanguageModel]) -> None:
    result = sweep(models["neox"], replace(REQUEST, sites=("resid_pre",), layers=(0,)))
    assert result.tokens.column_names == ["position", "clean", "corrupt"]
    clean, corrupt = (["<bos>", *text.split()] for text in (CLEAN, CORRUPT))
    assert result.tokens["clean"].to_pylist() == clean
    assert result.tokens["corrupt"].to_pylist() == corrupt
    assert result.cells["token"].to_pylist() == [*corrupt, *clean]


def test_hooks_are_gone_after_a_sweep_and_after_a_failure(models: dict[str, LanguageModel]) -> None:
    model = models["neox"]
    plan = plan_sweep(model, REQUEST, LIMITS)
    empty = Recording(torch.tensor(plan.pairs[0].clean), torch.zeros(64), [], [], [], {})
    with pytest.raises(KeyError):
        FullForward(model).run([Patch(empty, empty, entry.cells) for entry in plan.grid[-9:]])
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.module.modules())


def test_progress_counts_every_slice(models: dict[str, LanguageModel]) -> None:
    updates = list(run_sweep(models["neox"], replace(REQUEST, sites=("resid_pre", "z")), LIMITS))
    progress = [update for update in updates if isinstance(update, SweepProgress)]
    cells = 3 * 9 * 4  # layers x positions x (resid_pre and three heads)
    assert {update.cells_total for update in progress} == {2 * cells}
    # 63 tokens a slice are 7 prompts; positions 7 and 8 of 9 differ, the others come along and cost nothing.
    of_direction = [found.cells_done for found in progress[: len(progress) // 2]]
    assert len(of_direction) == 1 + -(-3 * 2 * 4 // 7)
    assert of_direction == sorted(of_direction)
    assert (of_direction[0], of_direction[-1]) == (0, cells)
    assert [found.cells_done for found in progress[len(of_direction) :]] == [cells + done for done in of_direction]
    assert isinstance(updates[-1], WholeSweep)


def test_slices_do_not_change_the_numbers(models: dict[str, LanguageModel]) -> None:
    at_once, one_by_one = (
        sweep(models["llama-grouped"], limits=PatchingLimits(tokens_per_slice=size)).cells["logit_difference"]
        for size in (100_000, 1)
    )
    torch.testing.assert_close(
        torch.tensor(at_once.to_pylist()), torch.tensor(one_by_one.to_pylist()), atol=1e-5, rtol=0
    )


def test_a_choice_of_sites_layers_and_direction(models: dict[str, LanguageModel]) -> None:
    request = replace(REQUEST, sites=("z", "resid_pre"), layers=(2, 1, 2), directions=("noise",))
    rows = sweep(models["neox"], request).cells.to_pylist()
    everything = {
        (r["site"], r["layer"], r["position"], r["head"]): r["logit_difference"]
        for r in sweep(models["neox"]).cells.to_pylist()
        if r["direction"] == "noise" and r["layer"] > 0 and r["site"] in ("z", "resid_pre")
    }
    assert len(rows) == len(everything)
    for row in rows:
        key = row["site"], row["layer"], row["position"], row["head"]
        assert row["logit_difference"] == pytest.approx(everything[key], abs=1e-5)


def test_provenance_is_of_a_live_answer(models: dict[str, LanguageModel]) -> None:
    provenance = sweep(models["neox"], replace(REQUEST, sites=("resid_pre",), layers=(0,))).provenance
    assert (provenance.model, provenance.run, provenance.snapshot, provenance.shards_total) == ("neox", "", "", 0)
    assert provenance.weights_sha256 == models["neox"].weights_sha256
    assert (provenance.dtype, provenance.attention_implementation, provenance.device) == ("float32", "sdpa", "cpu")


@pytest.mark.parametrize(
    ("change", "reason", "field", "value", "allowed"),
    [
        ({"corrupt": CORRUPT + " !"}, "PROMPT_LENGTHS_DIFFER", "corrupt", "10 tokens", "9 tokens"),
        ({"clean_answer": "the cat"}, "ANSWER_NOT_ONE_TOKEN", "clean_answer", "the cat", "text of one token"),
        ({"corrupt_answer": ""}, "ANSWER_NOT_ONE_TOKEN", "corrupt_answer", "", "text of one token"),
        ({"corrupt_answer": "John"}, "ARGUMENT_INVALID", "corrupt_answer", "John", "another token than clean_answer"),
        ({"clean": " "}, "ARGUMENT_INVALID", "clean", " ", "text of at least one token"),
        (
            {"clean": "a " * CONTEXT_LENGTH, "corrupt": "b " * CONTEXT_LENGTH},
            "LIMIT_EXCEEDED",
            "clean",
            f"{CONTEXT_LENGTH + 1} tokens",
            f"at most {CONTEXT_LENGTH} tokens",
        ),
        ({"sites": ("resid_mid",)}, "SITE_UNKNOWN", "sites", "resid_mid", NEOX_KINDS),
        ({"sites": ("z",), "heads": (3,)}, "SITE_UNKNOWN", "heads", "3", "0..2"),
        ({"only_positions": (2, 9)}, "ARGUMENT_INVALID", "only_positions", "9", "0..8"),
        ({"window_layers": 4}, "ARGUMENT_INVALID", "window_layers", "4", "1..3"),
        ({"joint": (JointCells("all", ()),)}, "ARGUMENT_INVALID", "cells of 'all'", "0", "1..1024"),
        ({"joint": (JointCells("far", (CellReference("z.1.0", 9),)),)}, "ARGUMENT_INVALID", "joint", "9", "0..8"),
        ({"joint": (JointCells("head", (CellReference("z.1.3", 0),)),)}, "SITE_UNKNOWN", "site", "z.1.3", "heads 0..2"),
        (
            {"pairs": (PAIR, replace(PAIR, clean="a b", corrupt="b b"))},
            "PROMPT_LENGTHS_DIFFER",
            "pairs",
            "3 tokens",
            "9 tokens",
        ),
        ({"layers": (0, 3)}, "LAYER_OUT_OF_RANGE", "layers", "3", "0..2"),
        ({"layers": (-1,)}, "LAYER_OUT_OF_RANGE", "layers", "-1", "0..2"),
    ],
)
def test_refusals(
    models: dict[str, LanguageModel], change: dict[str, Any], reason: str, field: str, value: str, allowed: str
) -> None:
    with pytest.raises(ActstoreError) as refusal:
        sweep(models["neox"], changed(change))
    assert refusal.value.reason == reason
    assert refusal.value.details == {"field": field, "value": value, "allowed": allowed}
    assert ("attention and MLP both read resid_pre" in refusal.value.message) == (value == "resid_mid")


def test_too_many_cells_are_refused_before_the_first_is_computed(models: dict[str, LanguageModel]) -> None:
    with pytest.raises(ActstoreError) as refusal:
        next(iter(run_sweep(models["neox"], REQUEST, PatchingLimits(cells=323))))
    assert (refusal.value.reason, refusal.value.details["value"]) == ("LIMIT_EXCEEDED", "324")
    assert refusal.value.details["allowed"] == "at most 323"


def test_prompts_that_the_model_cannot_tell_apart_are_refused(models: dict[str, LanguageModel]) -> None:
    with pytest.raises(ActstoreError) as refusal:
        sweep(models["neox"], changed({"corrupt": CLEAN}))
    assert refusal.value.reason == "PROMPTS_INDISTINGUISHABLE"


def test_a_refusal_shows_the_tokens_of_an_answer(models: dict[str, LanguageModel]) -> None:
    with pytest.raises(ActstoreError, match=r"2 tokens: the \| cat"):
        sweep(models["neox"], changed({"clean_answer": "the cat"}))


@pytest.mark.parametrize(("asked", "kind", "first"), [(None, "gpt2", 0), (True, "gpt2", 0), (None, "no-bos", None)])
def test_bos_goes_first_where_there_is_one(
    models: dict[str, LanguageModel], asked: bool | None, kind: str, first: int | None
) -> None:
    plan = plan_sweep(models[kind], replace(REQUEST, prepend_bos=asked), LIMITS)
    clean = plan.pairs[0].clean
    assert len(clean) == (8 if first is None else 9)
    assert (clean[0] == 0) == (first == 0)


def test_bos_can_be_left_out_but_not_invented(models: dict[str, LanguageModel]) -> None:
    assert len(plan_sweep(models["gpt2"], replace(REQUEST, prepend_bos=False), LIMITS).pairs[0].clean) == 8
    with pytest.raises(ActstoreError) as refusal:
        plan_sweep(models["no-bos"], replace(REQUEST, prepend_bos=True), LIMITS)
    assert (refusal.value.reason, refusal.value.details["field"]) == ("ARGUMENT_INVALID", "prepend_bos")


def test_a_head_of_shared_keys_is_counted_as_they_are(models: dict[str, LanguageModel]) -> None:
    """Four heads of queries share two of keys: head 2 of k does not exist, head 2 of q does."""
    model = models["llama-grouped"]
    assert sweep(model, replace(REQUEST, sites=("q",), heads=(2,))).cells.num_rows
    with pytest.raises(ActstoreError, match="no head 2 of k; it has 2"):
        sweep(model, replace(REQUEST, sites=("k",), heads=(2,)))


def test_metrics_are_their_definitions(models: dict[str, LanguageModel]) -> None:
    """From logits of plain hooks, in plain words."""
    model, twin = models["gpt2"], PlainHooks("gpt2", models["gpt2"])
    result = sweep(model, replace(REQUEST, sites=("attn_out",), layers=(1,)))
    tokens = {"clean": twin.tokens(CLEAN), "corrupt": twin.tokens(CORRUPT)}
    john = model.tokenizer.convert_tokens_to_ids("John")

    def logits_of(base: str, position: int | None) -> Tensor:
        source = "clean" if base == "corrupt" else "corrupt"
        there = twin.activation(tokens[source], "attn_out", 1)

        def edit(x: Tensor) -> None:
            if position is not None:
                x[0, position] = there[0, position]

        handle = twin.hook("attn_out", 1, edit)
        with torch.no_grad():
            found: Tensor = model.module(tokens[base]).logits[0, -1].double()
        handle.remove()
        return found

    def metrics(logits: Tensor, source: Tensor) -> dict[str, float]:
        probabilities, of_source = logits.softmax(0), source.softmax(0)
        return {
            "log_probability": float(probabilities[john].log()),
            "probability": float(probabilities[john]),
            "loss": -float(probabilities[john].log()),
            "rank": float((probabilities > probabilities[john]).sum()),
            "kl": float((of_source * (of_source / probabilities).log()).sum()),
        }

    for row in result.cells.to_pylist():
        base, source = ("corrupt", "clean") if row["direction"] == "denoise" else ("clean", "corrupt")
        at_source = logits_of(source, None)
        found = metrics(logits_of(base, row["position"]), at_source)
        low, high = metrics(logits_of(base, None), at_source), metrics(at_source, at_source)
        for name, value in found.items():
            assert row[name] == pytest.approx(value, abs=1e-5), (name, row)
            if name != "rank" and abs(high[name] - low[name]) > 1e-5:
                expected = (value - low[name]) / (high[name] - low[name])
                assert row[f"normalized_{name}"] == pytest.approx(expected, rel=1e-2, abs=1e-2), (name, row)
    for row in result.baselines.to_pylist():
        expected = metrics(logits_of(row["prompt"], None), at_source)
        for name in ("log_probability", "probability", "loss", "rank"):
            assert row[name] == pytest.approx(expected[name], abs=1e-5)


def test_windows_positions_and_joint_cells_are_sets_of_cells(models: dict[str, LanguageModel]) -> None:
    """Each is what the whole model makes of the same cells, and named as it was asked for."""
    model = models["neox"]
    joint = JointCells("both", (CellReference("z.1.0", 8), CellReference("mlp_out.2", 7)))
    request = replace(REQUEST, sites=("attn_out",), window_layers=2, positions="all", joint=(joint,))
    result = sweep(model, request)
    rows = [row for row in result.cells.to_pylist() if row["direction"] == "noise"]
    assert [(row["site"], row["layer"], row["position"], row["name"]) for row in rows] == [
        ("attn_out", 0, None, None),
        ("attn_out", 1, None, None),
        ("joint", None, None, "both"),
    ]
    plan = plan_sweep(model, request, LIMITS)
    clean, corrupt = (record(model, tokens, plan.sites) for tokens in (plan.pairs[0].clean, plan.pairs[0].corrupt))
    logits = FullForward(model).run([Patch(clean, corrupt, entry.cells) for entry in plan.grid]).double()
    john, mary = (model.tokenizer.convert_tokens_to_ids(word) for word in ("John", "Mary"))
    expected = (logits[:, john] - logits[:, mary]).tolist()
    assert [row["logit_difference"] for row in rows] == pytest.approx(expected, abs=1e-5)


def test_last_is_the_last_position_and_heads_are_those_named(models: dict[str, LanguageModel]) -> None:
    whole = {
        (row["layer"], row["head"]): row["logit_difference"]
        for row in sweep(models["neox"], replace(REQUEST, sites=("z",))).cells.to_pylist()
        if row["position"] == 8 and row["direction"] == "denoise"
    }
    request = replace(REQUEST, sites=("z",), heads=(0, 2), positions="last", directions=("denoise",))
    rows = sweep(models["neox"], request).cells.to_pylist()
    assert [(row["layer"], row["head"], row["position"]) for row in rows] == [
        (layer, head, 8) for layer in range(3) for head in (0, 2)
    ]
    for row in rows:
        assert row["logit_difference"] == pytest.approx(whole[row["layer"], row["head"]], abs=1e-5)


def test_pairs_are_swept_each_by_itself(models: dict[str, LanguageModel]) -> None:
    other = PromptPair("When John and Mary went , John gave", "When John and Mary went , Mary gave", "Mary", "John")
    request = replace(REQUEST, sites=("resid_pre",), layers=(1,))
    together = sweep(models["gpt2"], replace(request, pairs=(PAIR, other))).cells.to_pylist()
    for number, pair in enumerate((PAIR, other)):
        alone = sweep(models["gpt2"], replace(request, pairs=(pair,))).cells.to_pylist()
        of_pair = [row for row in together if row["pair"] == number]
        assert [row["kl"] for row in of_pair] == pytest.approx([row["kl"] for row in alone], abs=1e-6)


def test_a_source_of_zeros_changes_every_position(models: dict[str, LanguageModel]) -> None:
    result = sweep(models["gpt2"], replace(REQUEST, sites=("mlp_out",), source="zero"))
    assert not any(result.cells["unchanged"].to_pylist())
    assert result.audit.audited_cells > 0
    assert result.audit.largest_error <= result.audit.tolerance


def test_the_audit_says_how_far_off_it_was(models: dict[str, LanguageModel]) -> None:
    audit = sweep(models["neox"]).audit
    assert audit.audited_cells >= 4
    assert 0 <= audit.noise_floor <= audit.tolerance
    assert 0 <= audit.largest_error <= audit.tolerance < 1e-2
    assert audit.token_layers < 0.6 * audit.token_layers_full
