"""Norms of weights of every decoder family, and what they write on random input: numpy and TransformerLens agree."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from actstore_api.records.model import GetWeightNorms, GetWeightNormsAnswer
from actstore_api.records.terms import ModelReference, StoredSample
from actstore_storage.bucket.local import LocalBucket
from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import Site
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.snapshot import Snapshot
from actstore_worker.capture.plan import PlanSettings, plan_capture
from actstore_worker.capture.shards.worker import CaptureWorker
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.places import DatasetPlaces
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.live.passes.running import Passes
from actstore_worker.live.texts.weight_norms import factored_norms, matrix_norms, weight_norms
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.taps import observe
from actstore_worker.models.turns import Turns, share
from actstore_worker.models.weights import layer_weights, layout_of
from tests.capture_requests import capture_request
from tests.capturing import capture_run
from tests.made_models.small_models import BERT, CONTEXT_LENGTH, DECODERS, LAYERS, save_gpt2
from tests.worker.models.option_checks import check_heads

TEXT = "a token for each byte"
LIMITS = LiveLimits()


def load(name: str, tmp_path: Path) -> LanguageModel:
    folder = (DECODERS | BERT)[name](tmp_path / name)
    model = load_model(ModelCatalog((tmp_path,)).find_model(folder.name), device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(3)
    for key, parameter in model.module.named_parameters():  # gains that differ, so that folding them shows
        if parameter.ndim == 1 and "bias" not in key:
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    return model


def ask(
    model: LanguageModel, limits: LiveLimits = LIMITS, snapshot: Snapshot | None = None, **options
) -> GetWeightNormsAnswer:
    passes = Passes(share(model, Turns()), threading.Event())
    with torch.inference_mode():
        return weight_norms(passes, GetWeightNorms(ModelReference(model.name), **options), limits, snapshot)


# Shortformer's queries read positions beside the residual, which no matrix's norm is about.
@pytest.fixture(params=[name for name in DECODERS if name != "attention_only_shortformer"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> LanguageModel:
    return load(request.param, tmp_path)


def by_name(answer: GetWeightNormsAnswer) -> dict[tuple, dict]:
    return {(row["layer"], row["component"], row["head"]): row for row in answer.weights.to_pylist()}


def numpy_norms(matrix) -> list[float]:
    matrix = np.asarray(matrix, np.float64)
    return [np.linalg.norm(matrix), np.linalg.norm(matrix, 2)]


def shown(row: dict, *, folded: bool = False) -> list[float]:
    end = "_folded" if folded else ""
    return [row[f"frobenius{end}"], row[f"spectral{end}"]]


def test_heads_are_those_that_the_model_computes_with(model: LanguageModel) -> None:
    check_heads(model)


def test_norms_equal_those_of_numpy(model: LanguageModel) -> None:
    found = by_name(ask(model, samples=16))
    for layer in range(LAYERS):
        weights = layer_weights(model, layer)
        gain = weights.attention_norm.gain[:, None]
        centre = torch.eye(model.d_model) - (1 / model.d_model if weights.attention_norm.centred else 0.0)
        for head in range(model.head_count):
            key = head // weights.group
            w_q, w_k, w_v = weights.q[0][head], weights.k[0][key], weights.v[0][key]
            products = {"W_QK": (w_q @ w_k.T, centre @ (gain * w_q) @ (gain * w_k).T @ centre)}
            products["W_OV"] = w_v @ weights.o[0][head], centre @ (gain * w_v) @ weights.o[0][head]
            products["W_Q"] = w_q, centre @ (gain * w_q)
            for component, (plain, folded) in products.items():
                row = found[layer, component, head]
                assert shown(row) == pytest.approx(numpy_norms(plain), rel=1e-5)
                assert shown(row, folded=True) == pytest.approx(numpy_norms(folded), rel=1e-4)
            row = found[layer, "W_O", head]
            assert shown(row) == pytest.approx(numpy_norms(weights.o[0][head]), rel=1e-5)
            assert row["frobenius_folded"] is None
        for component, matrix in (("W_in", weights.reads), ("W_gate", weights.gate), ("W_out", weights.writes)):
            assert ((layer, component, None) in found) == (matrix is not None)
            if matrix is not None:
                assert shown(found[layer, component, None]) == pytest.approx(numpy_norms(matrix[0]), rel=1e-5)
        gain_row = found[layer, "ln1.w", None]
        assert gain_row["spectral"] == pytest.approx(float(weights.attention_norm.gain.abs().max()))
    unembedding = model.module.get_output_embeddings().weight.T
    assert shown(found[None, "W_U", None]) == pytest.approx(numpy_norms(unembedding), rel=1e-5)
    learnt = model.family.name in ("gpt2", "opt", "attention_only")
    assert ((None, "W_pos", None) in found) == learnt


def test_gains_of_gemma_are_one_more_than_their_weights(tmp_path: Path) -> None:
    model = load("gemma", tmp_path)
    assert model.family.gain_less_one
    torch.testing.assert_close(layer_weights(model, 0).attention_norm.gain, model.layers[0].input_layernorm.weight + 1)


@pytest.mark.parametrize("name", ["gpt2", "neox_parallel", "llama", "opt"])
def test_matrices_are_transformer_lenses(name: str, tmp_path: Path) -> None:
    model = load(name, tmp_path)
    model.module.save_pretrained(tmp_path / name)
    bridge = TransformerBridge.boot_transformers(str(tmp_path / name), device="cpu")
    found = by_name(ask(model, samples=16))
    if name in ("gpt2", "opt"):
        positions = numpy_norms(bridge.pos_embed.W_pos.detach()[-CONTEXT_LENGTH:])
        assert shown(found[None, "W_pos", None]) == pytest.approx(positions, rel=1e-4)
    for layer, block in enumerate(bridge.blocks):
        attention = block.attn
        for component in ("W_Q", "W_O"):
            for head, matrix in enumerate(getattr(attention, component)):
                norms = numpy_norms(matrix.detach())
                assert shown(found[layer, component, head]) == pytest.approx(norms, rel=1e-4), (layer, component)


def test_low_rank_products_need_no_full_matrix() -> None:
    rng = torch.Generator().manual_seed(0)
    left, right = torch.randn(3, 40, 6, generator=rng), torch.randn(3, 6, 40, generator=rng)
    frobenius, spectral = factored_norms(left, right)
    for head in range(3):
        expected = numpy_norms(left[head] @ right[head])
        assert [float(frobenius[head]), float(spectral[head])] == pytest.approx(expected, rel=1e-5)
    tall = torch.randn(20_000, 5, generator=rng)
    assert matrix_norms(tall) == pytest.approx(numpy_norms(tall), rel=1e-6)
    assert matrix_norms(tall.T) == pytest.approx(numpy_norms(tall), rel=1e-6)


def test_formulas_hold_within_sampling_error(model: LanguageModel) -> None:
    """Of a normalised Gaussian the MLP's is to order 1/d, and d is 16."""
    answer = ask(model, samples=20_000, seed=4)
    rows = answer.sublayers.to_pylist()
    assert len(rows) == LAYERS * (4 if layout_of(model).reads else 2)
    for row in rows:
        gated_or_normed = (layout_of(model).gate and row["sublayer"] == "mlp") or model.family.norms_writes
        assert (row["expected"] is None) == bool(gated_or_normed)
        if row["expected"] is not None:
            loose = 0.1 * row["sampled"] if (row["sublayer"], row["input"]) == ("mlp", "normalized") else 0
            assert abs(row["expected"] - row["sampled"]) < 5 * row["standard_error"] + loose + 1e-4 * row["sampled"]
        if row["sublayer"] == "mlp":
            allowed = 0.01 if row["input"] == "gaussian" else 0.05
            assert row["active_expected"] == pytest.approx(row["active_sampled"], abs=allowed)


def test_independent_heads_write_sqrt_heads_times_one_head(tmp_path: Path) -> None:
    """The 25 heads of GPT2-XL on one random input: 5 times one head, which is what independence predicts."""
    model = load("gpt2", tmp_path)
    row = next(row for row in ask(model, samples=16).sublayers.to_pylist() if row["input"] == "gaussian")
    weights = layer_weights(model, 0)
    mixed = sum(weights.v[0][head] @ weights.o[0][head] for head in range(model.head_count))
    constant = weights.o[1] + torch.einsum("hk,hkd->d", weights.v[1], weights.o[0])
    square = float(mixed.double().square().sum() + constant.double().square().sum())
    assert row["expected"] == pytest.approx(square**0.5, rel=1e-5)


def test_a_text_shows_what_real_input_makes(tmp_path: Path) -> None:
    model = load("gpt2", tmp_path)
    rows = [row for row in ask(model, samples=16, text=TEXT).sublayers.to_pylist() if row["input"] == "text"]
    assert [(row["layer"], row["sublayer"]) for row in rows] == [(n, s) for n in range(LAYERS) for s in ("attn", "mlp")]
    ids = torch.tensor([[model.bos_id, *model.tokenizer.encode(TEXT, add_special_tokens=False)]])
    seen = observe(model, ids, None, [Site(1, "attn_out"), Site(1, "mlp_out"), Site(1, "mlp_input")])
    attention, mlp = rows[2], rows[3]
    expected = seen[Site(1, "attn_out")][0, 1:].square().sum(-1).mean().sqrt()
    assert attention["sampled"] == pytest.approx(float(expected), rel=1e-5)
    before = model.layers[1].mlp.c_fc(seen[Site(1, "mlp_input")][0, 1:])
    assert mlp["active_sampled"] == pytest.approx(float((before > 0).float().mean()), abs=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_run_shows_what_its_stored_tokens_make(name: str, tmp_path: Path) -> None:
    """Each sequence by itself, without padding, under plain hooks."""
    model, texts = load(name, tmp_path), [f"text {number}, {'long ' * (number % 3)}" for number in range(7)]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "store").mkdir()
    bucket, catalog = LocalBucket(tmp_path / "store"), ModelCatalog((tmp_path,))
    plan = plan_capture(capture_request(name, "words.jsonl", "run"), catalog, PlanSettings(DatasetPlaces((tmp_path,))))
    capture_run(plan, bucket, CaptureWorker(bucket, torch.device("cpu")))
    snapshot = open_run(bucket, "run")
    answer = ask(model, LiveLimits(tokens_per_slice=40), snapshot, samples=16, stored=StoredSample("run", 10_000))
    rows = {row["sublayer"]: row for row in answer.sublayers.to_pylist() if (row["input"], row["layer"]) == ("run", 1)}
    assert (answer.provenance.run, rows["attn"]["expected"], rows["mlp"]["active_expected"]) == ("run", None, None)
    squares, active, layout = [], [], layout_of(model)
    switch = model.layers[1].get_submodule(layout.gate or layout.reads)
    for text in texts:
        ids = torch.tensor([[model.bos_id, *model.tokenizer.encode(text, add_special_tokens=False)]])
        seen = observe(model, ids, None, [Site(1, "mlp_out"), Site(1, "mlp_input")])
        squares.append(seen[Site(1, "mlp_out")][0, 1:].double().square().sum(-1))
        active.append((switch(seen[Site(1, "mlp_input")][0, 1:]) > 0).double().mean(-1))
    assert rows["mlp"]["sampled"] == pytest.approx(float(torch.cat(squares).mean().sqrt()), rel=1e-5)
    assert rows["mlp"]["active_sampled"] == pytest.approx(float(torch.cat(active).mean()), abs=1e-4)
    for tokens, reason in ((0, "ARGUMENT_INVALID"), (10**6, "LIMIT_EXCEEDED")):
        with pytest.raises(BadRequest) as caught:
            ask(model, LIMITS, snapshot, samples=16, stored=StoredSample("run", tokens))
        assert (caught.value.reason, caught.value.details["field"]) == (reason, "stored.tokens")


def test_the_same_seed_is_the_same_sample(tmp_path: Path) -> None:
    model = load("neox_parallel", tmp_path)
    first, again, other = (ask(model, samples=64, seed=seed).sublayers for seed in (1, 1, 2))
    assert first.equals(again)
    assert not first.equals(other)


def test_chosen_layers(tmp_path: Path) -> None:
    answer = ask(load("gpt2", tmp_path), samples=2, layers=(2, 0, 2))
    assert set(answer.weights["layer"].to_pylist()) == {0, 2, None}
    assert set(answer.sublayers["layer"].to_pylist()) == {0, 2}


def test_past_a_limit_a_formula_is_left_out(tmp_path: Path) -> None:
    rows = ask(load("gpt2", tmp_path), LiveLimits(weight_units=10), samples=2).sublayers.to_pylist()
    assert [row["expected"] is None for row in rows[:4]] == [False, False, True, True]


@pytest.mark.parametrize(
    ("options", "reason", "field"),
    [
        ({"layers": (LAYERS,)}, "LAYER_OUT_OF_RANGE", "layers"),
        ({"samples": 1}, "ARGUMENT_INVALID", "samples"),
        ({"samples": 100_000}, "LIMIT_EXCEEDED", "samples"),
        ({"text": "x" * 1000}, "LIMIT_EXCEEDED", "text"),
    ],
)
def test_refusals(options, reason: str, field: str, tmp_path: Path) -> None:
    save_gpt2(tmp_path / "gpt2")
    with pytest.raises(BadRequest) as caught:
        ask(load("gpt2", tmp_path), **options)
    assert (caught.value.reason, caught.value.details["field"]) == (reason, field)


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRequest) as caught:
        ask(load("bert", tmp_path))
    assert caught.value.reason == "MODEL_UNSUPPORTED"
