"""Sequences against a slow, obvious cutter."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from actstore_storage.errors import ActstoreError, BadRequest
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.documents import Document
from actstore_worker.datasets.sequences import SequenceShape, TokenisedDataset, TokenSequences
from actstore_worker.datasets.sequences import tokenise as tokenise_documents
from actstore_worker.models.loading import describe_model
from actstore_worker.models.model import ModelDescription
from actstore_worker.models.prompts import text_ids
from actstore_worker.models.tokens.tokenizer_process import TokenizerProcess
from tests.made_models.small_models import BOS, BUNDLED_MODELS, save_family, save_gpt2, save_neox
from tests.worker_process import command_line, descendants


def tokenise(described: ModelDescription, texts: list[str], shape: SequenceShape, **limits: int) -> TokenisedDataset:
    documents = [Document(number, text) for number, text in enumerate(texts)]
    return tokenise_documents(described, documents, shape, **{"tokens_max": 10**6} | limits)


DOCUMENTS = ["abcdefghij", "", "k", "lmnopqrs" * 3, "é", ""]


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> ModelDescription:
    folder = tmp_path_factory.mktemp("models")
    save_neox(folder / "neox")
    return describe_model(ModelCatalog((folder,)).find_model("neox"))


def slowly(described: ModelDescription, shape: SequenceShape) -> list[tuple[int, list[int]]]:
    found, total = [], 0
    for document, text in enumerate(DOCUMENTS):
        ids = described.tokenizer.encode(text, add_special_tokens=False)
        bos = [described.bos_id] if shape.prepend_bos else []
        while ids:
            body = shape.context_length - len(bos)
            sequence, ids = bos + ids[:body], ids[body:]
            total += len(sequence)
            if shape.max_tokens is not None and total > shape.max_tokens:
                return found
            found.append((document, sequence))
    return found


def as_list(sequences: TokenSequences) -> list[tuple[int, list[int]]]:
    return [(int(one.documents[0]), one.tokens.tolist()) for one in sequences.batches(1)]


@pytest.mark.parametrize("prepend_bos", [True, False])
@pytest.mark.parametrize("context_length", [2, 5, 8, 32])
@pytest.mark.parametrize("max_tokens", [None, 11, 12, 13, 30, 1000])
def test_cut_as_one_would_by_hand(
    described: ModelDescription, context_length: int, prepend_bos: bool, max_tokens: int | None
) -> None:
    shape = SequenceShape(context_length, prepend_bos, max_tokens)
    assert as_list(tokenise(described, DOCUMENTS, shape).sequences) == slowly(described, shape)


def test_rows_know_where_they_are(described: ModelDescription) -> None:
    text = f"ab{BOS}c"
    sequences = tokenise(described, ["xyz", "", text], SequenceShape(4, prepend_bos=True)).sequences
    rows = sequences.slice(1, 3).rows(described.bos_id, described.special_ids)
    assert rows.sequence.tolist() == [1, 1, 1, 1, 2, 2]
    assert rows.position.tolist() == [0, 1, 2, 3, 0, 1]
    assert rows.document.tolist() == [2] * 6
    assert rows.flags.tolist() == [1, 0, 0, 2, 1, 0]  # the BOS that the text spells out is special, and no sink
    assert rows.token[3] == described.bos_id


def test_without_prepending_a_bos_of_the_text_counts_where_it_comes_first(described: ModelDescription) -> None:
    sequences = tokenise(described, [f"{BOS}a"], SequenceShape(8, prepend_bos=False)).sequences
    assert sequences.rows(described.bos_id, described.special_ids).flags.tolist() == [1, 0]


def test_a_document_that_has_its_bos_gets_no_second_one(described: ModelDescription) -> None:
    """As text, as a chat template writes it, or as ids; and each of its sequences has one."""
    plain, shape = "abcdefghij", SequenceShape(6, prepend_bos=True)
    ids = np.array(described.tokenizer.encode(plain, add_special_tokens=False), np.int32)
    expected = tokenise(described, [plain, "k"], shape)
    for own in (BOS + plain, np.array([described.bos_id, *ids], np.int32)):
        found = tokenise_documents(described, [Document(0, own), Document(1, "k")], shape, tokens_max=100)
        assert as_list(found.sequences) == as_list(expected.sequences)
        assert (found.sha256, found.documents, found.documents_with_bos) == (expected.sha256, 2, 1)
    assert expected.documents_with_bos == 0
    flags = tokenise(described, [BOS + plain], shape).sequences.rows(described.bos_id, described.special_ids).flags
    assert flags.tolist() == [1, 0, 0, 0, 0, 0] * 2
    # Two that are written are two, and without prepending a document is as it is.
    assert as_list(tokenise(described, [BOS + BOS + "a"], shape).sequences)[0][1][:2] == [0, 0]
    bare = tokenise(described, [BOS + "a"], SequenceShape(6, prepend_bos=False))
    assert (as_list(bare.sequences)[0][1][0], len(bare.sequences.tokens), bare.documents_with_bos) == (0, 2, 0)


def test_a_document_of_a_bos_alone_has_no_token(described: ModelDescription) -> None:
    found = tokenise(described, [BOS, "a"], SequenceShape(6, prepend_bos=True))
    assert found.sequences.documents.tolist() == [1]


def test_an_encoders_document_keeps_the_ends_that_it_has(tmp_path: Path) -> None:
    save_family("bert", tmp_path / "bert")
    described = describe_model(ModelCatalog((tmp_path,)).find_model("bert"))
    shape = SequenceShape(8, prepend_bos=True)
    expected = as_list(tokenise(described, ["abcdefghij"], shape).sequences)
    for text in (f"{BOS}abcdefghij", f"abcdefghij{BOS}", f"{BOS}abcdefghij{BOS}"):  # CLS and SEP are one token here
        assert as_list(tokenise(described, [text], shape).sequences) == expected


def test_the_hash_is_of_content(described: ModelDescription) -> None:
    def sha256(texts: list[str], **shape: object) -> str:
        return tokenise(described, texts, SequenceShape(**{"context_length": 8, "prepend_bos": True} | shape)).sha256

    assert sha256(["ab", "cd"]) == sha256(["ab", "cd"], context_length=3, prepend_bos=False)
    assert len({sha256(texts) for texts in (["ab", "cd"], ["abcd"], ["cd", "ab"], ["ab", "", "cd"])}) == 4
    assert sha256(["abcdefg" * 9], max_tokens=8) == sha256(["abcdefg"])


def test_refusals(described: ModelDescription, tmp_path: Path) -> None:
    with pytest.raises(BadRequest) as refused:
        tokenise(described, ["", ""], SequenceShape(8, prepend_bos=True))
    assert refused.value.reason == "DATASET_EMPTY"
    with pytest.raises(BadRequest) as refused:
        tokenise(described, ["", "abcdef"], SequenceShape(5, prepend_bos=True, max_tokens=4))
    assert refused.value.details == {"field": "dataset.max_tokens", "value": "4", "allowed": "at least 5"}
    with pytest.raises(ValueError, match="not within"):
        tokenise(described, ["abc"], SequenceShape(8, prepend_bos=True)).sequences.slice(0, 2)


def test_a_tokenizer_larger_than_its_model_is_refused_where_it_matters(tmp_path: Path) -> None:
    save_gpt2(tmp_path / "gpt2")
    described = describe_model(ModelCatalog((tmp_path,)).find_model("gpt2"))
    described.config.vocab_size = 100
    assert len(tokenise(described, ["!"], SequenceShape(8, prepend_bos=True)).sequences) == 1
    shape = SequenceShape(8, prepend_bos=True)
    with pytest.raises(BadRequest, match=r"100 embeddings.*gives for document 1"):
        tokenise(described, ["!", "é"], shape)
    with pytest.raises(BadRequest, match=r"100 embeddings.*returns for this text"):
        text_ids(described, "é")
    with pytest.raises(BadRequest, match="none for token id 100, which is in document 7"):
        tokenise_documents(described, [Document(7, np.array([1, 100, 2], np.int32))], shape, tokens_max=100)


def test_a_regular_expression_that_explodes_ends_soon_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_gpt2(tmp_path / "gpt2")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {
        "type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    described = describe_model(ModelCatalog((tmp_path,)).find_model("gpt2"))
    text = "a" * 40 + "b"
    asked: list[Callable[[], object]] = [
        lambda: text_ids(described, text),
        lambda: tokenise(described, ["b", text], SequenceShape(8, prepend_bos=True)),
        lambda: tokenise(described, ["b", text], SequenceShape(8, prepend_bos=True)),
    ]
    for ask in asked:
        with pytest.raises(BadRequest, match=r"its tokenizer fails: .*PanicException: .*retry-limit") as refused:
            ask()
        assert (refused.value.reason, refused.value.details["value"]) == ("MODEL_UNSUPPORTED", "gpt2")
        # The same where long texts are tokenized.
        monkeypatch.setattr("actstore_worker.datasets.sequences._GROUP_CHARACTERS", 1)


def test_a_long_dataset_is_tokenised_in_groups(described: ModelDescription, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = SequenceShape(8, prepend_bos=True)
    whole = tokenise(described, DOCUMENTS, shape).sequences
    monkeypatch.setattr("actstore_worker.datasets.sequences._GROUP_CHARACTERS", 1)
    parts = tokenise(described, DOCUMENTS, shape).sequences
    np.testing.assert_array_equal(whole.tokens, parts.tokens)
    np.testing.assert_array_equal(whole.documents, parts.documents)


@pytest.mark.parametrize("kind", ["neox", "gpt2", "bert", "bundled"])
def test_a_long_text_has_the_same_tokens_in_a_process_of_its_own(tmp_path: Path, kind: str) -> None:
    """Special tokens in a text, and what no vocabulary has, too. The next text finds the process that is there."""
    folders = {"neox": save_neox, "gpt2": save_gpt2, "bert": lambda folder: save_family("bert", folder)}
    if kind == "bundled":
        described = describe_model(ModelCatalog((BUNDLED_MODELS,)).find_model("pystdlib"))
    else:
        folders[kind](tmp_path / kind)
        described = describe_model(ModelCatalog((tmp_path,)).find_model(kind))
    special = "".join(described.tokenizer.all_special_tokens)
    texts = [f"{special}def f(a):\n\treturn '{special} é 𝄞 \0'\r\n  " * 50, "", "abc" * 1000]
    with TokenizerProcess(described.tokenizer, lambda: None) as apart:
        found = [apart.ids(text).tolist() for text in texts]
    assert found == [described.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_a_long_text_ends_with_its_caller(described: ModelDescription) -> None:
    """It would take a minute, and is left as soon as it has begun."""
    here = set(descendants(os.getpid()))

    def begun() -> set[int]:
        return {pid for pid in descendants(os.getpid()) if "tokenizer_process" in command_line(pid)} - here

    def check() -> None:
        if begun():
            raise ActstoreError("nobody waits", reason="CANCELLED")

    with pytest.raises(ActstoreError, match="nobody waits"):
        tokenise_documents(
            described, [Document(0, "ab cd " * 4_000_000)], SequenceShape(8, prepend_bos=True), 10**8, check=check
        )
    assert not begun()


def test_a_dataset_of_too_many_tokens_is_refused_unless_it_is_cut(described: ModelDescription) -> None:
    cut = SequenceShape(5, prepend_bos=True, max_tokens=10)
    assert len(tokenise(described, ["abcdefghi"] * 3, cut, tokens_max=12).sequences.tokens) == 10
    with pytest.raises(BadRequest) as refused:
        tokenise(described, ["abcdefghi"] * 3, SequenceShape(5, prepend_bos=True), tokens_max=12)
    assert refused.value.reason == "LIMIT_EXCEEDED"
    assert refused.value.details["allowed"] == "at most 12"
