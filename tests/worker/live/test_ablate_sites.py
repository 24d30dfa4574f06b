"""A model's loss without each of its parts, against one text and one part at a time under plain hooks."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actstore_api.records.model import AblateSites
from actstore_api.records.terms import ModelReference, StoredSample
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import ActstoreError, BadRequest
from actstore_worker.caller import Caller
from actstore_worker.capture.plan import PlanSettings, plan_capture
from actstore_worker.capture.shards.worker import CaptureWorker
from actstore_worker.datasets.places import DatasetPlaces
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.live.questions import Question
from actstore_worker.models.turns import Turns, share
from actstore_worker.models.used import Usage
from tests.capture_requests import capture_request
from tests.capturing import capture_run
from tests.made_models.plain_model import PlainModel
from tests.made_models.small_models import DECODERS, HEADS, LAYERS
from tests.worker.live.asking import CPU, GPT2, Replica

TEXTS = ("the cat", "sat", "on the mat, or so", "the dog")
EQUAL = ("the cat", "the dog", "the mat")
# Slices of a few rows, the last of them not full.
LIMITS = LiveLimits(tokens_per_slice=50)
# Of (kind, layer, text): what takes the place of [position, width] there.
Values = Callable[[str, int, int], np.ndarray]


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Replica:
    return Replica(tmp_path_factory.mktemp("ablations"), LIMITS)


def plain_losses(
    replica: Replica,
    name: str,
    texts: Sequence[str],
    part: tuple[str, int, int | None] | None = None,
    values: Values | None = None,
) -> list[np.ndarray]:
    """Of each text, the losses of the tokens after those that are not BOS."""
    plain = PlainModel(replica.model(name).module)
    found = []
    for number, text in enumerate(texts):
        touches = {}
        if part is not None and values is not None:
            kind, layer, head = part
            given = torch.from_numpy(np.ascontiguousarray(values(kind, layer, number), np.float32))

            def touch(x: Tensor, given: Tensor = given, head: int | None = head) -> None:
                width = x.shape[-1] if head is None else x.shape[-1] // HEADS
                here = slice((head or 0) * width, ((head or 0) + 1) * width)
                x[0, 1:, here] = given.expand(x.shape[1], -1)[1:, here]

            touches = {(kind, layer): touch}
        found.append(-plain.log_probabilities(replica.ids(name, text), touches)[1:])
    return found


def check(replica: Replica, answer: Any, name: str, texts: Sequence[str], values: Values) -> None:
    base = np.concatenate(plain_losses(replica, name, texts))
    assert answer.tokens == len(base) == sum(map(len, texts)) - len(texts)
    assert answer.loss == pytest.approx(base.mean(), abs=1e-5)
    for row in answer.effects.to_pylist():
        part = row["kind"], row["layer"], row["head"]
        loss = np.concatenate(plain_losses(replica, name, texts, part, values)).mean()
        assert row["loss"] == pytest.approx(loss, abs=2e-5), row
        assert row["change"] == pytest.approx(loss - base.mean(), abs=2e-5), row


def zero(replica: Replica, name: str) -> Values:
    plain, ids = PlainModel(replica.model(name).module), replica.ids(name, "a")
    return lambda kind, layer, _: np.zeros(plain.at(kind, layer, ids).shape[1])


def sites_of(name: str) -> tuple[str, ...]:
    """Of OPT the plain model knows only what attention gives."""
    return ("attn_out",) if name == "opt" else ()


@pytest.mark.parametrize("name", DECODERS)
def test_zero(replica: Replica, name: str) -> None:
    answer = replica.ask(AblateSites(ModelReference(name), TEXTS, sites=sites_of(name)))
    check(replica, answer, name, TEXTS, zero(replica, name))
    if name != "opt":
        places = [row["site"] for row in answer.effects.to_pylist()]
        one = [f"{kind}.{{0}}" for kind in replica.model(name).written_kinds]
        one += [f"z.{{0}}.{head}" for head in range(HEADS)]
        assert places == [place.format(layer) for layer in range(LAYERS) for place in one]
    by_text = [losses.mean() for losses in plain_losses(replica, name, TEXTS)]
    np.testing.assert_allclose(answer.texts["loss"], by_text, atol=1e-5)
    assert answer.texts["tokens"].to_pylist() == [len(text) - 1 for text in TEXTS]


@pytest.mark.parametrize("name", ["gpt2", "neox_parallel", "llama", "gemma2"])
def test_a_mean_is_over_the_texts_tokens_but_bos(replica: Replica, name: str) -> None:
    plain = PlainModel(replica.model(name).module)

    def values(kind: str, layer: int, _: int) -> np.ndarray:
        return np.concatenate([plain.at(kind, layer, replica.ids(name, text))[1:] for text in TEXTS]).mean(0)

    check(replica, replica.ask(AblateSites(ModelReference(name), TEXTS, ablation="mean")), name, TEXTS, values)


def test_a_mean_may_be_over_the_stored_text_of_a_run(replica: Replica, tmp_path: Path) -> None:
    stored = [f"text {number} of them" for number in range(8)]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in stored))
    bucket = open_bucket(str(replica.store))
    settings = PlanSettings(DatasetPlaces((tmp_path,)))
    for name in ("gpt2", "llama"):
        plan = plan_capture(capture_request(name, "words.jsonl", f"of_{name}"), replica.catalog, settings)
        capture_run(plan, bucket, CaptureWorker(bucket, CPU))
    plain = PlainModel(replica.model("gpt2").module)

    def values(kind: str, layer: int, _: int) -> np.ndarray:
        return np.concatenate([plain.at(kind, layer, replica.ids("gpt2", text))[1:] for text in stored]).mean(0)

    question = AblateSites(GPT2, TEXTS, ablation="mean", stored=StoredSample("of_gpt2"))
    answer = replica.ask(question)
    check(replica, answer, "gpt2", TEXTS, values)
    assert (answer.provenance.run, answer.provenance.model) == ("of_gpt2", "gpt2")
    with pytest.raises(ActstoreError) as refusal:
        replica.ask(replace(question, stored=StoredSample("of_llama")))
    assert refusal.value.reason == "MODEL_NOT_FOUND"
    for tokens, reason in ((0, "ARGUMENT_INVALID"), (131_073, "LIMIT_EXCEEDED")):
        with pytest.raises(ActstoreError) as refusal:
            replica.ask(replace(question, stored=StoredSample("of_gpt2", tokens)))
        assert (refusal.value.reason, refusal.value.details["field"]) == (reason, "stored.tokens")


@pytest.mark.parametrize("same_position", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "neox_parallel", "llama", "gemma2"])
def test_resampling_is_from_another_text(replica: Replica, name: str, same_position: bool) -> None:
    """The ring and the positions are drawn here again, in the words of the contract."""
    texts = EQUAL if same_position else TEXTS
    question = AblateSites(ModelReference(name), texts, ablation="resample", seed=4, same_position=same_position)
    plain, drawn = PlainModel(replica.model(name).module), np.random.default_rng(4)
    ring = drawn.permutation(len(texts)).tolist()
    giver = {number: ring[(place + 1) % len(ring)] for place, number in enumerate(ring)}
    assert all(number != other for number, other in giver.items())
    positions = []
    for number, text in enumerate(texts):
        length = len(text) + 1
        there = np.arange(1, len(texts[giver[number]]) + 1)
        positions.append(np.arange(length) if same_position else drawn.choice(there, length))

    def values(kind: str, layer: int, number: int) -> np.ndarray:
        return plain.at(kind, layer, replica.ids(name, texts[giver[number]]))[positions[number]]

    check(replica, replica.ask(question), name, texts, values)


def test_parts_are_chosen_by_name(replica: Replica) -> None:
    question = AblateSites(
        ModelReference("llama"),
        TEXTS,
        sites=("z", "k", "z.2", "mlp_out.0", "blocks.1.hook_resid_pre"),
        layers=(1,),
        heads=(1,),
    )
    rows = replica.ask(question).effects.to_pylist()
    assert [row["site"] for row in rows] == ["mlp_out.0", "resid_pre.1", "k.1.1", "z.1.1", "z.2"]
    assert rows[0]["head"] is None
    whole = replica.ask(AblateSites(ModelReference("llama"), TEXTS)).effects.to_pylist()
    assert rows[3]["loss"] == pytest.approx(next(row["loss"] for row in whole if row["site"] == "z.1.1"), abs=1e-6)


def test_what_attention_gives_is_all_its_heads(replica: Replica) -> None:
    """GPT-2's projection has a bias, which its heads have not; Llama's has none."""
    rows = replica.ask(AblateSites(ModelReference("llama"), TEXTS, sites=("attn_out.1", "z.1"))).effects.to_pylist()
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], abs=1e-6)


def test_parts_that_nobody_waits_for_are_not_ablated(replica: Replica) -> None:
    assert replica.passes_until_stopped(AblateSites(GPT2, TEXTS), after=4) == 5


def test_texts_without_a_token_that_counts_have_no_loss(replica: Replica) -> None:
    answer = replica.ask(AblateSites(GPT2, ("a", "the cat"), sites=("mlp_out",)))
    assert answer.texts["loss"].to_pylist()[0] is None
    assert answer.loss == answer.texts["loss"].to_pylist()[1]


@pytest.mark.parametrize(
    ("asked", "reason", "field", "value", "allowed"),
    [
        (AblateSites(ModelReference("bert"), TEXTS), "MODEL_UNSUPPORTED", "model", "bert", "a causal language model"),
        (AblateSites(GPT2, ()), "ARGUMENT_INVALID", "texts", "0 texts", "at least one text"),
        (AblateSites(GPT2, ("a", "")), "ARGUMENT_INVALID", "texts", "", "text of at least one token"),
        (AblateSites(GPT2, ("a",)), "NOTHING_LEFT", "texts", "1 texts", "a text of at least two tokens"),
        (AblateSites(GPT2, ("x" * 32,)), "LIMIT_EXCEEDED", "texts", "33 tokens", "at most 32 tokens"),
        (AblateSites(GPT2, TEXTS, sites=("resid_mid",)), "SITE_UNKNOWN", "site", "resid_mid", None),
        (AblateSites(GPT2, TEXTS, sites=("pattern.1",)), "SITE_UNKNOWN", "site", "pattern.1", None),
        (
            AblateSites(ModelReference("neox_parallel"), TEXTS, sites=("resid_mid.1",)),
            "SITE_UNKNOWN",
            "site",
            "resid_mid.1",
            None,
        ),
        (AblateSites(GPT2, TEXTS, sites=("mlp_out.3",)), "SITE_UNKNOWN", "site", "mlp_out.3", None),
        (AblateSites(GPT2, TEXTS, sites=("z.1.4",)), "SITE_UNKNOWN", "site", "z.1.4", "heads 0..3"),
        (AblateSites(GPT2, TEXTS, layers=(3,)), "LAYER_OUT_OF_RANGE", "layers", "3", "0..2"),
        (AblateSites(GPT2, TEXTS, heads=(4,)), "SITE_UNKNOWN", "heads", "4", "0..3"),
        (AblateSites(ModelReference("llama"), TEXTS, sites=("k",), heads=(2,)), "SITE_UNKNOWN", "heads", "2", "0..1"),
        (AblateSites(GPT2, TEXTS[:1], ablation="resample"), "ARGUMENT_INVALID", "texts", "1 text", None),
        (
            AblateSites(GPT2, TEXTS, ablation="resample", same_position=True),
            "PROMPT_LENGTHS_DIFFER",
            "texts",
            "18 tokens",
            "4 tokens",
        ),
        (AblateSites(GPT2, ("<|bos|>", "cat"), ablation="resample"), "NOTHING_LEFT", "texts", "<|bos|>", None),
        (AblateSites(GPT2, TEXTS, same_position=True), "ARGUMENT_INVALID", "same_position", "True", None),
        (AblateSites(GPT2, TEXTS, stored=StoredSample("some")), "ARGUMENT_INVALID", "stored.run", "some", None),
        (
            AblateSites(GPT2, TEXTS, ablation="mean", stored=StoredSample("absent")),
            "RUN_NOT_FOUND",
            "run",
            "absent",
            None,
        ),
        (AblateSites(GPT2, ("x" * 30,) * 4), "LIMIT_EXCEEDED", "texts", f"{124 * 18} tokens", "at most 2000 tokens"),
    ],
)
def test_refusals(replica: Replica, asked: Question, reason: str, field: str, value: str, allowed: str | None) -> None:
    with pytest.raises(ActstoreError) as refusal:
        replica.ask(asked, replace(LIMITS, ablated_tokens=2000))
    details = refusal.value.details
    assert (refusal.value.reason, details["field"], details["value"]) == (reason, field, value)
    assert allowed is None or details["allowed"] == allowed


def test_what_takes_longer_than_its_caller_waits_is_refused_with_both_numbers(replica: Replica) -> None:
    answers, usage = replica.answers(), Usage()
    model = share(replica.model("gpt2"), Turns(usage))
    question = AblateSites(GPT2, TEXTS)

    def ask(seconds_left: float | None) -> Any:
        return answers.answer(question, model, Event(), Caller("ann", seconds_left))

    whole = ask(1e6)  # nothing was measured yet
    tokens = usage.take()["ann"].tokens
    assert tokens > len(whole.effects) * whole.tokens
    seconds = 1000.0
    model.speed.seconds_per_token = seconds / tokens  # as if the model were slow
    with pytest.raises(BadRequest, match=r"would take about \d+ s, and its deadline is in 500 s") as refusal:
        ask(seconds / 2)
    assert (refusal.value.reason, refusal.value.details["field"]) == ("LIMIT_EXCEEDED", "deadline_seconds")
    assert "ann" not in usage.take()  # nothing was run
    assert ask(2 * seconds).effects.equals(whole.effects)
    with pytest.raises(ActstoreError) as over:
        ask(0.0)
    assert over.value.reason == "CANCELLED"
