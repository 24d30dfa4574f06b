"""Tokens of corrupt prompts that a model treats unlike others: against plain loops, and planted ones that are named."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from actstore_api.records.model import CompareTokens
from actstore_api.records.terms import ModelReference
from actstore_storage.errors import ActstoreError
from actstore_worker.live.passes.limits import LiveLimits
from tests.made_models.small_models import HEADS, SAVERS, save_gpt2
from tests.worker.live.asking import GPT2, Replica
from tests.worker.models.hand_built import HandBuilt

LIMITS = LiveLimits()
# Tokens are bytes, and BOS is 0. Both prompts have the token that is replaced twice, and one that is not replaced.
CLEAN, CORRUPT = "abcad", ("xbcxd", "abcae")


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Replica:
    return Replica(tmp_path_factory.mktemp("tokens"), LIMITS)


def plain_patterns(replica: Replica, name: str, ids: list[int]) -> np.ndarray:
    """[layer, head, query, key], from a model of its own that transformers loads with eager attention."""
    build = replica.model(name).family.auto_class
    module: Any = build.from_pretrained(replica.models / name, attn_implementation="eager").eval()
    with torch.no_grad():
        return torch.stack(module(input_ids=torch.tensor([ids]), output_attentions=True).attentions)[:, 0].numpy()


def plain_heads(replica: Replica, name: str, question: CompareTokens) -> dict[tuple[Any, ...], dict[str, Any]]:
    """A prompt with a drawn token at a time, of the first layer."""
    model = replica.model(name)
    clean, *corrupt = (replica.ids(name, text) for text in (question.clean, *question.corrupt))
    plain = sorted(set(model.tokenizer.get_vocab().values()) - model.special_ids - set().union(clean, *corrupt))
    drawn = np.random.default_rng(question.seed).permutation(plain)[: question.draws].tolist()
    found = {}
    for number, ids in enumerate(corrupt):
        for position in (place for place in range(len(clean)) if clean[place] != ids[place]):
            for prompt, own in (("clean", clean), ("corrupt", ids)):
                token = own[position]
                usual = [[other if each == token else each for each in own] for other in drawn]
                here = plain_patterns(replica, name, own)[0]
                there = np.stack([plain_patterns(replica, name, each)[0] for each in usual])
                for head in range(HEADS):
                    late = there[:, head, position + 1 :, position]
                    expected = there[:, head, position].mean(0)
                    apart = [np.abs(row - expected).sum() / 2 for row in there[:, head, position]]
                    found[number, position, prompt, 0, head] = {
                        "attention": here[head, position + 1 :, position].mean() if late.size else None,
                        "usual_attention": late.mean(1).mean() if late.size else None,
                        "attention_deviation": late.mean(1).std() if late.size else None,
                        "moved": np.abs(here[head, position] - expected).sum() / 2,
                        "usual_moved": np.mean(apart),
                        "moved_deviation": np.std(apart),
                    }
    return found


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value")
@pytest.mark.parametrize("name", ["gpt2", "llama", "neox_parallel"])
def test_attention_is_compared_with_that_of_drawn_tokens(replica: Replica, name: str) -> None:
    question = CompareTokens(ModelReference(name), CLEAN, CORRUPT, draws=3, seed=4)
    expected = plain_heads(replica, name, question)
    rows = replica.ask(question, replace(LIMITS, tokens_per_slice=13)).heads.to_pylist()
    attention = {}
    for row in rows:
        place = tuple(row.pop(name) for name in ("corrupt", "position", "prompt", "layer", "head"))
        attention[place] = row["attention"]
        shift = row.pop("shift")
        if place[2] == "clean" or row["attention"] is None:
            assert shift is None
        else:
            before = attention[(*place[:2], "clean", *place[3:])]
            assert shift == pytest.approx(row["attention"] - before, abs=1e-12)
        assert row == pytest.approx(expected.pop(place), abs=1e-5), place
    assert not expected


@pytest.mark.parametrize("name", SAVERS)
def test_embeddings_are_compared_with_the_ordinary_vocabularys(replica: Replica, name: str) -> None:
    answer = replica.ask(CompareTokens(ModelReference(name), CLEAN, CORRUPT, draws=2))
    module: Any = replica.model(name).module
    weight = module.get_input_embeddings().weight.detach().double().numpy()
    ordinary = weight[sorted(set(replica.model(name).tokenizer.get_vocab().values()) - replica.model(name).special_ids)]
    mean, norms = ordinary.mean(0), np.array([np.sqrt((row**2).sum()) for row in ordinary])

    def cosine(one: np.ndarray, other: np.ndarray) -> float:
        return float(one @ other / np.sqrt((one @ one) * (other @ other)))

    cosines = np.array([cosine(row, mean) for row in ordinary])
    clean = replica.ids(name, CLEAN)
    rows = answer.tokens.to_pylist()
    assert [(row["corrupt"], row["position"], row["prompt"], row["text"]) for row in rows] == [
        (0, 1, "clean", "a"), (0, 1, "corrupt", "x"), (0, 4, "clean", "a"), (0, 4, "corrupt", "x"),
        (1, 5, "clean", "d"), (1, 5, "corrupt", "e"),
    ]  # fmt: skip
    for row in rows:
        own = weight[row["token"]]
        norm = np.sqrt(own @ own)
        assert row["norm"] == pytest.approx(norm)
        assert row["norm_z"] == pytest.approx((norm - norms.mean()) / norms.std())
        assert row["norm_below"] == pytest.approx(np.mean(norms < norm - 1e-12))
        assert row["cosine_to_mean"] == pytest.approx(cosine(own, mean))
        assert row["cosine_z"] == pytest.approx((row["cosine_to_mean"] - cosines.mean()) / cosines.std())
        if row["prompt"] == "clean":
            assert row["cosine_to_clean"] is None
        else:
            assert row["cosine_to_clean"] == pytest.approx(cosine(own, weight[clean[row["position"]]]))


def test_a_planted_long_embedding_stands_out_and_no_other(replica: Replica) -> None:
    folder = replica.models / "long"
    save_gpt2(folder)
    (x,) = replica.model("gpt2").tokenizer("x", add_special_tokens=False)["input_ids"]
    module = GPT2LMHeadModel.from_pretrained(folder)
    with torch.no_grad():
        module.transformer.wte.weight[x] *= 10
    module.save_pretrained(folder)
    rows = replica.ask(CompareTokens(ModelReference("long"), "abcd", ("xbcd", "aycd"), draws=2)).tokens.to_pylist()
    assert {row["text"] for row in rows if abs(row["norm_z"]) > 3} == {"x"}
    assert {row["text"] for row in rows if row["norm_below"] > 0.99} == {"x"}


def planted_head(folder: Path) -> None:
    """Head 0.1 attends to "odd" from wherever it is seen, and the rest attends evenly."""
    words = [".", "odd", "a", "b", "c", *(f"w{number}" for number in range(20))]
    built = HandBuilt(words, ("odd", "seen"), layers=3, heads=2, d_head=4, length=12)
    built.embed("odd", "odd")
    built.head(0, 1, read={"odd": "seen"}, match={"plus": "odd"})
    built.save(folder)


def test_a_planted_head_that_attends_to_a_token_tells_it_from_others(replica: Replica) -> None:
    planted_head(replica.models / "odd")
    question = CompareTokens(ModelReference("odd"), "a b c a", ("odd b c a", "w1 b c a"), draws=8, prepend_bos=False)
    rows = replica.ask(question).heads.to_pylist()
    apart = {
        (row["corrupt"], row["prompt"], row["layer"], row["head"])
        for row in rows
        if row["attention"] - row["usual_attention"] > 0.1
    }
    assert apart == {(0, "corrupt", 0, 1)}
    (row,) = [row for row in rows if (row["corrupt"], row["prompt"], row["head"]) == (0, "corrupt", 1)]
    assert (row["attention"], row["attention_deviation"]) == pytest.approx((1, 0), abs=1e-6)
    assert row["usual_attention"] == pytest.approx(np.mean([1 / 2, 1 / 3, 1 / 4]), abs=1e-6)


def test_a_token_that_looks_elsewhere_than_others_is_told_by_what_it_moves(replica: Replica) -> None:
    """At the last position, which no later query sees."""
    built = HandBuilt(
        [".", "odd", *(f"w{n}" for n in range(20))], ("odd", "first"), layers=1, heads=1, d_head=8, length=8
    )
    built.embed("odd", "odd")
    built.embed("w0", "first")
    built.head(0, 0, read={}, match={"odd": "first"})
    built.save(replica.models / "looks")
    question = CompareTokens(
        ModelReference("looks"), "w0 w1 w2 w3", ("w0 w1 w2 odd", "w0 w1 w2 w4"), draws=4, prepend_bos=False
    )
    rows = replica.ask(question).heads.to_pylist()
    assert {row["attention"] for row in rows} == {None}
    moved = [(row["corrupt"], row["prompt"], row["moved"]) for row in rows]
    assert [each[2] for each in moved] == pytest.approx([0, 0.75, 0, 0], abs=1e-6)
    assert [row["usual_moved"] for row in rows] == pytest.approx([0] * 4, abs=1e-6)


def test_layers_are_the_first_third_and_draws_are_the_seeds(replica: Replica) -> None:
    asked = [CompareTokens(GPT2, CLEAN, CORRUPT, draws=4, seed=seed) for seed in (1, 1, 2)]
    first, again, other = (replica.ask(question) for question in asked)
    assert first == again
    assert first.heads != other.heads
    assert set(first.heads["layer"].to_pylist()) == {0}
    assert replica.ask(replace(asked[0], draws=None)) == replica.ask(replace(asked[0], draws=128))
    few = replace(LIMITS, compared_draws=7)
    assert replica.ask(replace(asked[0], draws=None), few) == replica.ask(replace(asked[0], draws=7))
    some = replica.ask(replace(asked[0], layers=(2, 0)))
    assert set(some.heads["layer"].to_pylist()) == {0, 2}
    assert [row for row in some.heads.to_pylist() if row["layer"] == 0] == first.heads.to_pylist()


@pytest.mark.parametrize(
    ("question", "reason", "field", "value", "allowed"),
    [
        (
            CompareTokens(ModelReference("bert"), "ab", ("ac",)),
            "MODEL_UNSUPPORTED",
            "model",
            "bert",
            "a causal language model",
        ),
        (CompareTokens(GPT2, "ab", ()), "ARGUMENT_INVALID", "corrupt", "0 prompts", "1 to 2 prompts"),
        (CompareTokens(GPT2, "ab", ("ac",) * 3), "LIMIT_EXCEEDED", "corrupt", "3 prompts", "1 to 2 prompts"),
        (CompareTokens(GPT2, "", ("ac",)), "ARGUMENT_INVALID", "clean", "", "text of at least one token"),
        (CompareTokens(GPT2, "ab", ("a",)), "PROMPT_LENGTHS_DIFFER", "corrupt", "2 tokens", "3 tokens"),
        (
            CompareTokens(GPT2, "ab", ("ab",)),
            "ARGUMENT_INVALID",
            "corrupt",
            "ab",
            "a text that differs from the clean prompt",
        ),
        (CompareTokens(GPT2, "ab", ("ac",), layers=(9,)), "LAYER_OUT_OF_RANGE", "layers", "9", "0..2"),
        (CompareTokens(GPT2, "ab", ("ac",), draws=1), "ARGUMENT_INVALID", "draws", "1", "2 to 40"),
        (CompareTokens(GPT2, "ab", ("ac",), draws=41), "LIMIT_EXCEEDED", "draws", "41", "2 to 40"),
        (CompareTokens(GPT2, "ab", ("ac",)), "LIMIT_EXCEEDED", "corrupt", "246 tokens", "at most 197 tokens"),
    ],
)
def test_refusals(replica: Replica, question: Any, reason: str, field: str, value: str, allowed: str) -> None:
    limits = replace(LIMITS, compared_prompts=2, compared_draws=40, compared_tokens=197)
    with pytest.raises(ActstoreError) as refusal:
        replica.ask(question, limits)
    details = refusal.value.details
    found = (refusal.value.reason, details["field"], details["value"], details["allowed"])
    assert found == (reason, field, value, allowed)
