"""Which ids a text has is what tokenizer.json says, whatever class of transformers' the settings name; the reference is
the library that reads that file alone.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import BadRequest
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import describe_model
from actstore_worker.models.model import ModelDescription
from actstore_worker.models.prompts import tokenised
from tests.live_workers import live_lab
from tests.made_models.small_models import BERT, save_gpt2, save_llama, save_metaspace

TEXTS = [
    "the quick brown fox",
    " fox",
    "the  fox\n",
    "In 2024, 650841823 don’t",
    "<s>the fox",
    "the</s> fox",
    "e\u0301",
]


def digits() -> Tokenizer:
    """As OLMo 2's and SmolLM's: numbers are cut by three digits, which no rule of GPT-2's does."""
    found = Tokenizer(models.BPE())
    found.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+|\s+| ?[^\s\p{L}\p{N}]+"), "isolated")
    found.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    found.decoder = decoders.ByteLevel()
    learnt = ["2023 2024 650841823 the quick brown fox", "don’t 'stop' 41"] * 50
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator(learnt, trainer)
    return found


def change(path: Path, **said: object) -> None:
    told = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(told | said))


def described(folder: Path) -> ModelDescription:
    return describe_model(ModelCatalog((folder.parent,)).find_model(folder.name))


def refusal(folder: Path) -> str:
    with pytest.raises(BadRequest) as refused:
        described(folder)
    assert refused.value.reason == "MODEL_UNSUPPORTED"
    return refused.value.message


def expected(folder: Path, texts: list[str]) -> list[list[int]]:
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [plain.encode(text, add_special_tokens=False).ids for text in texts]


@pytest.mark.parametrize(
    "name", ["GPT2Tokenizer", "Qwen2Tokenizer", "GPTNeoXTokenizer", "LlamaTokenizerFast", "GemmaTokenizer", "Unheard"]
)
def test_numbers_are_cut_as_the_file_says(name: str, tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "llama")
    digits().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    assert tokenised(described(folder), TEXTS) == expected(folder, TEXTS)


def test_a_role_that_only_the_class_knows_is_kept(tmp_path: Path) -> None:
    """GPT-2's own settings say nothing of its BOS."""
    folder = save_gpt2(tmp_path / "gpt2")
    digits().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
    found = described(folder)
    assert (found.bos_id, found.special_ids) == (0, {0})
    assert tokenised(found, TEXTS) == expected(folder, TEXTS)


@pytest.mark.parametrize("name", ["LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer"])
def test_a_stored_space_is_there_as_the_file_says(name: str, tmp_path: Path) -> None:
    """Transformers' Llama puts no space before a text that begins with one, and none behind a special token."""
    folder = save_metaspace(tmp_path / "models" / "metaspace")
    change(folder / "tokenizer_config.json", tokenizer_class=name)
    (tmp_path / "store").mkdir()
    with live_lab(open_bucket(str(tmp_path / "store")), tmp_path / "models") as lab:
        for text, ids in zip(TEXTS, expected(folder, TEXTS), strict=True):
            with_bos = ids if ids[0] == 1 else [1, *ids]
            assert lab.tokens("metaspace", text).to_arrow()["token"].to_pylist() == with_bos


def test_a_tokenizer_that_draws_is_refused(tmp_path: Path) -> None:
    folder = save_metaspace(tmp_path / "metaspace")
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    change(folder / "tokenizer.json", model=model | {"dropout": 0.1})
    assert "tokenizer.json has dropout 0.1" in refusal(folder)
    change(folder / "tokenizer.json", model=model | {"dropout": 0.0})
    assert tokenised(described(folder), TEXTS) == expected(folder, TEXTS)


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ("bytes", {"add_prefix_space": True}),
        ("metaspace", {"add_prefix_space": False}),
        ("bert", {"do_lower_case": False}),
        ("bert", {"strip_accents": True}),
    ],
    ids=str,
)
def test_settings_that_contradict_the_file_are_refused(saved: str, said: Mapping[str, Any], tmp_path: Path) -> None:
    folder = {"bytes": save_gpt2, "metaspace": save_metaspace, "bert": BERT["bert"]}[saved](tmp_path / saved)
    if saved == "bert":
        lowercase = json.loads(normalizers.BertNormalizer(lowercase=True).__getstate__())
        change(folder / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": [lowercase]})
    (name, value) = next(iter(said.items()))
    change(folder / "tokenizer_config.json", **{name: None})
    described(folder)
    change(folder / "tokenizer_config.json", **said)
    assert f"says {name} {value!r}, but tokenizer.json behaves as with" in refusal(folder)


def test_special_tokens_that_are_split_make_another_tokenizer(tmp_path: Path) -> None:
    folder = save_metaspace(tmp_path / "metaspace")
    whole = described(folder)
    change(folder / "tokenizer_config.json", split_special_tokens=True)
    split = described(folder)
    assert tokenised(whole, ["</s>"]) != tokenised(split, ["</s>"])
    assert whole.tokenizer_sha256 != split.tokenizer_sha256


def test_added_tokens_have_the_ids_that_the_settings_say(tmp_path: Path) -> None:
    """Transformers gives one whose id is taken, or past a gap, the next id, for which a padded embedding has a row."""
    folder = save_metaspace(tmp_path / "metaspace")
    token = {"content": "<x>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    for said in ("5", "700"):
        change(folder / "tokenizer_config.json", added_tokens_decoder={said: token | {"special": True}})
        assert f"says that '<x>' is token {said}, but it is token 347" in refusal(folder)
    change(folder / "tokenizer_config.json", added_tokens_decoder={"347": token | {"special": True}})
    assert tokenised(described(folder), ["<x>"])[0][-1] == 347
