"""Finding, describing and loading models, and refusing the ones that would run but be wrong."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoConfig

from actstore_storage.errors import BadRequest, NotThere
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.families import FAMILIES
from actstore_worker.models.loading import describe_model, load_model
from tests.made_models.small_models import (
    BERT,
    BOS,
    CONTEXT_LENGTH,
    D_MODEL,
    HEADS,
    LAYERS,
    SAVERS,
    VOCABULARY_SIZE,
    change_config,
    save_family,
    save_gpt2,
    save_llama,
    save_neox,
    save_sae,
    save_tokenizer,
)
from tests.worker.sae.refused import refusal

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", SAVERS)
def test_a_model_of_each_family(name: str, tmp_path: Path) -> None:
    SAVERS[name](tmp_path / name)
    model = load_model(ModelCatalog((tmp_path,)).find_model(name), dtype="bfloat16", device=CPU)
    assert (model.layer_count, model.d_model, model.head_count) == (LAYERS, D_MODEL, HEADS)
    assert (model.vocabulary_size, model.context_length, model.bos_id) == (VOCABULARY_SIZE, CONTEXT_LENGTH, 0)
    assert ("resid_mid" in model.kinds) == (name != "neox_parallel")
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.bfloat16}
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    expected = "eager" if name == "gemma2" else "sdpa"  # whose soft cap of attention scores needs it
    assert model.module.config._attn_implementation == model.attention_implementation == expected
    assert len(model.layers) == LAYERS


def test_eager_attention_where_only_it_honours_the_configuration(tmp_path: Path) -> None:
    save_gpt2(tmp_path / "gpt2")
    change_config(tmp_path / "gpt2", reorder_and_upcast_attn=True)
    model = load_model(ModelCatalog((tmp_path,)).find_model("gpt2"), device=CPU)
    assert model.module.config._attn_implementation == model.attention_implementation == "eager"


def test_hashes_follow_content(tmp_path: Path) -> None:
    save_llama(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    catalog = ModelCatalog((tmp_path,))
    first, second = (describe_model(catalog.find_model(name)) for name in "ab")
    assert (first.weights_sha256, first.tokenizer_sha256) == (second.weights_sha256, second.tokenizer_sha256)
    first.tokenizer(["a", "long text"], padding=False, truncation=True, max_length=2)
    assert describe_model(catalog.find_model("a")).tokenizer_sha256 == second.tokenizer_sha256
    weights = load_file(tmp_path / "b" / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, tmp_path / "b" / "model.safetensors", metadata={"format": "pt"})
    backend = json.loads((tmp_path / "b" / "tokenizer.json").read_text())
    backend["model"]["vocab"]["!"], backend["model"]["vocab"]['"'] = 2, 1
    (tmp_path / "b" / "tokenizer.json").write_text(json.dumps(backend))
    third = describe_model(catalog.find_model("b"))
    assert third.weights_sha256 != first.weights_sha256
    assert third.tokenizer_sha256 != first.tokenizer_sha256


def test_texts_of_tokens(tmp_path: Path) -> None:
    save_neox(tmp_path / "neox")
    described = describe_model(ModelCatalog((tmp_path,)).find_model("neox"))
    texts = described.texts.alone
    assert len(texts) == VOCABULARY_SIZE
    assert texts[0] == BOS
    assert [texts[index] for index in described.tokenizer.encode("a \n", add_special_tokens=False)] == ["a", " ", "\n"]
    parts = described.tokenizer.encode("é", add_special_tokens=False)
    assert [texts[index] for index in parts] == [r"\xc3", r"\xa9"]
    assert described.texts.in_order(parts) == ["", "é"]


def test_models_that_would_be_wrong_are_refused(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "llama")
    weights = folder / "model.safetensors"
    whole, tensors = weights.read_bytes(), load_file(weights)
    save_file({name: tensor for name, tensor in tensors.items() if "layers.1.mlp" not in name}, weights)
    assert "lack model.layers.1.mlp.down_proj.weight" in refusal(folder).message
    weights.write_bytes(whole[: len(whole) // 2])
    assert "model.safetensors, of" in refusal(folder).message
    weights.rename(folder / "pytorch_model.bin")
    assert "safetensors only" in refusal(folder).message


_DEEP = "[" * 100_000 + "]" * 100_000
_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    ("file", "text", "named"),
    [
        ("tokenizer.json", _DEEP, "tokenizer.json is nested more than"),
        ("tokenizer.json", "[1]", "tokenizer.json holds list"),
        ("tokenizer.json", "{}", "its tokenizer fails"),
        ("tokenizer.json", "", "tokenizer.json cannot be read"),
        ("tokenizer.json", _POINTER, "tokenizer.json is a Git LFS pointer"),
        ("tokenizer_config.json", _DEEP, "tokenizer_config.json is nested more than"),
        ("tokenizer_config.json", "[1]", "tokenizer_config.json holds list"),
        ("tokenizer_config.json", _POINTER, "tokenizer_config.json is a Git LFS pointer"),
    ],
    ids=range(8),
)
def test_files_that_are_no_tokenizer_are_refused(file: str, text: str, named: str, tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "llama")
    (folder / file).write_text(text)
    assert named in refusal(folder).message


def test_a_tokenizer_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "llama")
    os.truncate(folder / "tokenizer.json", (128 << 20) + 1)
    assert "tokenizer.json has 134217729 bytes; the limit is 134217728" in refusal(folder).message


@pytest.mark.parametrize(("family", "role"), [("llama", "bos"), ("bert", "cls"), ("bert", "sep")])
def test_a_token_without_an_embedding_is_put_around_no_text(family: str, role: str, tmp_path: Path) -> None:
    folder = save_family(family, tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": VOCABULARY_SIZE, "content": "<far>"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    said = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(said | {f"{role}_token": "<far>"}))
    error = refusal(folder)
    assert f"none for token id {VOCABULARY_SIZE}, which its tokenizer adds to each text" in error.message
    assert error.details["allowed"] == f"ids from 0 to {VOCABULARY_SIZE - 1}"


@pytest.mark.parametrize("model_type", ["mamba", "jamba", "recurrent_gemma", "mixtral", "qwen2_moe", "t5"])
def test_families_that_are_not_here_are_refused_by_name(model_type: str, tmp_path: Path) -> None:
    """Those whose state is more than keys and values, and those whose experts may depend on what shares a batch, are
    among them on purpose.
    """
    AutoConfig.for_model(model_type).save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    error = refusal(tmp_path / "model")
    assert (error.details["value"], error.details["allowed"]) == (model_type, ", ".join(FAMILIES))
    assert error.message.startswith(f"models of type '{model_type}' are not supported")


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "llama")
    change_config(folder, quantization_config={"quant_method": "awq"})
    refusal(folder)
    (folder / "config.json").write_text("{")
    refusal(folder)


@pytest.mark.parametrize("name", ["vocab", "merges"])
def test_a_tokenizer_is_made_of_its_own_files(name: str, tmp_path: Path) -> None:
    """Transformers would open these paths: the lines of any file became token texts."""
    (tmp_path / "secret.txt").write_text("root:x:0:0\n[UNK]\nhunter2\n")
    folder = BERT["bert"](tmp_path / "bert")
    (folder / "tokenizer.json").unlink()
    told = {"tokenizer_class": "BertTokenizer", name: str(tmp_path / "secret.txt")}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    assert f"tokenizer_config.json has {name}" in refusal(folder).message


def test_the_catalog_knows_models_revisions_and_saes(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    save_neox(first / "neox")
    save_neox(first / "owner" / "other")
    shutil.copytree(first / "neox", second / "neox")
    revision = first / "neox" / "revisions" / "step1"
    revision.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(first / "neox" / name, revision)
    save_sae(second / "sae", "standard")
    catalog = ModelCatalog((first, second))
    assert [(one.name, one.revision) for one in catalog.models()] == [
        ("neox", ""),
        ("neox", "step1"),
        ("owner/other", ""),
    ]
    assert catalog.saes() == ["sae"]
    assert catalog.find_model("neox").folder == first / "neox"
    source = catalog.find_model("neox", "step1")
    assert (source.folder, source.tokenizer_folder) == (revision, first / "neox")
    assert describe_model(source).bos_id == 0
    assert catalog.find_model("owner/other").name == "owner/other"
    assert catalog.find_sae("sae") == second / "sae"


def test_what_the_catalog_does_not_have(tmp_path: Path) -> None:
    save_neox(tmp_path / "models" / "neox")
    save_sae(tmp_path / "models" / "sae", "standard")
    (tmp_path / "models" / "link").symlink_to(save_neox(tmp_path / "elsewhere"))
    catalog = ModelCatalog((tmp_path / "models",))
    with pytest.raises(NotThere) as missing:
        catalog.find_model("gpt5")
    assert (missing.value.reason, missing.value.details["allowed"]) == ("MODEL_NOT_FOUND", "neox")
    with pytest.raises(NotThere) as missing:
        catalog.find_model("neox", "step1")
    assert missing.value.details["field"] == "model.revision"
    with pytest.raises(NotThere) as missing:
        catalog.find_sae("neox")
    assert (missing.value.reason, missing.value.details["allowed"]) == ("SAE_NOT_FOUND", "sae")
    for name in ("link", "sae"):
        with pytest.raises(NotThere):
            catalog.find_model(name)


@pytest.mark.parametrize("name", ["..", "../elsewhere", "/etc", "a/../../b", "a/b/c", "", ".hidden", "a\\b"])
def test_names_that_leave_their_folder_are_no_names(name: str, tmp_path: Path) -> None:
    catalog = ModelCatalog((tmp_path,), allow_hub=True)
    finders = [catalog.find_model, lambda text: catalog.find_model("model", text or "..")]
    for find in finders if name == "a/b/c" else [*finders, catalog.find_sae]:  # an SAE may lie deeper than a model
        with pytest.raises(BadRequest) as refused:
            find(name)
        assert refused.value.reason == "NAME_INVALID"


def test_a_tokenizer_is_left_as_threads_share_it(tmp_path: Path) -> None:
    """One that was saved cutting and padding would have to be set right in the middle of another thread's call."""
    source = ModelCatalog((save_neox(tmp_path / "neox").parent,)).find_model("neox")
    saved = Tokenizer.from_file(str(tmp_path / "neox" / "tokenizer.json"))
    saved.enable_truncation(4)
    saved.enable_padding(length=9)
    saved.save(str(tmp_path / "neox" / "tokenizer.json"))
    backend = describe_model(source).tokenizer.backend_tokenizer
    assert (backend.truncation, backend.padding) == (None, None)


def test_a_hub_that_has_nothing_is_a_model_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(NotThere) as missing:
        ModelCatalog((tmp_path,), allow_hub=True).find_model("owner/model", "main")
    assert (missing.value.reason, missing.value.details["value"]) == ("MODEL_NOT_FOUND", "owner/model@main")


def test_a_tokenizer_of_vocabulary_and_merges_is_one(tmp_path: Path) -> None:
    """As OPT's and GPT-2's first checkpoints have it, without a tokenizer.json."""
    folder = save_gpt2(tmp_path / "gpt2")
    whole = describe_model(ModelCatalog((tmp_path,)).find_model("gpt2"))
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(vocabulary | {"<|endoftext|>": 0}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    parts = describe_model(ModelCatalog((tmp_path,)).find_model("gpt2"))
    assert parts.tokenizer.encode("a b") == whole.tokenizer.encode("a b")
    assert parts.bos_id == 0
