"""Attention patterns against transformers' own output, what heads do in sum against loops, and planted induction."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from actstore_api.records.model import GetAttention, GetInductionScores
from actstore_api.records.terms import ModelReference
from actstore_storage.errors import ActstoreError
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.live.questions import Question
from tests.made_models.small_models import BERT, CONTEXT_LENGTH, HEADS, LAYERS, SAVERS
from tests.worker.live.asking import GPT2, Replica
from tests.worker.models import hand_built

TEXT = "the cat the cat"
LIMITS = LiveLimits()


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Replica:
    return Replica(tmp_path_factory.mktemp("attention"), LIMITS)


def plain_patterns(replica: Replica, name: str, ids: list[int]) -> NDArray[np.float32]:
    """[layer, head, query, key], from a model of its own that transformers loads with eager attention."""
    build = replica.model(name).family.auto_class
    module: Any = build.from_pretrained(replica.models / name, attn_implementation="eager").eval()
    with torch.no_grad():
        found = module(input_ids=torch.tensor([ids]), output_attentions=True).attentions
    return torch.stack(found)[:, 0].numpy()


def plain_summary(weights: NDArray[np.float32], ids: list[int]) -> dict[str, float]:
    """Of one head, a pair of positions at a time."""
    n = len(ids)
    found = dict.fromkeys(
        ("entropy", "distance", "previous_token", "first_token", "current_token", "duplicate_token", "induction"), 0.0
    )
    for q in range(n):
        for k in range(n):
            weight = float(weights[q, k])
            found["entropy"] -= weight * np.log(weight) if weight else 0.0
            found["distance"] += weight * abs(q - k)
            found["previous_token"] += weight * (k == q - 1)
            found["first_token"] += weight * (k == 0)
            found["current_token"] += weight * (k == q)
            found["duplicate_token"] += weight * (k < q and ids[k] == ids[q])
            found["induction"] += weight * (0 < k <= q and ids[k - 1] == ids[q])
    return {name: value / n for name, value in found.items()}


@pytest.mark.parametrize("name", [*SAVERS, *BERT])
def test_patterns_and_summaries_are_those_of_the_models_own_attention(replica: Replica, name: str) -> None:
    answer = replica.ask(GetAttention(ModelReference(name), TEXT, patterns=True))
    ids = replica.ids(name, TEXT)
    expected = plain_patterns(replica, name, ids)
    found = np.zeros_like(expected)
    rows = answer.patterns.to_pydict()
    found[rows["layer"], rows["head"], rows["query"], rows["key"]] = rows["weight"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    n, causal = len(ids), name != "bert"
    assert answer.patterns.num_rows == LAYERS * HEADS * (n * (n + 1) // 2 if causal else n * n)
    for row in answer.heads.to_pylist():
        twin = plain_summary(expected[row.pop("layer"), row.pop("head")], ids)
        assert row == pytest.approx(twin, abs=1e-5)
    assert answer.tokens["token"].to_pylist() == ids
    assert answer.provenance.attention_implementation == "eager"


def test_only_what_is_asked_for_is_sent(replica: Replica) -> None:
    whole = replica.ask(GetAttention(GPT2, TEXT))
    assert whole.patterns is None
    some = replica.ask(GetAttention(GPT2, TEXT, layers=(2, 0, 2), heads=(3, 1), patterns=True))
    places = [(0, 1), (0, 3), (2, 1), (2, 3)]
    assert list(zip(*(some.heads[name].to_pylist() for name in ("layer", "head")), strict=True)) == places
    assert some.heads.to_pylist() == [row for row in whole.heads.to_pylist() if (row["layer"], row["head"]) in places]


def test_attention_is_as_usual_afterwards(replica: Replica) -> None:
    replica.ask(GetAttention(ModelReference("llama"), TEXT))
    module: Any = replica.model("llama").module
    assert module.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_induction_scores_are_means_over_the_second_time(replica: Replica, name: str) -> None:
    tokens, texts = 9, 3
    answer = replica.ask(GetInductionScores(ModelReference(name), tokens=tokens, texts=texts, seed=5))
    drawn = np.random.default_rng(5)
    words = np.arange(1, 257)
    expected: dict[tuple[int, int], list[NDArray[np.float64]]] = {}
    for _ in range(texts):
        half = drawn.permutation(words)[:tokens].tolist()
        patterns = plain_patterns(replica, name, [0, *half, *half])
        for layer, head in np.ndindex(LAYERS, HEADS):
            a = patterns[layer, head]
            queries = range(1 + tokens, 1 + 2 * tokens)
            scores = [[a[q, q - tokens + 1], a[q, q - tokens], a[q, q - 1]] for q in queries]
            expected.setdefault((layer, head), []).append(np.mean(scores, axis=0))
    for row in answer.heads.to_pylist():
        found = [row[score] for score in ("induction", "duplicate_token", "previous_token")]
        np.testing.assert_allclose(found, np.mean(expected[row["layer"], row["head"]], axis=0), atol=1e-6)
    assert answer.tokens == tokens


def test_losses_are_of_the_tokens_but_the_first_of_each_time(replica: Replica) -> None:
    answer = replica.ask(GetInductionScores(GPT2, tokens=4, texts=1, seed=1))
    half = np.random.default_rng(1).permutation(np.arange(1, 257))[:4].tolist()
    ids = [0, *half, *half]
    with torch.no_grad():
        logs = replica.model("gpt2").module(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    losses = [-float(logs[place - 1, ids[place]]) for place in range(1, 9)]
    assert answer.loss_first == pytest.approx(np.mean(losses[1:4]), abs=1e-5)
    assert answer.loss_second == pytest.approx(np.mean(losses[5:]), abs=1e-5)


def test_the_same_seed_draws_the_same_tokens(replica: Replica) -> None:
    first, again, other = (replica.ask(GetInductionScores(GPT2, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first.heads != other.heads
    assert first.tokens == (CONTEXT_LENGTH - 1) // 2


def test_the_hand_built_induction_head_is_found_where_it_is(replica: Replica) -> None:
    """Head 0.0 carries each token's predecessor, head 1.0 is the induction head; the seed draws three letters.

    The first token, which has no predecessor, is taken for its own: the query that looks for it sees it twice.
    """
    hand_built.induction(replica.models / "planted")
    vocabulary = replica.model("planted").tokenizer.get_vocab()
    letters = {vocabulary[letter] for letter in hand_built.LETTERS}
    ids = np.array(sorted(set(vocabulary.values()) - replica.model("planted").special_ids))
    seed = next(seed for seed in range(100) if set(np.random.default_rng(seed).permutation(ids)[:3]) <= letters)
    question = GetInductionScores(ModelReference("planted"), tokens=3, texts=1, seed=seed, prepend_bos=False)
    scores = {(row["layer"], row["head"]): row for row in replica.ask(question).heads.to_pylist()}
    assert scores[1, 0]["induction"] == pytest.approx(2.5 / 3)
    assert scores[0, 0]["previous_token"] == pytest.approx(1)
    assert max(row["induction"] for place, row in scores.items() if place != (1, 0)) < 0.5
    seen = replica.ask(GetAttention(ModelReference("planted"), "a b x a b x", prepend_bos=False)).heads.to_pylist()
    found = {(row["layer"], row["head"]): row for row in seen}
    assert found[1, 0]["induction"] == pytest.approx(2.5 / 6)  # of six queries the last three have seen their token
    assert found[0, 0]["previous_token"] == pytest.approx(5 / 6)


@pytest.mark.parametrize(
    ("question", "reason", "field", "value", "allowed"),
    [
        (GetAttention(GPT2, ""), "ARGUMENT_INVALID", "text", "", "text of at least one token"),
        (GetAttention(GPT2, TEXT, layers=(3,)), "LAYER_OUT_OF_RANGE", "layers", "3", "0..2"),
        (GetAttention(GPT2, TEXT, heads=(4,)), "SITE_UNKNOWN", "heads", "4", "0..3"),
        (GetAttention(GPT2, "x" * 32), "LIMIT_EXCEEDED", "text", "33 tokens", "at most 32 tokens"),
        (
            GetAttention(GPT2, "x" * 15, patterns=True),
            "LIMIT_EXCEEDED",
            "patterns",
            "1632 weights",
            "at most 1000 weights",
        ),
        (GetAttention(GPT2, "x" * 30), "LIMIT_EXCEEDED", "text", "3844 weights", "at most 3000 weights"),
        (GetInductionScores(ModelReference("bert")), "MODEL_UNSUPPORTED", "model", "bert", "a causal language model"),
        (GetInductionScores(GPT2, tokens=16), "LIMIT_EXCEEDED", "tokens", "16", "2 to 15"),
        (GetInductionScores(GPT2, tokens=1), "ARGUMENT_INVALID", "tokens", "1", "2 to 15"),
        (GetInductionScores(GPT2, tokens=2, texts=0), "ARGUMENT_INVALID", "texts", "0", "1 to 5"),
        (GetInductionScores(GPT2, tokens=2, texts=6), "LIMIT_EXCEEDED", "texts", "6", "1 to 5"),
        (GetInductionScores(GPT2, layers=(9,)), "LAYER_OUT_OF_RANGE", "layers", "9", "0..2"),
    ],
)
def test_refusals(replica: Replica, question: Question, reason: str, field: str, value: str, allowed: str) -> None:
    limits = replace(LIMITS, attention_weights=1000, attention_elements=3000, induction_texts=5)
    with pytest.raises(ActstoreError) as refusal:
        replica.ask(question, limits)
    details = refusal.value.details
    assert (refusal.value.reason, details["field"], details["value"]) == (reason, field, value)
    assert details["allowed"] == allowed


def test_a_question_that_nobody_waits_for_stops(replica: Replica) -> None:
    question = GetInductionScores(GPT2)  # one pass for the scores, and one for the losses
    assert replica.passes_until_stopped(question, after=1) == 2
