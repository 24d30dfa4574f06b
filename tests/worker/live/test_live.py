"""Questions about a text and about directions, against NumPy and transformers' own modules; and what is refused."""

import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from actstore_api.records.sae import AblateDirection, AblateText, CheckSae, EncodeText, FindNeighbors, GetLogitLens
from actstore_api.records.terms import ModelReference
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import ActstoreError
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.live.answering import LiveAnswers, LoadedSaes, Question
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.live.saes.lens_of_directions import fold_final_norm
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.turns import SharedModel, Turns, share
from tests.made_models.plain_model import PlainModel, PlainSae
from tests.made_models.small_models import BERT, CONTEXT_LENGTH, D_MODEL, SAVERS, VOCABULARY_SIZE, save_neox, save_sae
from tests.worker.live.asking import GPT2

CPU = torch.device("cpu")
LIMITS = LiveLimits(saes=2, ablations=100, lens_tokens=50, neighbors=40, tokens_per_slice=64, check_tokens=1000)
D_SAE = 64
TEXT = "the cat"


class Lab:
    """Models of every family, and an SAE of each kind, with one replica's answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, save in (SAVERS | BERT).items():
            save(folder / "models" / name)
        save_neox(folder / "models" / "no_bos", bos=False)
        save_sae(folder / "models" / "sae", "standard", d_sae=D_SAE)
        save_sae(folder / "models" / "topk", "topk", d_sae=D_SAE)
        save_sae(folder / "models" / "wide", "standard", d_in=2 * D_MODEL)
        (folder / "store").mkdir()
        self.catalog = ModelCatalog((folder / "models",))
        self.answers = self.answering(LIMITS)
        self._models: dict[str, LanguageModel] = {}
        self._turns = Turns()

    def answering(self, limits: LiveLimits) -> LiveAnswers:
        return LiveAnswers(self.catalog, open_bucket(str(self.folder / "store")), CPU, limits)

    def model(self, name: str) -> LanguageModel:
        if name not in self._models:
            self._models[name] = load_model(self.catalog.find_model(name), device=CPU)
        return self._models[name]

    def shared(self, name: str) -> SharedModel:
        return share(self.model(name), self._turns)

    def ask(self, question: Question, answers: LiveAnswers | None = None) -> Any:
        answers = answers or self.answers
        named = answers.model_of(question)
        return answers.answer(question, self.shared(named.name) if named else None, threading.Event())

    def plain_sae(self, name: str = "sae") -> PlainSae:
        return PlainSae(self.folder / "models" / name)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("live"))


def ids_of(model: LanguageModel, text: str) -> list[int]:
    return [0, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]


@pytest.mark.parametrize("family", SAVERS)
def test_an_encoded_text_is_that_of_plain_hooks(lab: Lab, family: str) -> None:
    answer = lab.ask(EncodeText(ModelReference(family), "sae", TEXT))
    ids = ids_of(lab.model(family), TEXT)
    assert answer.tokens.to_pydict() == {
        "position": list(range(8)),
        "token": ids,
        "text": ["<|bos|>", *TEXT],
        "special": [True] + [False] * 7,
    }
    dense = lab.plain_sae().encode(PlainModel(lab.model(family).module).at("resid_post", 1, ids))
    position, feature = dense.nonzero()
    assert 0 < len(position) < dense.size
    assert answer.activations["position"].to_pylist() == position.tolist()
    assert answer.activations["feature"].to_pylist() == feature.tolist()
    np.testing.assert_allclose(answer.activations["activation"], dense[position, feature], rtol=1e-4, atol=1e-5)


def test_an_encoder_has_its_own_ends(lab: Lab) -> None:
    answer = lab.ask(EncodeText(ModelReference("bert"), "sae", TEXT))
    assert answer.tokens["special"].to_pylist() == [True] + [False] * 7 + [True]
    module: Any = lab.model("bert").module
    seen: list[torch.Tensor] = []
    handle = module.encoder.layer[1].output.LayerNorm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        module(input_ids=torch.tensor([answer.tokens["token"].to_pylist()]))
    handle.remove()
    dense = lab.plain_sae().encode(seen[0][0].numpy())
    np.testing.assert_allclose(answer.activations["activation"], dense[dense.nonzero()], rtol=1e-4, atol=1e-5)


def test_provenance_names_the_model_and_the_sae(lab: Lab) -> None:
    provenance = lab.ask(EncodeText(GPT2, "sae", TEXT)).provenance
    assert (provenance.model, provenance.weights_sha256) == ("gpt2", lab.model("gpt2").weights_sha256)
    assert provenance.config_sha256 == lab.model("gpt2").config_sha256
    assert list(provenance.sae_sha256) == ["sae"]
    assert (provenance.run, provenance.snapshot, provenance.dtype) == ("", "", "float32")


def test_bos_can_be_left_out_but_not_invented(lab: Lab) -> None:
    assert lab.ask(EncodeText(GPT2, "sae", TEXT, prepend_bos=False)).tokens["text"].to_pylist() == list(TEXT)
    assert lab.ask(EncodeText(ModelReference("no_bos"), "sae", TEXT)).tokens["special"].to_pylist() == [False] * 7
    with pytest.raises(ActstoreError) as refusal:
        lab.ask(EncodeText(ModelReference("no_bos"), "sae", TEXT, prepend_bos=True))
    assert refusal.value.details["field"] == "prepend_bos"


def gain_of(module: Any) -> np.ndarray:
    """What a norm multiplies by, from what it does to a long vector of known length."""
    x = 1e3 * torch.randn(1, D_MODEL, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        y = module(x) - (module.bias if isinstance(module, nn.LayerNorm) else 0)
    centred = x - x.mean() if isinstance(module, nn.LayerNorm) else x
    return (y * centred.square().mean().sqrt() / centred)[0].numpy()


def lens_twin(module: Any, directions: np.ndarray, norm: Any = None) -> np.ndarray:
    if norm is not None:
        centred = directions - directions.mean(1, keepdims=True) if isinstance(norm, nn.LayerNorm) else directions
        directions = centred * gain_of(norm)
    return directions @ module.get_output_embeddings().weight.numpy().T


@pytest.mark.parametrize("side", ["decoder", "encoder"])
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "neox_parallel", "llama", "gemma", "gemma2", "qwen3", "opt"])
def test_the_lens_is_a_product_with_the_unembedding(lab: Lab, family: str, folded: bool, side: str) -> None:
    model = lab.model(family)
    features = (5, 63, 0)
    answer = lab.ask(GetLogitLens(ModelReference(family), "sae", features, side=side, fold_norm=folded, k=4))
    weights = lab.plain_sae().tensors
    directions = (weights["W_dec"] if side == "decoder" else weights["W_enc"].T)[list(features)]
    norm = model.module.get_submodule(model.family.final_norm) if folded else None
    logits = lens_twin(model.module, directions, norm)
    table = answer.tokens.to_pandas()
    assert table.feature.tolist() == np.repeat(features, 8).tolist()
    assert table.end.tolist() == (["top"] * 4 + ["bottom"] * 4) * 3
    assert table["rank"].tolist() == [1, 2, 3, 4] * 6
    order = logits.argsort(1)
    expected = np.concatenate([order[:, :-5:-1], order[:, :4]], 1)
    assert table.token.tolist() == expected.flatten().tolist()
    np.testing.assert_allclose(table.logit, np.take_along_axis(logits, expected, 1).flatten(), rtol=1e-4, atol=1e-5)
    assert table.text[0] == model.texts.alone[table.token[0]]
    assert answer.masked_tokens == 0


@pytest.mark.parametrize("family", SAVERS)
def test_a_folded_norm_is_the_models_own(lab: Lab, family: str) -> None:
    """Of a direction as long as this one the norm's epsilon is nothing, so but for scale and bias it does the same."""
    model = lab.model(family)
    norm: Any = model.module.get_submodule(model.family.final_norm)
    direction = 1e3 * torch.randn(1, D_MODEL, generator=torch.Generator().manual_seed(1))
    centred = direction - direction.mean() if isinstance(norm, nn.LayerNorm) else direction
    with torch.no_grad():
        expected = (norm(direction) - getattr(norm, "bias", torch.zeros(1))) * centred.square().mean().sqrt()
    torch.testing.assert_close(fold_final_norm(model, direction), expected, rtol=1e-4, atol=1e-2)


def test_a_planted_direction_has_its_token_on_top_and_long_tokens_are_masked(lab: Lab) -> None:
    """No unembedding is as much along the longest one as that is itself (Cauchy-Schwarz)."""
    unembedding = lab.model("llama").module.get_output_embeddings().weight
    lengths = torch.linalg.vector_norm(unembedding, dim=1)
    order = lengths.argsort(descending=True).tolist()
    folder = save_sae(lab.folder / "models" / "planted", "standard", d_sae=D_SAE)
    tensors = load_file(folder / "sae_weights.safetensors")
    for feature, token in enumerate(order[:3]):
        tensors["W_dec"][feature] = unembedding[token]
    tensors["W_dec"][3] = -unembedding[order[0]]
    save_file(tensors, folder / "sae_weights.safetensors")

    def ends(longest: float | None, feature: int) -> tuple[list[int], int]:
        question = GetLogitLens(ModelReference("llama"), "planted", (feature,), longest_unembedding=longest, k=1)
        answer = lab.ask(question)
        return answer.tokens["token"].to_pylist(), answer.masked_tokens

    assert ends(None, 0)[0][0] == order[0]
    assert ends(None, 3)[0][1] == order[0]
    for feature in (1, 2):
        longest = float(lengths[order[feature]])
        tokens, masked = ends(longest, feature)
        assert (tokens[0], masked) == (order[feature], feature)
        assert order[0] not in ends(longest, 0)[0]


def test_where_few_tokens_are_left_all_of_them_come(lab: Lab) -> None:
    lengths = torch.linalg.vector_norm(lab.model("llama").module.get_output_embeddings().weight, dim=1).sort().values
    answer = lab.ask(GetLogitLens(ModelReference("llama"), "sae", (0,), longest_unembedding=float(lengths[2]), k=10))
    assert answer.masked_tokens == VOCABULARY_SIZE - 3
    assert len(answer.tokens) == 6
    with pytest.raises(ActstoreError) as refusal:
        lab.ask(GetLogitLens(ModelReference("llama"), "sae", (0,), longest_unembedding=float(lengths[0]) / 2))
    assert refusal.value.details["field"] == "longest_unembedding"


def cosines(vectors: np.ndarray, direction: np.ndarray) -> np.ndarray:
    return vectors @ direction / np.linalg.norm(vectors, axis=1) / np.linalg.norm(direction)


@pytest.mark.parametrize("side", ["decoder", "encoder"])
def test_neighbours_are_those_of_largest_cosine(lab: Lab, side: str) -> None:
    weights = lab.plain_sae().tensors
    vectors = weights["W_dec"] if side == "decoder" else weights["W_enc"].T
    found = lab.ask(FindNeighbors("sae", direction=7, side=side, k=10)).features
    expected = cosines(vectors, vectors[7])
    order = [feature for feature in (-expected).argsort().tolist() if feature != 7][:10]
    assert found["feature"].to_pylist() == order
    np.testing.assert_allclose(found["cosine"], expected[order], atol=1e-6)
    vector = np.arange(1.0, D_MODEL + 1)
    found = lab.ask(
        FindNeighbors("sae", direction=tuple(vector), side=side, k=D_SAE), lab.answering(LiveLimits())
    ).features
    expected = cosines(vectors, vector)
    assert found["feature"].to_pylist() == (-expected).argsort().tolist()
    np.testing.assert_allclose(found["cosine"], np.sort(expected)[::-1], atol=1e-6)


def test_a_dead_direction_is_nobodys_neighbor(lab: Lab) -> None:
    folder = save_sae(lab.folder / "models" / "dead", "standard", d_sae=4)
    tensors = load_file(folder / "sae_weights.safetensors")
    tensors["W_dec"][2] = 0
    save_file(tensors, folder / "sae_weights.safetensors")
    assert sorted(lab.ask(FindNeighbors("dead", direction=0)).features["feature"].to_pylist()) == [1, 3]
    with pytest.raises(ActstoreError) as refusal:
        lab.ask(FindNeighbors("dead", direction=2))
    assert (refusal.value.reason, refusal.value.details["field"]) == ("ARGUMENT_INVALID", "feature")


@pytest.mark.parametrize(
    ("question", "reason", "field", "value", "allowed"),
    [
        (EncodeText(GPT2, "sae", ""), "ARGUMENT_INVALID", "text", "", "text of at least one token"),
        (
            EncodeText(GPT2, "sae", "x" * CONTEXT_LENGTH),
            "LIMIT_EXCEEDED",
            "text",
            f"{CONTEXT_LENGTH + 1} tokens",
            f"at most {CONTEXT_LENGTH} tokens",
        ),
        (EncodeText(GPT2, "wide", TEXT), "SAE_MISMATCH", "d_in", "32", "16"),
        (EncodeText(GPT2, "absent", TEXT), "SAE_NOT_FOUND", "sae", "absent", None),
        (GetLogitLens(GPT2, "sae", ()), "ARGUMENT_INVALID", "features", "0 features", "1 to 256 features"),
        (GetLogitLens(GPT2, "sae", (0,) * 257), "LIMIT_EXCEEDED", "features", "257 features", "1 to 256 features"),
        (GetLogitLens(GPT2, "sae", (3, 64)), "FEATURE_OUT_OF_RANGE", "features", "64", "0 to 63"),
        (GetLogitLens(GPT2, "sae", (3,), k=0), "ARGUMENT_INVALID", "k", "0", "1 to 50"),
        (GetLogitLens(GPT2, "sae", (3,), k=51), "LIMIT_EXCEEDED", "k", "51", "1 to 50"),
        (
            GetLogitLens(ModelReference("bert"), "sae", (3,)),
            "MODEL_UNSUPPORTED",
            "model",
            "bert",
            "a causal language model",
        ),
        (
            AblateText(ModelReference("bert"), "sae", 3, TEXT),
            "MODEL_UNSUPPORTED",
            "model",
            "bert",
            "a causal language model",
        ),
        (
            AblateDirection(ModelReference("bert"), "sae", 3, TEXT),
            "MODEL_UNSUPPORTED",
            "model",
            "bert",
            "a causal language model",
        ),
        (AblateText(GPT2, "sae", 64, TEXT), "FEATURE_OUT_OF_RANGE", "feature", "64", "0 to 63"),
        (AblateText(GPT2, "sae", 3, TEXT, position=8), "ARGUMENT_INVALID", "position", "8", "1 to 7"),
        (AblateText(GPT2, "sae", 3, TEXT, position=0), "ARGUMENT_INVALID", "position", "0", "1 to 7"),
        (
            AblateText(GPT2, "sae", 3, "x", prepend_bos=False),
            "ARGUMENT_INVALID",
            "text",
            "0",
            "a text of at least two tokens",
        ),
        (
            AblateText(GPT2, "sae", 3, "x" * 20, position=15, pairs=True),
            "LIMIT_EXCEEDED",
            "pairs",
            "136",
            "at most 100",
        ),
        (AblateDirection(GPT2, "sae", 64, TEXT), "FEATURE_OUT_OF_RANGE", "feature", "64", "0 to 63"),
        (
            AblateDirection(GPT2, "sae", 3, "x", prepend_bos=False),
            "ARGUMENT_INVALID",
            "text",
            "x",
            "a text of at least two tokens",
        ),
        (FindNeighbors("sae", direction=64), "FEATURE_OUT_OF_RANGE", "feature", "64", "0 to 63"),
        (FindNeighbors("sae", direction=(1.0,) * 15), "ARGUMENT_INVALID", "vector", "15 numbers", None),
        (FindNeighbors("sae", direction=(0.0,) * 16), "ARGUMENT_INVALID", "vector", "16 numbers", None),
        (FindNeighbors("sae", direction=(np.nan,) * 16), "ARGUMENT_INVALID", "vector", "16 numbers", None),
        (FindNeighbors("sae", direction=3, k=41), "LIMIT_EXCEEDED", "k", "41", "1 to 40"),
        (CheckSae("absent", "sae"), "RUN_NOT_FOUND", "run", "absent", None),
    ],
)
def test_refusals(lab: Lab, question: Question, reason: str, field: str, value: str, allowed: str | None) -> None:
    with pytest.raises(ActstoreError) as refusal:
        lab.ask(question)
    details = refusal.value.details
    assert (refusal.value.reason, details["field"], details["value"]) == (reason, field, value)
    assert allowed is None or details["allowed"] == allowed


def test_a_question_that_nobody_waits_for_stops(lab: Lab) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(ActstoreError) as refusal:
        lab.answers.answer(EncodeText(GPT2, "sae", TEXT), lab.shared("gpt2"), stop)
    assert refusal.value.reason == "CANCELLED"


def test_the_saes_asked_for_last_stay_loaded_and_new_files_are_read(lab: Lab) -> None:
    for name in ("a", "b", "c"):
        save_sae(lab.folder / "models" / name, "standard")
    saes = LoadedSaes(lab.catalog, CPU, 2)
    first, second = saes.get("a"), saes.get("b")
    assert saes.get("a") is first
    saes.get("c")  # and b was asked for longest ago
    assert saes.get("a") is first
    assert saes.get("b") is not second
    save_sae(lab.folder / "models" / "b", "standard", seed=1)
    third = saes.get("b")
    assert third.sha256 != second.sha256
    weights = save_sae(lab.folder / "a third", "standard", seed=2) / "sae_weights.safetensors"
    os.utime(weights, (0, 0))  # older than any file that it comes to lie beside
    weights.replace(lab.folder / "models" / "b" / weights.name)
    assert saes.get("b").sha256 != third.sha256


def test_limits_are_positive() -> None:
    with pytest.raises(ActstoreError, match="saes is 0, and must be positive"):
        replace(LIMITS, saes=0)
