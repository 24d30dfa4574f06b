"""Steered texts against transformers' own generation under plain hooks; what both models say of them in one pass."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actstore_api.records.model import SteerText
from actstore_api.records.terms import ModelReference, SaeFeature
from actstore_storage.errors import ActstoreError
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.models.turns import Turns, share
from tests.made_models.plain_model import LAYERS as PLAIN_LAYERS
from tests.made_models.plain_model import PlainModel, PlainSae
from tests.made_models.small_models import D_MODEL, SAVERS, save_sae
from tests.worker.live.asking import GPT2, Replica

PROMPT, TOKENS = "the cat", 8
LIMITS = LiveLimits()
VECTOR = tuple(np.random.default_rng(3).normal(size=D_MODEL).tolist())
UNIT = torch.tensor(VECTOR) / torch.tensor(VECTOR).norm()
SITE, LAYER = "resid_post.1", 1
Delta = Callable[[Tensor], Tensor]


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Replica:
    found = Replica(tmp_path_factory.mktemp("steering"), LIMITS)
    save_sae(found.models / "sae", "standard", site=SITE)
    save_sae(found.models / "sae_z", "standard", site="z.1")
    save_sae(found.models / "wide", "standard", d_in=2 * D_MODEL)
    return found


@contextmanager
def hooked(replica: Replica, name: str, delta: Delta, prompt: int, *, steer: str = "all") -> Iterator[Any]:
    """The model with `delta` added to what layer 1 gives everywhere but at BOS, or in the prompt, or after it."""
    module: Any = replica.model(name).module
    layer = module.get_submodule(PLAIN_LAYERS.get(module.config.model_type, "model.layers"))[LAYER]
    seen = 0

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        nonlocal seen
        residual = output[0] if isinstance(output, tuple) else output
        places = torch.arange(seen, seen + residual.shape[1])
        seen += residual.shape[1]
        chosen = {"all": places > 0, "prompt": (places > 0) & (places < prompt), "generated": places >= prompt}[steer]
        moved = torch.where(chosen[None, :, None], residual + delta(residual), residual)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    handle = layer.register_forward_hook(hook)
    try:
        yield module
    finally:
        handle.remove()


def generate(module: Any, ids: list[int], tokens: int = TOKENS) -> list[int]:
    with torch.no_grad():
        given = torch.tensor([ids])
        found = module.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=tokens, do_sample=False, pad_token_id=0
        )
    return found[0, len(ids) :].tolist()


def written(answer: Any, by: str) -> list[int]:
    return [row["token"] for row in answer.tokens.to_pylist() if row["generated"] == by]


@pytest.mark.parametrize("name", SAVERS)
def test_strength_zero_is_transformers_greedy_text(replica: Replica, name: str) -> None:
    answer = replica.ask(
        SteerText(ModelReference(name), PROMPT, VECTOR, site=SITE, strength=0.0, max_new_tokens=TOKENS)
    )
    expected = generate(replica.model(name).module, replica.ids(name, PROMPT))
    assert written(answer, "steered") == written(answer, "unsteered") == expected
    assert answer.steered_text == answer.unsteered_text
    rows = answer.tokens.to_pylist()
    assert {row["kl"] for row in rows} == {0.0}
    assert all(row["steered"] == row["unsteered"] for row in rows)


@pytest.mark.parametrize("positions", ["all", "prompt", "generated"])
@pytest.mark.parametrize("name", SAVERS)
def test_an_added_direction_is_a_hook_and_generate(replica: Replica, name: str, positions: str) -> None:
    question = SteerText(
        ModelReference(name), PROMPT, VECTOR, site=SITE, strength=3.0, positions=positions, max_new_tokens=TOKENS
    )
    answer = replica.ask(question)
    ids = replica.ids(name, PROMPT)
    norm = np.linalg.norm(PlainModel(replica.model(name).module).at("resid_post", LAYER, ids)[1:], axis=1).mean()
    assert answer.mean_norm == pytest.approx(norm, rel=1e-5)
    assert answer.strength == pytest.approx(3 * norm, rel=1e-5)
    strength = answer.strength
    with hooked(replica, name, lambda x: (strength * UNIT).expand_as(x), len(ids), steer=positions) as module:
        expected = generate(module, ids)
    assert written(answer, "steered") == expected
    assert written(answer, "unsteered") == generate(replica.model(name).module, ids)
    of_prompt = positions != "generated"
    assert answer.prompt["steered"].to_pylist() == [False, *[of_prompt] * len(PROMPT)]
    absolute = replica.ask(replace(question, strength=strength, unit="absolute"))
    assert absolute.tokens == answer.tokens


def of_feature(strength: float, sae: PlainSae, feature: int) -> Delta:
    """The feature's part of the reconstruction taken out, and one of length `strength` put in."""
    row = torch.from_numpy(sae.tensors["W_dec"][feature]).float()

    def delta(x: Tensor) -> Tensor:
        activation = torch.from_numpy(sae.encode(x.flatten(0, 1).numpy())[:, feature]).float().view(x.shape[:2])
        return strength * row / row.norm() - activation[..., None] * row

    return delta


@pytest.mark.parametrize("name", ["gpt2", "neox_parallel", "gemma2", "opt"])
def test_other_modes_are_what_they_say(replica: Replica, name: str) -> None:
    sae, feature = PlainSae(replica.models / "sae"), 7
    ways: dict[str, tuple[SteerText, Callable[[float], Delta]]] = {
        "set": (
            SteerText(ModelReference(name), PROMPT, VECTOR, site=SITE, mode="set", strength=-2.0),
            lambda strength: lambda x: (strength - x @ UNIT)[..., None] * UNIT,
        ),
        "project_out": (
            SteerText(ModelReference(name), PROMPT, VECTOR, site=SITE, mode="project_out"),
            lambda _: lambda x: -(x @ UNIT)[..., None] * UNIT,
        ),
        "feature": (
            SteerText(ModelReference(name), PROMPT, direction=SaeFeature("sae", feature), mode="set", strength=2.0),
            lambda strength: of_feature(strength, sae, feature),
        ),
        "added feature": (
            SteerText(ModelReference(name), PROMPT, direction=SaeFeature("sae", feature), strength=2.0),
            lambda strength: (
                lambda x: (strength * torch.from_numpy(sae.tensors["W_dec"][feature]).float()
                           / np.linalg.norm(sae.tensors["W_dec"][feature])).expand_as(x)
            ),
        ),
    }  # fmt: skip
    ids = replica.ids(name, PROMPT)
    for way, (question, delta) in ways.items():
        answer = replica.ask(replace(question, max_new_tokens=TOKENS))
        assert (answer.strength is None) == (way == "project_out")
        with hooked(replica, name, delta(answer.strength or 0.0), len(ids)) as module:
            expected = generate(module, ids)
        assert written(answer, "steered") == expected, way
        assert answer.site == SITE
        assert list(answer.provenance.sae_sha256) == (["sae"] if "feature" in way else [])


def test_an_sae_that_steered_can_still_have_gradients(replica: Replica) -> None:
    """Sweeps share the replica's SAEs, and screens differentiate."""
    answers = replica.answers()
    question = SteerText(GPT2, PROMPT, direction=SaeFeature("sae", 7), strength=1.0, max_new_tokens=1)
    answers.answer(question, share(replica.model("gpt2"), Turns()), threading.Event())
    assert not any(tensor.is_inference() for tensor in answers.find_sae("sae").tensors.values())


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
def test_both_models_are_asked_about_both_texts(replica: Replica, name: str) -> None:
    answer = replica.ask(
        SteerText(ModelReference(name), PROMPT, VECTOR, site=SITE, strength=2.0, max_new_tokens=TOKENS)
    )
    ids = replica.ids(name, PROMPT)
    plain = PlainModel(replica.model(name).module)

    def steer(x: Tensor) -> None:
        x[:, 1:] += answer.strength * UNIT

    for by in ("steered", "unsteered"):
        rows = [row for row in answer.tokens.to_pylist() if row["generated"] == by]
        whole = [*ids, *(row["token"] for row in rows)]
        p, q = (
            torch.from_numpy(plain.logits(whole, touches)).log_softmax(-1)[len(ids) - 1 : -1]
            for touches in ({("resid_post", LAYER): steer}, {})
        )
        for number, row in enumerate(rows):
            assert row["position"] == len(ids) + number
            assert row["steered"] == pytest.approx(float(p[number, row["token"]]), abs=1e-4)
            assert row["unsteered"] == pytest.approx(float(q[number, row["token"]]), abs=1e-4)
            kl = float((p[number].exp() * (p[number] - q[number])).sum())
            assert row["kl"] == pytest.approx(kl, abs=1e-4, rel=1e-3)


def test_a_drawn_text_is_that_of_whole_passes_and_the_seeds_own(replica: Replica) -> None:
    question = SteerText(
        ModelReference("llama"),
        PROMPT,
        VECTOR,
        site=SITE,
        strength=1.0,
        max_new_tokens=TOKENS,
        temperature=0.7,
        seed=11,
    )
    answer = replica.ask(question)
    assert replica.ask(question) == answer
    assert written(replica.ask(replace(question, seed=12)), "steered") != written(answer, "steered")
    plain, generator = PlainModel(replica.model("llama").module), torch.Generator().manual_seed(11)

    def steer(x: Tensor) -> None:
        x[:, 1:] += answer.strength * UNIT

    ids = replica.ids("llama", PROMPT)
    for _ in range(TOKENS):
        logits = torch.from_numpy(plain.logits(ids, {("resid_post", LAYER): steer})[-1])
        ids.append(int(torch.multinomial((logits / 0.7).softmax(-1), 1, generator=generator)))
    assert written(answer, "steered") == ids[-TOKENS:]


@pytest.mark.parametrize("kind", ["resid_pre", "resid_mid", "attn_out", "mlp_out"])
def test_every_site_of_the_residual_can_be_steered(replica: Replica, kind: str) -> None:
    """What is set along the direction is there in the pass that reads the text: seen in the plain model's words."""
    strength = 5.0
    question = SteerText(
        GPT2, PROMPT, VECTOR, site=f"{kind}.1", mode="set", strength=strength, unit="absolute",
        max_new_tokens=1,
    )  # fmt: skip
    answer = replica.ask(question)
    module: Any = replica.model("gpt2").module
    ids = replica.ids("gpt2", PROMPT)
    plain = PlainModel(module)
    before = torch.from_numpy(plain.at("resid_pre", 1, ids))

    def steer(x: Tensor) -> None:
        there = before + x[0] if kind == "resid_mid" else x[0]
        x[0, 1:] += ((strength - there @ UNIT)[:, None] * UNIT)[1:]

    carrier = "attn_out" if kind == "resid_mid" else kind
    logits = plain.logits(ids, {(carrier, 1): steer})[-1]
    [token] = written(answer, "steered")
    assert token == logits.argmax()
    row = answer.tokens.to_pylist()[0]
    assert row["steered"] == pytest.approx(float(torch.from_numpy(logits).log_softmax(-1)[token]), abs=1e-4)


def test_a_prompt_of_special_tokens_has_a_norm_and_is_not_steered(replica: Replica) -> None:
    answer = replica.ask(
        SteerText(GPT2, "<|bos|>", VECTOR, site=SITE, strength=5.0, positions="prompt", max_new_tokens=3)
    )
    residual = PlainModel(replica.model("gpt2").module).at("resid_post", LAYER, [0])
    assert answer.mean_norm == pytest.approx(np.linalg.norm(residual, axis=1).mean(), rel=1e-5)
    assert answer.prompt["steered"].to_pylist() == [False]  # the BOS that the prompt has itself is the only one
    assert written(answer, "steered") == written(answer, "unsteered")


def test_the_models_end_token_ends_a_text(replica: Replica) -> None:
    """Along its unembedding, at the last layer, nothing else is as likely."""
    vector = tuple(replica.model("gpt2").module.get_output_embeddings().weight[0].tolist())
    answer = replica.ask(SteerText(GPT2, PROMPT, vector, site="resid_post.2", strength=100.0, max_new_tokens=TOKENS))
    assert written(answer, "steered") == [0]
    assert answer.steered_text == ""
    assert len(written(answer, "unsteered")) == TOKENS


def question(**changes: Any) -> SteerText:
    usual = {"prompt": PROMPT, "direction": VECTOR, "site": SITE, "strength": 1.0}
    return SteerText(ModelReference(changes.pop("model", "gpt2")), **{**usual, **changes})


@pytest.mark.parametrize(
    ("asked", "reason", "field", "value", "allowed"),
    [
        (question(model="bert"), "MODEL_UNSUPPORTED", "model", "bert", "a causal language model"),
        (question(prompt=""), "ARGUMENT_INVALID", "prompt", "", "text of at least one token"),
        (question(prompt="x" * 32), "LIMIT_EXCEEDED", "prompt", "33 tokens", "at most 32 tokens"),
        (question(prompt="x" * 31), "LIMIT_EXCEEDED", "max_new_tokens", "32", "a shorter prompt"),
        (question(prompt="x" * 20), "LIMIT_EXCEEDED", "max_new_tokens", "32", "1 to 11"),
        (question(max_new_tokens=0), "ARGUMENT_INVALID", "max_new_tokens", "0", "1 to 16"),
        (question(max_new_tokens=17), "LIMIT_EXCEEDED", "max_new_tokens", "17", "1 to 16"),
        (question(site="resid_post.3"), "SITE_UNKNOWN", "site", "resid_post.3", None),
        (question(site="z.1"), "SITE_UNKNOWN", "site", "z.1", None),
        (question(site=""), "ARGUMENT_INVALID", "site", "", "a site of the residual stream"),
        (
            question(direction=SaeFeature("sae", 0)),
            "ARGUMENT_INVALID",
            "site",
            SITE,
            "none: a feature is steered at its SAE's site",
        ),
        (question(direction=(1.0,) * 15), "ARGUMENT_INVALID", "vector", "15 numbers", None),
        (question(direction=(0.0,) * 16), "ARGUMENT_INVALID", "vector", "16 numbers", None),
        (question(direction=(float("nan"),) * 16), "ARGUMENT_INVALID", "vector", "16 numbers", None),
        (question(direction=()), "ARGUMENT_INVALID", "vector", "0 numbers", None),
        (question(direction=SaeFeature("sae", 64), site=""), "FEATURE_OUT_OF_RANGE", "feature", "64", "0 to 63"),
        (question(direction=SaeFeature("absent", 0), site=""), "SAE_NOT_FOUND", "sae", "absent", None),
        (question(direction=SaeFeature("wide", 0), site=""), "SAE_MISMATCH", "d_in", "32", "16"),
        (
            question(direction=SaeFeature("sae_z", 0), site=""),
            "SAE_UNSUPPORTED",
            "sae",
            "z.1",
            "an SAE at a site of the residual stream",
        ),
        (question(temperature=-1.0), "ARGUMENT_INVALID", "temperature", "-1.0", None),
        (question(temperature=float("nan")), "ARGUMENT_INVALID", "temperature", "nan", None),
        (question(strength=None), "ARGUMENT_INVALID", "strength", "", "a finite number"),
        (question(strength=float("inf")), "ARGUMENT_INVALID", "strength", "inf", "a finite number"),
        (question(mode="project_out"), "ARGUMENT_INVALID", "strength", "1.0", None),
        (question(seed=2**63), "ARGUMENT_INVALID", "seed", str(2**63), None),
        (question(strength=1e38), "VALUE_OVERFLOW", "strength", "1e+38", None),
    ],
)
def test_refusals(replica: Replica, asked: SteerText, reason: str, field: str, value: str, allowed: str | None) -> None:
    tokens = {} if asked.max_new_tokens != 32 or allowed else {"max_new_tokens": 4}
    with pytest.raises(ActstoreError) as refusal:
        replica.ask(replace(asked, **tokens), replace(LIMITS, steered_tokens=16))
    details = refusal.value.details
    assert (refusal.value.reason, details["field"], details["value"]) == (reason, field, value)
    assert allowed is None or details["allowed"] == allowed


def test_a_text_that_nobody_waits_for_is_not_written_on(replica: Replica) -> None:
    assert replica.passes_until_stopped(question(max_new_tokens=20), after=5) == 6
