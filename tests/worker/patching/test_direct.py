"""Shares of the logit difference add up to it, on every family, and are what the norm's formula makes of each part."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from actstore_api.records.patching import PromptPair, RunSweep
from actstore_api.records.terms import ModelReference
from actstore_storage.format.sites import Site
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.direct import Share, direct_shares
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.kernels.recording import Recording, record
from actstore_worker.patching.plan import plan_sweep
from actstore_worker.patching.sweep import WholeSweep, run_sweep
from tests.made_models.small_models import DECODERS
from tests.worker.models.hand_built import gate

TOKENS, ANSWERS = (0, 17, 93, 4, 201, 55), (3, 200)


@pytest.fixture(scope="module", params=DECODERS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("models")
    DECODERS[request.param](folder / request.param)
    model = load_model(ModelCatalog((folder,)).find_model(request.param), device=torch.device("cpu"))
    with torch.no_grad():  # fresh norms have weights of 1 or 0, which would hide who adds 1
        norms = [module for module in model.module.modules() if "Norm" in type(module).__name__]
        for number, norm in enumerate(norms):
            norm.weight.add_(torch.linspace(-0.4, 0.6, len(norm.weight)).roll(number))
    return model


def recorded(model: LanguageModel, tokens: tuple[int, ...] = TOKENS) -> Recording:
    return record(model, tokens, [Site(layer, "z") for layer in range(model.layer_count)])


def uncapped(model: LanguageModel, logits: Tensor) -> Tensor:
    cap = getattr(model.config, "final_logit_softcapping", None)
    return cap * torch.atanh(logits / cap) if cap else logits


def test_shares_add_up_to_the_logit_difference(model: LanguageModel) -> None:
    found = recorded(model)
    shares = direct_shares(model, found, ANSWERS)
    logits = uncapped(model, found.logits.double())
    expected = float(logits[ANSWERS[0]] - logits[ANSWERS[1]])
    assert sum(share.share for share in shares if share.part != "z") == pytest.approx(expected, abs=2e-5)
    parts = ["embedding"]
    parts += (["z"] * model.head_count + [*model.written_kinds]) * model.layer_count
    assert [share.part for share in shares] == [*parts, "bias"]
    of_layers, in_layer = shares[1:-1], model.head_count + len(model.written_kinds)
    heads = [*range(model.head_count), *[None] * len(model.written_kinds)]
    assert [share.head for share in of_layers] == heads * model.layer_count
    assert [share.layer for share in of_layers] == [place // in_layer for place in range(len(of_layers))]
    assert {(share.layer, share.head) for share in (shares[0], shares[-1])} == {(None, None)}
    assert {type(share.share) for share in shares} == {float}


def test_a_bias_of_the_unembedding_is_of_no_part(model: LanguageModel) -> None:
    """As some models have one: it is in the biases' share alone."""
    unembedding, before = model.module.get_output_embeddings(), direct_shares(model, recorded(model), ANSWERS)
    had, more = unembedding.bias, torch.linspace(-1, 2, unembedding.weight.shape[0])
    unembedding.bias = torch.nn.Parameter(more if had is None else had + more, requires_grad=False)
    after = direct_shares(model, recorded(model), ANSWERS)
    unembedding.bias = had
    assert after[:-1] == before[:-1]
    first, second = (float(more[answer]) for answer in ANSWERS)
    assert after[-1].share - before[-1].share == pytest.approx(first - second, abs=1e-6)


def test_shares_are_what_the_norms_formula_makes_of_each_part(model: LanguageModel) -> None:
    """The slow twin knows each family's norm by its formula, and its scale from the whole last residual."""
    found = recorded(model)
    for share in direct_shares(model, found, ANSWERS):
        if share.part in ("embedding", "attn_out", "mlp_out"):
            part = found.residuals[0] if share.layer is None else found.activations[Site(share.layer, share.part)]
            expected = by_formula(model, found.residuals[-1][-1].double(), part[-1].double())
            assert share.share == pytest.approx(expected, abs=1e-5), share


def by_formula(model: LanguageModel, last: Tensor, part: Tensor) -> float:
    norm = model.module.get_submodule(model.family.final_norm)
    weight = norm.weight.double()
    if isinstance(norm, torch.nn.LayerNorm):
        scaled = weight * (part - part.mean()) / (last.var(correction=0) + norm.eps).sqrt()
    else:
        epsilon = model.config.rms_norm_eps
        more = 1 if model.family.name in ("gemma", "gemma2") else 0
        scaled = (weight + more) * part / ((last**2).mean() + epsilon).sqrt()
    rows = model.module.get_output_embeddings().weight.double()
    return float(scaled @ (rows[ANSWERS[0]] - rows[ANSWERS[1]]))


def test_heads_share_out_attn_out_less_its_bias(model: LanguageModel) -> None:
    """A head's share is what attn_out's share loses without it, where no norm is between the two."""
    found = recorded(model)
    shares = direct_shares(model, found, ANSWERS)
    for layer in range(model.layer_count):
        heads = [share.share for share in shares if (share.part, share.layer) == ("z", layer)]
        (whole,) = (share.share for share in shares if (share.part, share.layer) == ("attn_out", layer))
        first, *norms = (model.layers[layer].get_submodule(path) for path in model.family.from_z)
        z, last = found.activations[Site(layer, "z")][-1], found.residuals[-1][-1].double()
        bias = first(torch.zeros_like(z))
        assert sum(heads) + by_formula(model, last, bias.double()) == pytest.approx(whole, abs=1e-5)
        if not norms:
            without = z.view(model.head_count, -1).clone()
            without[1] = 0
            left = by_formula(model, last, first(without.flatten()).double())
            assert whole - left == pytest.approx(heads[1], abs=1e-5)


def test_a_gate_is_written_by_its_neuron_and_by_nothing_else(tmp_path: Path) -> None:
    gate(tmp_path / "and", "and")
    model = load_model(ModelCatalog((tmp_path,)).find_model("and"), device=torch.device("cpu"))
    tokens = tuple(model.tokenizer("a1 b1 end")["input_ids"])
    yes, no = model.tokenizer.convert_tokens_to_ids(["yes", "no"])
    shares = direct_shares(model, recorded(model, tokens), (yes, no))
    (written,) = (share.share for share in shares if (share.part, share.layer) == ("mlp_out", 1))
    assert written == pytest.approx(1, abs=1e-3)
    others: list[Share] = [share for share in shares if (share.part, share.layer) != ("mlp_out", 1)]
    assert max(abs(share.share) for share in others) < 1e-3


def test_a_sweep_has_the_shares_of_both_prompts(model: LanguageModel) -> None:
    request = RunSweep(ModelReference("any"), (PromptPair("abc", "abd", "e", "f"),), sites=("resid_pre",), layers=(0,))
    *_, result = run_sweep(model, request, PatchingLimits())
    assert isinstance(result, WholeSweep)
    plan = plan_sweep(model, request, PatchingLimits())
    answers = plan.pairs[0].clean_answer, plan.pairs[0].corrupt_answer
    rows = result.direct.to_pylist()
    for prompt, tokens in (("clean", plan.pairs[0].clean), ("corrupt", plan.pairs[0].corrupt)):
        found = [row for row in rows if (row["pair"], row["prompt"]) == (0, prompt)]
        expected = direct_shares(model, recorded(model, tokens), answers)
        assert [(row["part"], row["layer"], row["head"]) for row in found] == [
            (share.part, share.layer, share.head) for share in expected
        ]
        assert [row["share"] for row in found] == pytest.approx([share.share for share in expected], abs=1e-6)
