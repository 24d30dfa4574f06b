"""Sweeps against plain hooks: one cell at a time, a full forward with all logits, modules found by their own names."""

import functools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from actstore_storage.errors import ActstoreError
from actstore_worker.catalogue import ModelCatalogue
from actstore_worker.loading import load_model
from actstore_worker.model import LanguageModel
from actstore_worker.patching.kernel import FullForward, Recording, record
from actstore_worker.patching.plan import PATCH_KINDS, PatchingLimits, SweepRequest, plan_sweep
from actstore_worker.patching.sweep import SweepProgress, SweepResult, run_sweep
from tests.random_models import BUILDERS, CONTEXT_LENGTH, save_model

CLEAN, CORRUPT = "When Mary and John went , Mary gave", "When Mary and John went , John gave"
REQUEST = SweepRequest("model", "", CLEAN, CORRUPT, "John", "Mary")
# Small enough that a sweep of these prompts takes many slices, and the last one is not full.
LIMITS = PatchingLimits(cells=10_000, tokens_per_slice=63)

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
    torch.set_num_threads(1)  # such small models only wait for their second thread
    folder = tmp_path_factory.mktemp("models")
    for kind in BUILDERS:
        save_model(folder / kind, kind)
    save_model(folder / "no-bos", "gpt2", with_bos=False)
    catalogue = ModelCatalogue((folder,))
    return {kind: load_model(catalogue.find_model(kind), device=torch.device("cpu")) for kind in (*BUILDERS, "no-bos")}


def sweep(model: LanguageModel, request: SweepRequest = REQUEST, limits: PatchingLimits = LIMITS) -> SweepResult:
    *_, result = run_sweep(model, request, limits)
    assert isinstance(result, SweepResult)
    return result


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
        assert row["normalised"] == pytest.approx((expected - low) / (high - low), abs=1e-5 / abs(high - low) * 4)


def test_grid_is_complete_and_in_order(models: dict[str, LanguageModel]) -> None:
    rows = sweep(models["neox"]).cells.to_pylist()
    expected = [
        (direction, kind, layer, position, head)
        for direction in ("denoise", "noise")
        for kind in PATCH_KINDS
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


def test_a_cell_before_the_first_difference_changes_nothing(models: dict[str, LanguageModel]) -> None:
    """Causal attention: up to position 6 the two runs are the same, so a patch there is its own value."""
    for row in sweep(models["llama-grouped"]).cells.to_pylist():
        if row["position"] < 7:
            assert row["normalised"] == pytest.approx(0, abs=1e-5), row


def test_the_only_differing_token_at_layer_0_is_the_whole_effect(models: dict[str, LanguageModel]) -> None:
    result = sweep(models["gpt2"], replace(REQUEST, sites=("resid_pre",), layers=(0,)))
    effects = {(r["direction"], r["position"]): r["normalised"] for r in result.cells.to_pylist()}
    assert effects["denoise", 7] == pytest.approx(1, abs=1e-5)
    assert effects["noise", 7] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", BUILDERS)
def test_patching_a_run_with_itself_is_a_no_op(models: dict[str, LanguageModel], kind: str) -> None:
    model = models[kind]
    plan = plan_sweep(model, REQUEST, LIMITS)
    run = record(model, plan.clean, {cell.site for cell in plan.cells})
    logits = FullForward(model).run(run, plan.cells, run)
    torch.testing.assert_close(logits, run.logits.expand_as(logits), atol=1e-5, rtol=0)


def test_hooks_are_gone_after_a_sweep_and_after_a_failure(models: dict[str, LanguageModel]) -> None:
    model = models["neox"]
    plan = plan_sweep(model, REQUEST, LIMITS)
    empty = Recording(torch.tensor(plan.clean), torch.zeros(64), {})
    with pytest.raises(KeyError):
        FullForward(model).run(empty, plan.cells, empty)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.module.modules())


def test_progress_counts_every_slice(models: dict[str, LanguageModel]) -> None:
    updates = list(run_sweep(models["neox"], replace(REQUEST, sites=("resid_pre", "z")), LIMITS))
    progress = [update for update in updates if isinstance(update, SweepProgress)]
    cells = 3 * 9 * 4  # layers x positions x (resid_pre and three heads)
    assert {update.cells_total for update in progress} == {2 * cells}
    slices = [*range(7, cells, 7), cells]  # 63 tokens a slice and 9 in a prompt
    assert [update.cells_done for update in progress] == [*slices, *(cells + done for done in slices)]
    assert isinstance(updates[-1], SweepResult)


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
        ({"clean": " "}, "ARGUMENT_INVALID", "clean", " ", "text"),
        (
            {"clean": "a " * CONTEXT_LENGTH, "corrupt": "b " * CONTEXT_LENGTH},
            "LIMIT_EXCEEDED",
            "clean",
            f"{CONTEXT_LENGTH + 1} tokens",
            f"at most {CONTEXT_LENGTH} tokens",
        ),
        ({"sites": ("resid_post",)}, "SITE_UNKNOWN", "sites", "resid_post", "resid_pre, attn_out, mlp_out, z"),
        ({"layers": (0, 3)}, "LAYER_OUT_OF_RANGE", "layers", "3", "0..2"),
        ({"layers": (-1,)}, "LAYER_OUT_OF_RANGE", "layers", "-1", "0..2"),
        ({"directions": ("up",)}, "ARGUMENT_INVALID", "directions", "up", "denoise, noise"),
    ],
)
def test_refusals(
    models: dict[str, LanguageModel], change: dict[str, object], reason: str, field: str, value: str, allowed: str
) -> None:
    with pytest.raises(ActstoreError) as refusal:
        sweep(models["neox"], replace(REQUEST, **change))
    assert refusal.value.reason == reason
    assert refusal.value.details == {"field": field, "value": value, "allowed": allowed}


def test_too_many_cells_are_refused_before_the_first_is_computed(models: dict[str, LanguageModel]) -> None:
    with pytest.raises(ActstoreError) as refusal:
        next(iter(run_sweep(models["neox"], REQUEST, PatchingLimits(cells=323))))
    assert (refusal.value.reason, refusal.value.details["value"]) == ("LIMIT_EXCEEDED", "324")
    assert refusal.value.details["allowed"] == "at most 323"


def test_prompts_that_the_model_cannot_tell_apart_are_refused(models: dict[str, LanguageModel]) -> None:
    with pytest.raises(ActstoreError) as refusal:
        sweep(models["neox"], replace(REQUEST, corrupt=CLEAN))
    assert refusal.value.reason == "PROMPTS_INDISTINGUISHABLE"


def test_a_refusal_shows_the_tokens_of_an_answer(models: dict[str, LanguageModel]) -> None:
    with pytest.raises(ActstoreError, match=r"2 tokens: the \| cat"):
        sweep(models["neox"], replace(REQUEST, clean_answer="the cat"))


@pytest.mark.parametrize(("asked", "kind", "first"), [(None, "gpt2", 0), (True, "gpt2", 0), (None, "no-bos", None)])
def test_bos_goes_first_where_there_is_one(
    models: dict[str, LanguageModel], asked: bool | None, kind: str, first: int | None
) -> None:
    plan = plan_sweep(models[kind], replace(REQUEST, prepend_bos=asked), LIMITS)
    assert len(plan.clean) == (8 if first is None else 9)
    assert (plan.clean[0] == 0) == (first == 0)


def test_bos_can_be_left_out_but_not_invented(models: dict[str, LanguageModel]) -> None:
    assert len(plan_sweep(models["gpt2"], replace(REQUEST, prepend_bos=False), LIMITS).clean) == 8
    with pytest.raises(ActstoreError) as refusal:
        plan_sweep(models["no-bos"], replace(REQUEST, prepend_bos=True), LIMITS)
    assert (refusal.value.reason, refusal.value.details["field"]) == ("ARGUMENT_INVALID", "bos")
