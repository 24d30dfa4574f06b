"""What ablations change, against reruns one at a time through plain hooks of transformers' own modules."""

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from actstore_api.records.sae import AblateDirection, AblateDirectionAnswer, AblateText, AblateTextAnswer
from actstore_api.records.terms import ModelReference
from actstore_storage.bucket.opening import open_bucket
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.live.answering import LiveAnswers, Question
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.turns import Turns, share
from tests.made_models.plain_model import PlainModel, PlainSae, Touch
from tests.made_models.small_models import D_MODEL, HEADS, SAVERS, save_sae, save_tokenizer
from tests.worker.live.asking import GPT2

CPU = torch.device("cpu")
# Slices of a few rows, the last of them not full.
LIMITS = LiveLimits(tokens_per_slice=50)
TEXT = "the cat sat"
SITES = ("resid_pre.2", "resid_mid.1", "attn_out.0", "resid_post.1")


class Lab:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, save in SAVERS.items():
            save(folder / "models" / name)
        for number, site in enumerate(SITES):
            save_sae(folder / "models" / site, "standard", site=site, seed=number)
        (folder / "store").mkdir()
        self.catalog = ModelCatalog((folder / "models",))
        self.answers = LiveAnswers(self.catalog, open_bucket(str(folder / "store")), CPU, LIMITS)
        self._models: dict[str, LanguageModel] = {}

    def model(self, name: str) -> LanguageModel:
        if name not in self._models:
            self._models[name] = load_model(self.catalog.find_model(name), device=CPU)
        return self._models[name]

    def ask(self, question: Question) -> Any:
        named = self.answers.model_of(question)
        assert named is not None
        return self.answers.answer(question, share(self.model(named.name), Turns()), threading.Event())


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("ablations"))


class Twin:
    """The slow way: a text at a time, one feature of an SAE at one site."""

    def __init__(self, lab: Lab, family: str, sae: str, feature: int) -> None:
        kind, _, layer = sae.partition(".")
        self.model, self.kind, self.layer, self.feature = (
            PlainModel(lab.model(family).module),
            kind,
            int(layer),
            feature,
        )
        self.sae = PlainSae(lab.folder / "models" / sae)

    def activations(self, ids: Sequence[int], touches: dict[tuple[str, int], Touch] | None = None) -> np.ndarray:
        return self.sae.encode(self.model.at(self.kind, self.layer, ids, touches))[:, self.feature]

    def deleted(self, ids: Sequence[int], taken: Sequence[int]) -> float:
        return float(self.activations([token for place, token in enumerate(ids) if place not in taken])[-1])

    def replaced(self, ids: Sequence[int], taken: Sequence[int], ablation: str) -> float:
        layers = range(1 if ablation == "zero_embedding" else self.layer + 1)
        values = {layer: np.zeros(D_MODEL, np.float32) for layer in layers}
        if ablation == "mean_residual":
            values = {layer: self.model.at("resid_pre", layer, ids)[1:].mean(0) for layer in layers}

        def touch(layer: int) -> Touch:
            def put(x: torch.Tensor) -> None:
                x[0, list(taken)] = torch.from_numpy(values[layer])

            return put

        return float(self.activations(ids, {("resid_pre", layer): touch(layer) for layer in layers})[-1])


def strong_feature(lab: Lab, family: str, sae: str, ids: Sequence[int], position: int) -> int:
    return int(np.argmax(Twin(lab, family, sae, 0).sae.encode(
        PlainModel(lab.model(family).module).at(*_place(sae), ids)
    )[position]))  # fmt: skip


def _place(sae: str) -> tuple[str, int]:
    kind, _, layer = sae.partition(".")
    return kind, int(layer)


def ids_of(lab: Lab, family: str) -> list[int]:
    return [0, *lab.model(family).tokenizer(TEXT, add_special_tokens=False)["input_ids"]]


def check_effects(answer: AblateTextAnswer, cells: list[tuple[int, ...]], expected: list[float]) -> None:
    table = answer.effects.to_pandas()
    assert [(row.first, *([] if np.isnan(row.second) else [row.second])) for row in table.itertuples()] == cells
    np.testing.assert_allclose(table.activation, expected, atol=1e-5)
    np.testing.assert_allclose(table.change, np.array(expected) - answer.activation, atol=1e-5)


@pytest.mark.parametrize("family", SAVERS)
def test_deletions_are_direct_reruns(lab: Lab, family: str) -> None:
    ids = ids_of(lab, family)[:9]
    feature = strong_feature(lab, family, "resid_post.1", ids, 8)
    answer = lab.ask(AblateText(ModelReference(family), "resid_post.1", feature, TEXT, position=8))
    twin = Twin(lab, family, "resid_post.1", feature)
    assert answer.activation == pytest.approx(twin.activations(ids)[-1], abs=1e-5)
    assert answer.activation > 0
    check_effects(answer, [(place,) for place in range(9)], [twin.deleted(ids, [place]) for place in range(9)])
    assert answer.effects["first_text"].to_pylist() == ["<|bos|>", *TEXT[:8]]
    assert len({round(value, 3) for value in answer.effects["change"].to_pylist()}) > 3


@pytest.mark.parametrize("ablation", ["zero_embedding", "zero_residual", "mean_residual"])
@pytest.mark.parametrize("family", SAVERS)
def test_replacements_are_direct_reruns(lab: Lab, family: str, ablation: str) -> None:
    ids = ids_of(lab, family)[:9]
    feature = strong_feature(lab, family, "resid_post.1", ids, 8)
    answer = lab.ask(AblateText(ModelReference(family), "resid_post.1", feature, TEXT, position=8, ablation=ablation))
    twin = Twin(lab, family, "resid_post.1", feature)
    expected = [twin.replaced(ids, [place], ablation) for place in range(9)]
    check_effects(answer, [(place,) for place in range(9)], expected)


@pytest.mark.parametrize("ablation", ["delete", "zero_residual", "mean_residual"])
@pytest.mark.parametrize("sae", SITES)
def test_pairs_come_after_singles_at_any_site(lab: Lab, sae: str, ablation: str) -> None:
    ids = ids_of(lab, "llama")[:6]
    feature = strong_feature(lab, "llama", sae, ids, 5)
    answer = lab.ask(AblateText(ModelReference("llama"), sae, feature, TEXT, position=5, ablation=ablation, pairs=True))
    twin = Twin(lab, "llama", sae, feature)
    cells = [(place,) for place in range(6)] + list(combinations(range(6), 2))
    expected = [
        twin.deleted(ids, cell) if ablation == "delete" else twin.replaced(ids, cell, ablation) for cell in cells
    ]
    check_effects(answer, cells, expected)
    assert answer.effects["second_text"].to_pylist()[-1] == TEXT[4]


def test_the_text_is_cut_where_the_feature_is_strongest(lab: Lab) -> None:
    ids = ids_of(lab, "gpt2")
    twin = Twin(lab, "gpt2", "resid_post.1", 11)
    whole = twin.activations(ids)
    answer = lab.ask(AblateText(GPT2, "resid_post.1", 11, TEXT))
    np.testing.assert_allclose(answer.tokens["activation"], whole, atol=1e-5)
    assert answer.position == 1 + whole[1:].argmax()
    assert answer.tokens["special"].to_pylist() == [True] + [False] * 11
    assert len(answer.effects) == answer.position + 1


def test_a_feature_that_never_fires_is_looked_at_in_the_last_token(lab: Lab) -> None:
    folder = save_sae(lab.folder / "models" / "silent", "standard")
    tensors = load_file(folder / "sae_weights.safetensors")
    tensors["b_enc"].fill_(-1e4)
    save_file(tensors, folder / "sae_weights.safetensors")
    answer = lab.ask(AblateText(GPT2, "silent", 11, TEXT))
    assert (answer.position, answer.activation) == (11, 0)
    assert answer.effects["change"].to_pylist() == [0] * 12


def test_a_text_of_two_tokens_has_no_pairs(lab: Lab) -> None:
    answer = lab.ask(AblateText(GPT2, "resid_post.1", 11, "x", pairs=True))
    assert [
        tuple(row) for row in zip(*(answer.effects[name].to_pylist() for name in ("first", "second")), strict=True)
    ] == [(0, None), (1, None)]


def save_either_of_two(folder: Path) -> None:
    """A hand-built model whose attention goes to every `a` and `b` alike, to other tokens only where there are none,
    with an SAE whose one feature is on where it found some. Residual dimension 0 is the same for all tokens, 1 marks a
    and b, 2 is what attention writes.
    """
    config = GPT2Config(
        vocab_size=257, n_embd=D_MODEL, n_layer=1, n_head=1, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        block = model.transformer.h[0]
        for norm in (block.ln_1, block.ln_2, model.transformer.ln_f):
            norm.weight.fill_(1)
        save_tokenizer(folder / "or")
        model.transformer.wte.weight[:, 0] = 1
        for letter in "ab":
            model.transformer.wte.weight[1 + sorted_bytes().index(letter), 1] = 1
        attention = block.attn.c_attn
        attention.bias[0] = 1  # every query
        attention.weight[1, D_MODEL] = 100  # keys of a and b
        attention.weight[1, 2 * D_MODEL] = 1  # their values
        block.attn.c_proj.weight[0, 2] = 1
    model.save_pretrained(folder / "or")
    save_sae(folder / "either", "standard", d_sae=1, site="resid_post.0")
    tensors = {name: torch.zeros(shape) for name, shape in {"W_enc": (16, 1), "b_enc": 1, "b_dec": 16}.items()}
    tensors["W_enc"][2], tensors["b_enc"][0] = 1, -0.5
    save_file(tensors | {"W_dec": torch.ones(1, 16)}, folder / "either" / "sae_weights.safetensors")


def sorted_bytes() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def test_pairs_find_a_feature_that_reads_either_of_two(lab: Lab) -> None:
    """Taking a or b changes nothing, for the other is still there; taking both switches the feature off."""
    save_either_of_two(lab.folder / "models")
    answer = lab.ask(AblateText(ModelReference("or"), "either", 0, "xaybz", position=5, pairs=True))
    assert answer.activation > 0.5
    for row in answer.effects.to_pylist():
        both = (row["first_text"], row["second_text"]) == ("a", "b")
        assert row["change"] == pytest.approx(-answer.activation if both else 0, abs=1e-5), row
    lookup = lab.ask(AblateText(ModelReference("or"), "either", 0, "xaxxz", position=5)).effects.to_pylist()
    assert [row["first_text"] for row in lookup if row["change"] < -0.5] == ["a"]


def direction_twin(twin: Twin, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Activations, log-probabilities, and those without the feature."""
    activations = twin.activations(ids)
    contribution = torch.from_numpy(np.outer(activations, twin.sae.tensors["W_dec"][twin.feature])).float()
    touches: dict[tuple[str, int], Touch] = {(twin.kind, twin.layer): lambda x: x.sub_(contribution)}
    return activations, twin.model.log_probabilities(ids), twin.model.log_probabilities(ids, touches)


def check_direction(answer: AblateDirectionAnswer, twin: Twin, ids: Sequence[int]) -> None:
    activations, before, after = direction_twin(twin, ids)
    table = answer.tokens.to_pandas()
    assert table.text.tolist() == ["<|bos|>", *TEXT[:-1]]
    assert table.next_text.tolist() == list(TEXT)
    np.testing.assert_allclose(table.activation, activations[:-1], atol=1e-5)
    np.testing.assert_allclose(table.log_probability, before, atol=2e-5)
    np.testing.assert_allclose(table.ablated, after, atol=2e-5)
    np.testing.assert_allclose(table.change, after - before, atol=4e-5)
    first = int(activations.nonzero()[0][0])
    assert (table.change[:first] == 0).all()  # exactly
    assert (table.change[first:] != 0).any()


@pytest.mark.parametrize("family", SAVERS)
def test_a_direction_is_taken_out_and_the_rest_run_on(lab: Lab, family: str) -> None:
    ids = ids_of(lab, family)
    # Of the features that fire late, so that something lies before them.
    dense = PlainSae(lab.folder / "models" / "resid_post.1").encode(
        PlainModel(lab.model(family).module).at("resid_post", 1, ids)
    )
    late = np.where(dense[:-1].any(0), (dense > 0).argmax(0), -1)
    feature = int(late.argmax())
    assert late[feature] > 1
    answer = lab.ask(AblateDirection(ModelReference(family), "resid_post.1", feature, TEXT))
    check_direction(answer, Twin(lab, family, "resid_post.1", feature), ids)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("sae", SITES)
def test_a_direction_is_taken_out_at_any_site(lab: Lab, sae: str, family: str) -> None:
    ids = ids_of(lab, family)
    feature = strong_feature(lab, family, sae, ids, 4)
    answer = lab.ask(AblateDirection(ModelReference(family), sae, feature, TEXT))
    check_direction(answer, Twin(lab, family, sae, feature), ids)


def test_a_normalized_sae_takes_its_direction_out_in_the_sites_own_scale(lab: Lab) -> None:
    """SAELens's layer_norm scales each row back by its deviation, and so must be what one feature adds."""
    folder = save_sae(lab.folder / "models" / "scaled", "standard", normalize_activations="layer_norm")
    assert json.loads((folder / "cfg.json").read_text())["normalize_activations"] == "layer_norm"
    ids = ids_of(lab, "gpt2")
    twin = Twin(lab, "gpt2", "resid_post.1", 3)
    twin.sae = PlainSae(folder)
    x = twin.model.at("resid_post", 1, ids).astype(np.float64)
    deviation = x.std(1, ddof=1, keepdims=True)
    dense = twin.sae.encode((x - x.mean(1, keepdims=True)) / (deviation + 1e-5))
    feature = int(dense[4].argmax())
    contribution = torch.from_numpy(dense[:, [feature]] * twin.sae.tensors["W_dec"][feature] * deviation).float()
    after = twin.model.log_probabilities(ids, {("resid_post", 1): lambda found: found.sub_(contribution)})
    answer = lab.ask(AblateDirection(GPT2, "scaled", feature, TEXT))
    np.testing.assert_allclose(answer.tokens["ablated"], after, atol=1e-4)


@pytest.mark.parametrize("head", [None, 2])
def test_a_direction_is_taken_out_of_heads(lab: Lab, head: int | None) -> None:
    """They lie side by side in z; an SAE of one of them reads and writes its part."""
    width = D_MODEL if head is None else D_MODEL // HEADS
    name = "z.1" if head is None else f"z.1.{head}"
    folder = save_sae(lab.folder / "models" / name, "standard", site=name, d_in=width)
    part = slice(None) if head is None else slice(head * width, (head + 1) * width)
    ids, plain, sae = ids_of(lab, "gpt2"), PlainModel(lab.model("gpt2").module), PlainSae(folder)
    dense = sae.encode(plain.at("z", 1, ids)[:, part])
    feature = int(dense[4].argmax())
    contribution = torch.from_numpy(np.outer(dense[:, feature], sae.tensors["W_dec"][feature])).float()
    after = plain.log_probabilities(ids, {("z", 1): lambda found: found[..., part].sub_(contribution)})
    table = lab.ask(AblateDirection(GPT2, name, feature, TEXT)).tokens
    np.testing.assert_allclose(table["activation"], dense[:-1, feature], atol=1e-5)
    np.testing.assert_allclose(table["ablated"], after, atol=2e-5)
    assert np.abs(table["change"].to_numpy()).max() > 1e-3


def test_a_transcoder_loses_its_direction_where_it_writes(lab: Lab) -> None:
    folder = save_sae(lab.folder / "models" / "transcoder", "standard", site="mlp_input.1")
    (folder / "actstore.json").write_text(json.dumps({"site": "mlp_input.1", "output_site": "mlp_out.1"}))
    config = json.loads((folder / "cfg.json").read_text()) | {"apply_b_dec_to_input": False}
    (folder / "cfg.json").write_text(json.dumps(config))
    ids, plain, sae = ids_of(lab, "gpt2"), PlainModel(lab.model("gpt2").module), PlainSae(folder)
    x = plain.at("mlp_input", 1, ids)
    dense = np.maximum(x @ sae.tensors["W_enc"] + sae.tensors["b_enc"], 0)
    feature = int(dense[4].argmax())
    contribution = torch.from_numpy(np.outer(dense[:, feature], sae.tensors["W_dec"][feature])).float()
    after = plain.log_probabilities(ids, {("mlp_out", 1): lambda found: found.sub_(contribution)})
    table = lab.ask(AblateDirection(GPT2, "transcoder", feature, TEXT)).tokens
    np.testing.assert_allclose(table["ablated"], after, atol=2e-5)
    assert np.abs(table["change"].to_numpy()).max() > 1e-3


def test_limits_do_not_change_the_answer(lab: Lab) -> None:
    question = AblateText(ModelReference("neox_parallel"), "resid_post.1", 11, TEXT, pairs=True)
    limits = replace(LIMITS, tokens_per_slice=10_000)
    wide = LiveAnswers(lab.catalog, open_bucket(str(lab.folder / "store")), CPU, limits)
    model = share(lab.model("neox_parallel"), Turns())
    found, other = lab.ask(question), wide.answer(question, model, threading.Event())
    assert isinstance(other, AblateTextAnswer)
    np.testing.assert_allclose(found.effects["activation"], other.effects["activation"], atol=1e-5)
