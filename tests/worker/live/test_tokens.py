"""Token ids in place of a text: every question and sweep answers the same of either; and a text's BOS is there once."""

import json
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from actstore_api.records.model import (
    AblateSites,
    CompareTokens,
    GetAttention,
    GetTextLens,
    GetWeightNorms,
    SteerText,
    TokenizeText,
)
from actstore_api.records.patching import PatchSpan, PromptPair, RunSweep
from actstore_api.records.sae import AblateDirection, AblateText, EncodeText
from actstore_api.records.terms import ModelReference
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import ActstoreError, BadRequest, Conflict
from actstore_storage.runs.opening import create_run
from actstore_worker.capture.plan import PlanSettings, plan_capture
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.documents import Document
from actstore_worker.datasets.places import DatasetPlaces
from actstore_worker.datasets.sequences import SequenceShape, tokenise
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.live.questions import Question
from actstore_worker.models.loading import describe_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.prompts import token_of
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.sweep import WholeSweep, run_sweep
from tests.capture_requests import capture_request
from tests.made_models.small_models import BOS, CONTEXT_LENGTH, VOCABULARY_SIZE, save_metaspace, save_sae
from tests.worker.live.asking import GPT2, Replica

TEXT, OTHER, VECTOR = "the c’t", "the d’g", (1.0,) + (0.0,) * 15


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Replica:
    found = Replica(tmp_path_factory.mktemp("live"), LiveLimits())
    save_sae(found.models / "sae", "standard", d_sae=64)
    save_metaspace(found.models / "metaspace")
    return found


# By name: a question about a text, or two of them.
QUESTIONS: dict[str, Callable[[Any, Any], Question]] = {
    "tokenise": lambda text, _: TokenizeText(GPT2, text),
    "encode": lambda text, _: EncodeText(GPT2, "sae", text),
    "ablate text": lambda text, _: AblateText(GPT2, "sae", 3, text, position=4),
    "ablate direction": lambda text, _: AblateDirection(GPT2, "sae", 3, text),
    "attention": lambda text, _: GetAttention(GPT2, text, patterns=True),
    "lens": lambda text, _: GetTextLens(GPT2, text),
    "steer": lambda text, _: SteerText(GPT2, text, VECTOR, site="resid_post.1", strength=2.0, max_new_tokens=4),
    "ablate sites": lambda text, other: AblateSites(GPT2, (text, other)),
    "compare": lambda text, other: CompareTokens(GPT2, text, (other,), draws=4),
    "weights": lambda text, _: GetWeightNorms(GPT2, layers=(0,), samples=8, text=text),
}


def same(one: Any, other: Any) -> bool:
    return all(
        mine.equals(theirs) if isinstance(mine, pa.Table) else mine == theirs
        for mine, theirs in ((getattr(one, item.name), getattr(other, item.name)) for item in fields(one))
    )


@pytest.mark.parametrize("asked", QUESTIONS)
def test_a_question_answers_the_same_of_a_text_and_of_its_ids(asked: str, replica: Replica) -> None:
    """BOS is one of the ids; without it the answer is another, and with `prepend_bos` it is put there."""
    build, texts = QUESTIONS[asked], (TEXT, OTHER)
    expected = replica.ask(build(*texts))
    whole = [tuple(replica.ids("gpt2", text)) for text in texts]
    assert same(replica.ask(build(*whole)), expected)
    bare = build(*(ids[1:] for ids in whole))
    assert same(replica.ask(replace(bare, prepend_bos=True)), expected)
    assert same(replica.ask(replace(build(*whole), prepend_bos=True)), expected)
    assert same(replica.ask(bare), replica.ask(replace(build(*texts), prepend_bos=False)))


@pytest.mark.parametrize("asked", QUESTIONS)
def test_a_text_that_has_its_bos_gets_no_second_one(asked: str, replica: Replica) -> None:
    build = QUESTIONS[asked]
    assert same(replica.ask(build(BOS + TEXT, BOS + OTHER)), replica.ask(build(TEXT, OTHER)))


def test_two_that_are_written_are_two(replica: Replica) -> None:
    for ids, prepend in (((0, 0, 5), None), ((0, 0, 5), True), ((0, 5), False), ((5,), None)):
        found = replica.ask(TokenizeText(GPT2, ids, prepend_bos=prepend)).tokens
        assert found["token"].to_pylist() == list(ids)
        assert found["special"].to_pylist() == [token == 0 for token in ids]


def test_an_encoder_keeps_the_ends_that_a_text_has(replica: Replica) -> None:
    """CLS and SEP are one token here."""
    for text in (TEXT, BOS + TEXT, TEXT + BOS, BOS + TEXT + BOS):
        found = replica.ask(TokenizeText(ModelReference("bert"), text)).tokens
        assert found["token"].to_pylist() == replica.ids("bert", TEXT)


@pytest.mark.parametrize("asked", QUESTIONS)
def test_ids_are_those_of_the_vocabulary(asked: str, replica: Replica) -> None:
    for ids, value in (((0, VOCABULARY_SIZE), str(VOCABULARY_SIZE)), ((-1, 0), "-1")):
        with pytest.raises(ActstoreError) as refused:
            replica.ask(QUESTIONS[asked](ids, ids))
        details = refused.value.details
        assert (refused.value.reason, details["value"], details["allowed"]) == (
            "ARGUMENT_INVALID", value, f"0 to {VOCABULARY_SIZE - 1}"
        )  # fmt: skip
        assert details["field"] in ("text", "prompt", "texts", "clean")


def test_ids_are_as_long_as_the_context_at_most(replica: Replica) -> None:
    with pytest.raises(ActstoreError) as refused:
        replica.ask(EncodeText(GPT2, "sae", (0,) * (CONTEXT_LENGTH + 1)))
    assert (refused.value.reason, refused.value.details["field"]) == ("LIMIT_EXCEEDED", "text")
    assert len(replica.ask(TokenizeText(GPT2, (0,) * (CONTEXT_LENGTH + 1))).tokens) == CONTEXT_LENGTH + 1


def test_tokens_before_the_first_are_read_and_not_taken_away(replica: Replica) -> None:
    question = AblateText(GPT2, "sae", 3, TEXT, position=5, pairs=True)
    whole, part = replica.ask(question), replica.ask(replace(question, first_ablated=3))
    kept = whole.effects.filter([first >= 3 for first in whole.effects["first"].to_pylist()])
    assert [row["first"] for row in part.effects.to_pylist() if row["second"] is None] == [3, 4, 5]
    assert part.effects.select(["first", "second", "first_text"]).equals(kept.select(["first", "second", "first_text"]))
    np.testing.assert_allclose(part.effects["activation"], kept["activation"], rtol=1e-5, atol=1e-6)
    assert (part.activation, part.position) == (whole.activation, 5)
    with pytest.raises(BadRequest) as refused:
        replica.ask(replace(question, first_ablated=6))
    assert refused.value.details["field"] == "first_ablated"


PAIR = PromptPair(TEXT, OTHER, "a", "b")


def sweep(model: LanguageModel, pair: PromptPair, **options: Any) -> WholeSweep:
    *_, result = run_sweep(model, RunSweep(GPT2, (pair,), sites=("resid_pre",), **options), PatchingLimits())
    assert isinstance(result, WholeSweep)
    return result


def test_a_sweep_answers_the_same_of_prompts_and_of_their_ids(replica: Replica) -> None:
    model = replica.model("gpt2")
    a, b = (replica.ids("gpt2", letter)[1] for letter in "ab")
    of_ids = PromptPair(tuple(replica.ids("gpt2", TEXT)), tuple(replica.ids("gpt2", OTHER)), a, b)
    of_texts = sweep(model, PAIR)
    assert same_cells(sweep(model, of_ids), of_texts)
    assert same_cells(sweep(model, PromptPair(BOS + TEXT, BOS + OTHER, "a", b)), of_texts)
    # A span by its text: the c and the bytes of the quotation mark, of which only the last has a character.
    spans = (PatchSpan("end", "c’", "d’"),)
    assert same_cells(sweep(model, of_ids, spans=spans), sweep(model, PAIR, spans=spans))
    assert same_cells(
        sweep(model, PromptPair(BOS + TEXT, BOS + OTHER, a, b), spans=spans), sweep(model, PAIR, spans=spans)
    )


def same_cells(one: WholeSweep, other: WholeSweep) -> bool:
    return bool(one.cells.equals(other.cells)) and one.clean_logit_difference == other.clean_logit_difference


def test_one_token_by_its_text(replica: Replica) -> None:
    """Of a tokenizer that puts a space in front of a text."""
    model = replica.model("metaspace")
    vocabulary = model.tokenizer.get_vocab()
    assert token_of(model, " fox", "answer") == vocabulary["▁fox"]
    assert token_of(model, "fox", "answer") == vocabulary["▁fox"]  # no token is `fox`, and the tokenizer makes this
    assert token_of(model, "\n", "answer") == vocabulary["<0x0A>"]
    assert token_of(model, r"\xe2", "answer") == vocabulary["<0xE2>"]
    assert token_of(model, "<s>", "answer") == 1
    assert token_of(model, 7, "answer") == 7
    for text, told in (("t", "is ambiguous"), ("the fox", "2 tokens"), ("", "0 tokens")):
        with pytest.raises(BadRequest, match=told) as refused:
            token_of(model, text, "answer")
        assert refused.value.reason == "ANSWER_NOT_ONE_TOKEN"
    found = replica.ask(TokenizeText(ModelReference("metaspace"), " fox", one_token=True)).tokens
    assert found.to_pylist() == [{"position": 0, "token": vocabulary["▁fox"], "text": " fox", "special": False}]


def test_steered_text_keeps_its_first_space(replica: Replica) -> None:
    answer = replica.ask(
        SteerText(
            ModelReference("metaspace"), "the quick brown", VECTOR, site="resid_post.1", strength=0.0, max_new_tokens=8
        )
    )
    rows = [row["text"] for row in answer.tokens.to_pylist() if row["generated"] == "unsteered"]
    assert answer.unsteered_text == "".join(text for text in rows if text not in ("</s>", "<s>", "<unk>"))


def with_marker(folder: Path, source: Path) -> Path:
    """The same model, whose tokenizer has markers of a chat template: one in tokenizer.json, one beside it, and a token
    that is added and not special.
    """
    shutil.copytree(source, folder)
    told = json.loads((folder / "tokenizer.json").read_text())
    how = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokens = [token for token, _ in sorted(told["model"]["vocab"].items(), key=lambda item: item[1])]
    for place, (content, special) in {1: ("<|start|>", True), 3: ("<plain>", False)}.items():
        del told["model"]["vocab"][tokens[place]]
        told["model"]["vocab"][content] = place
        told["added_tokens"].append({"id": place, "content": content, "special": special, **how})
    (folder / "tokenizer.json").write_text(json.dumps(told))
    return folder


def test_markers_of_a_chat_template_are_special(replica: Replica, tmp_path: Path) -> None:
    """As tokenizer.json marks them, beside the tokens with a role: flagged, not steered, and no ordinary tokens."""
    with_marker(replica.models / "chat", replica.models / "gpt2")
    model = replica.model("chat")
    assert (model.special_ids, model.marks_special) == (frozenset({0, 1}), True)
    assert not describe_model(replica.catalog.find_model("gpt2")).marks_special
    found = replica.ask(TokenizeText(ModelReference("chat"), "<|start|>ab<plain>")).tokens
    assert found["special"].to_pylist() == [True, True, False, False, False]
    assert found["text"].to_pylist() == [BOS, "<|start|>", "a", "b", "<plain>"]
    sequences = tokenise(
        model, [Document(0, "<|start|>ab<plain>")], SequenceShape(8, prepend_bos=True), tokens_max=10**6
    ).sequences
    assert sequences.rows(model.bos_id, model.special_ids).flags.tolist() == [1, 2, 0, 0, 0]
    steered = replica.ask(
        SteerText(ModelReference("chat"), "a<|start|>b", VECTOR, site="resid_post.1", strength=1.0, max_new_tokens=2)
    )
    assert steered.prompt["steered"].to_pylist() == [False, True, False, True]


def test_a_run_says_by_which_rule_its_tokens_are_special(replica: Replica, tmp_path: Path) -> None:
    """One of before goes on under its name with its own rule or not at all; where the rules agree nothing is said."""
    with_marker(tmp_path / "models" / "chat", replica.models / "gpt2")
    (tmp_path / "texts.jsonl").write_text('{"text": "<|start|>ab"}\n')
    settings = PlanSettings(DatasetPlaces((tmp_path,)))
    catalog = ModelCatalog((tmp_path / "models", replica.models))
    chat, plain = (
        plan_capture(capture_request(name, "texts.jsonl", name), catalog, settings).record for name in ("chat", "gpt2")
    )
    assert chat.specification.marked_special
    assert b"marked_special" not in plain.to_json()
    asked = replace(chat.specification, marked_special=False)
    before = replace(chat, specification=asked, specification_sha256=asked.sha256)
    assert b"marked_special" not in before.to_json()
    bucket = open_bucket(str(tmp_path))
    create_run(bucket, before)
    with pytest.raises(Conflict):
        create_run(bucket, chat)
