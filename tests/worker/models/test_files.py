"""The files of a model's folder: what they hold and nothing uses, and what is wrong with them, is named."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import describe_model, load_model
from tests.made_models.small_models import BERT, SAVERS, change_config, save_family, save_llama
from tests.worker.sae.refused import refusal

CPU = torch.device("cpu")


def change_weights(folder: Path, *, without: str = "^$", **more: Tensor) -> None:
    """Takes out what matches a pattern, and puts tensors in."""
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not re.search(without, name)}
    save_file(kept | more, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("family", "options", "change", "named"),
    [
        # A file of biases that are off, of more layers than config.json has, of norms that the family has not.
        ("llama", {"attention_bias": True}, {"attention_bias": False}, "layers.0.self_attn.k_proj.bias"),
        ("llama", {"mlp_bias": True}, {"mlp_bias": False}, "layers.0.mlp.down_proj.bias"),
        ("llama", {}, {"num_hidden_layers": 1}, "layers.1.input_layernorm.weight"),
        ("gpt2", {}, {"n_layer": 1}, "h.1.attn.c_attn.bias"),
        ("gpt_neox", {}, {"num_hidden_layers": 2}, "layers.2.attention.dense.bias"),
        ("gpt_neox", {}, {"attention_bias": False}, "layers.0.attention.dense.bias"),
        ("bert", {}, {"num_hidden_layers": 2}, "encoder.layer.2.attention.output.LayerNorm.bias"),
        ("qwen2", {}, {"model_type": "llama"}, "layers.0.self_attn.k_proj.bias"),
        ("qwen3", {}, {"model_type": "llama"}, "layers.0.self_attn.k_norm.weight"),
        ("gemma2", {}, {"model_type": "gemma"}, "attn_logit_softcapping"),
        ("opt", {}, {"enable_bias": False}, "layers.0.fc1.bias"),
    ],
)
def test_weights_that_nothing_would_use_are_refused_by_name(
    family: str, options: dict[str, Any], change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    save_family(family, tmp_path / "model", **options)
    change_config(tmp_path / "model", **change)
    assert named in refusal(tmp_path / "model").message


@pytest.mark.parametrize(
    ("family", "left_over"),
    [
        ("llama", {"model.layers.0.self_attn.rotary_emb.inv_freq": 4, "score.weight": 2, "v_head.summary.weight": 3}),
        ("gpt2", {"transformer.h.0.attn.bias": 4, "h.0.attn.bias": 4, "h.1.attn.masked_bias": 1}),
        ("neox_parallel", {f"gpt_neox.layers.0.attention.{name}": 4 for name in ("bias", "masked_bias")}),
        ("neox_parallel", {"gpt_neox.layers.0.attention.rotary_emb.inv_freq": 4}),
        ("bert", {"cls.predictions.bias": 4, "cls.seq_relationship.weight": 4, "embeddings.position_ids": 4}),
        ("opt", {"model.decoder.version": 1}),
    ],
)
def test_what_stands_beside_the_layers_may_be_left_over(family: str, left_over: dict[str, int], tmp_path: Path) -> None:
    {**SAVERS, **BERT}[family](tmp_path / "model")
    change_weights(tmp_path / "model", **{name: torch.ones(size) for name, size in left_over.items()})
    load_model(ModelCatalog((tmp_path,)).find_model("model"), device=CPU)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("neox_parallel", "gpt_neox.layers.0.attention.bias_k"),  # which transformers' own pattern would hide
        ("gpt2", "transformer.h.0.attn.bias_k"),
        ("llama", "lm_head.bias"),
        ("llama", "model.layers.0.mlp.gate_up_proj.weight"),
        ("llama", "model.layers.0.self_attn.q_proj.lora_A.weight"),
        ("bert", "encoder.layer.0.crossattention.self.query.weight"),
        ("bert", "embeddings.more.weight"),
    ],
)
def test_what_would_change_numbers_may_not_be_left_over(family: str, name: str, tmp_path: Path) -> None:
    {**SAVERS, **BERT}[family](tmp_path / "model")
    change_weights(tmp_path / "model", **{name: torch.ones(4)})
    assert name in refusal(tmp_path / "model").message


@pytest.mark.parametrize(
    ("family", "name", "second"),
    [
        ("gpt2", "transformer.h.1.mlp.c_fc.weight", "h.1.mlp.c_fc.weight"),
        ("llama", "model.layers.1.mlp.up_proj.weight", "layers.1.mlp.up_proj.weight"),
        ("llama", "model.norm.weight", "model.model.norm.weight"),
        ("opt", "model.decoder.layers.0.fc1.bias", "decoder.layers.0.fc1.bias"),
        ("bert", "encoder.layer.0.output.LayerNorm.weight", "encoder.layer.0.output.LayerNorm.gamma"),
        ("bert", "encoder.layer.0.output.LayerNorm.bias", "bert.encoder.layer.0.output.LayerNorm.bias"),
    ],
)
def test_a_weight_under_two_names_is_refused_with_both(family: str, name: str, second: str, tmp_path: Path) -> None:
    """As where a checkpoint was saved over another, with and without its head: transformers takes one of them."""
    {**SAVERS, **BERT}[family](tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    change_weights(tmp_path / "model", **{second: torch.zeros_like(weights[name])})
    message = refusal(tmp_path / "model").message
    assert name in message
    assert second in message


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_weights_that_are_one_must_be_the_same_where_the_files_have_both(family: str, tmp_path: Path) -> None:
    """Transformers 4 takes the embedding for both, and transformers 5 each for itself."""
    save_family(family, tmp_path / "model", tie_word_embeddings=True)
    source = ModelCatalog((tmp_path,)).find_model("model")
    embeddings = load_model(source, device=CPU).module.get_input_embeddings().weight
    change_weights(tmp_path / "model", **{"lm_head.weight": embeddings.clone()})
    assert load_model(source, device=CPU).module.get_output_embeddings().weight.equal(embeddings)
    embeddings[-1, -1] += 1
    change_weights(tmp_path / "model", **{"lm_head.weight": embeddings})
    message = refusal(tmp_path / "model").message
    assert "lm_head.weight" in message
    assert "tie_word_embeddings" in message


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_bias_that_is_no_float_is_refused_as_a_matrix_is(dtype: torch.dtype, tmp_path: Path) -> None:
    """Its scale would be missing."""
    SAVERS["gpt2"](tmp_path / "model")
    change_weights(tmp_path / "model", **{"transformer.h.1.mlp.c_fc.bias": torch.ones(64).to(dtype)})
    assert "transformer.h.1.mlp.c_fc.bias in model.safetensors has dtype" in refusal(tmp_path / "model").message


@pytest.mark.parametrize(
    ("family", "rename"),
    [
        ("gpt2", (r"^transformer\.", "")),
        ("bert", (r"^", "bert.")),
        ("bert", (r"LayerNorm\.weight", "LayerNorm.gamma")),
        ("opt", (r"^model\.", "")),
    ],
)
def test_the_names_in_published_files_are_understood(family: str, rename: tuple[str, str], tmp_path: Path) -> None:
    {**SAVERS, **BERT}[family](tmp_path / "model")
    source = ModelCatalog((tmp_path,)).find_model("model")
    before = load_model(source, device=CPU).module.state_dict()
    weights = load_file(tmp_path / "model" / "model.safetensors")
    renamed = {re.sub(*rename, name): tensor for name, tensor in weights.items()}
    if rename[1].endswith("gamma"):
        renamed = {name.replace("LayerNorm.bias", "LayerNorm.beta"): tensor for name, tensor in renamed.items()}
    assert renamed.keys() != weights.keys()
    save_file(renamed, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    after = load_model(source, device=CPU).module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_model_without_its_pooler_is_whole(tmp_path: Path) -> None:
    BERT["bert"](tmp_path / "model")
    change_weights(tmp_path / "model", without="pooler")
    load_model(ModelCatalog((tmp_path,)).find_model("model"), device=CPU)


def shards(folder: Path) -> dict[str, str]:
    """Cuts the weights of a saved model in two, with an index, as large ones are published; the index's map."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    where = {name: files[number % 2] for number, name in enumerate(sorted(weights))}
    for file in files:
        save_file({name: weights[name] for name in where if where[name] == file}, folder / file)
    write_index(folder, {"metadata": {}, "weight_map": where})
    return where


def write_index(folder: Path, index: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_weights_in_several_files(tmp_path: Path) -> None:
    whole, parts = save_llama(tmp_path / "whole"), save_llama(tmp_path / "parts")
    shards(parts)
    first, second = (
        load_model(ModelCatalog((tmp_path,)).find_model(folder.name), device=CPU) for folder in (whole, parts)
    )
    for (name, one), (_, other) in zip(first.module.named_parameters(), second.module.named_parameters(), strict=True):
        assert torch.equal(one, other), name


FIRST, SECOND = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))


def _outside(folder: Path) -> Path:
    return Path(shutil.copy(folder / SECOND, folder.parents[1] / "outside.safetensors"))


def _link(folder: Path) -> None:
    outside = _outside(folder)
    (folder / SECOND).unlink()
    (folder / SECOND).symlink_to(outside)


DAMAGES: dict[str, tuple[Callable[[Path, dict[str, str]], object], str]] = {
    "missing": (lambda folder, _: (folder / SECOND).unlink(), f"{SECOND}, which model.safetensors.index.json names"),
    "truncated": (lambda folder, _: os.truncate(folder / SECOND, 4000), f"{SECOND}, of 4000 bytes, is not a complete"),
    "empty": (lambda folder, _: os.truncate(folder / SECOND, 0), f"{SECOND}, of 0 bytes, is not a complete"),
    "pointer": (
        lambda folder, _: (folder / SECOND).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        f"{SECOND} is a Git LFS pointer",
    ),
    "index pointer": (
        lambda folder, _: (folder / "model.safetensors.index.json").write_text(
            "version https://git-lfs.github.com/spec/v1\n"
        ),
        "index.json is a Git LFS pointer",
    ),
    "no map": (lambda folder, _: write_index(folder, {"metadata": {}}), "has no weight_map"),
    "map of numbers": (lambda folder, _: write_index(folder, {"weight_map": {"a": 1}}), "has no weight_map"),
    "list": (lambda folder, _: write_index(folder, [1]), "not a JSON object"),
    "no JSON": (lambda folder, _: (folder / "model.safetensors.index.json").write_text("{"), "cannot be read"),
    "deep": (
        lambda folder, _: (folder / "model.safetensors.index.json").write_text("[" * 100_000 + "]" * 100_000),
        "nested",
    ),
    "absolute": (lambda folder, _: write_index(folder, {"weight_map": {"a": str(_outside(folder))}}), "outside"),
    "climbing": (
        lambda folder, _: write_index(folder, {"weight_map": {"a": f"../../{_outside(folder).name}"}}),
        "outside",
    ),
    "link": (lambda folder, _: _link(folder), "outside"),
    "moved": (
        lambda folder, where: write_index(folder, {"weight_map": where | dict.fromkeys(list(where)[:2], FIRST)}),
        "download the index and the files again",
    ),
    "unlisted": (
        lambda folder, where: write_index(folder, {"weight_map": dict(list(where.items())[1:])}),
        "download the index and the files again",
    ),
    "twice": (
        lambda folder, where: save_file(
            load_file(folder / FIRST) | {"model.norm.weight": torch.ones(16), "lm_head.weight": torch.ones(257, 16)},
            folder / FIRST,
        ),
        "unclear which one to load",
    ),
    "integers": (
        lambda folder, _: save_file(
            {name: tensor.to(torch.int8) for name, tensor in load_file(folder / FIRST).items()}, folder / FIRST
        ),
        "quantized",
    ),
    "adapter": (lambda folder, _: (folder / "adapter_config.json").write_text("{}"), "merge it"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weight_files_are_named(damage: str, tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "models" / "model")
    do, named = DAMAGES[damage]
    do(folder, shards(folder))
    assert named in refusal(folder).message


def test_weights_in_one_file_and_in_several_are_refused(tmp_path: Path) -> None:
    """As where a model was saved anew into its folder: transformers reads the one file, vLLM what the index names."""
    folder = save_llama(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    write_index(folder, {"metadata": {}, "weight_map": dict.fromkeys(weights, "model.safetensors")})
    describe_model(ModelCatalog((tmp_path,)).find_model("model"))
    shards(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "model.safetensors and model-00001-of-00002.safetensors" in refusal(folder).message


def test_a_link_within_the_model_folders_is_followed(tmp_path: Path) -> None:
    """As the hub's cache has them, and as revisions share files."""
    folder = save_llama(tmp_path / "models" / "model")
    (folder / "model.safetensors").rename(tmp_path / "models" / "blob")
    (folder / "model.safetensors").symlink_to("../blob")
    load_model(ModelCatalog((tmp_path / "models",)).find_model("model"), device=CPU)


def test_a_snapshot_of_the_hub_is_links_to_its_repositorys_blobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, repository = save_llama(tmp_path / "saved"), tmp_path / "cache" / "models--owner--tiny"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    saved.rename(repository / "blobs")
    for blob in (repository / "blobs").iterdir():
        (snapshot / blob.name).symlink_to(f"../../blobs/{blob.name}")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(snapshot))
    (tmp_path / "models").mkdir()
    source = ModelCatalog((tmp_path / "models",), allow_hub=True).find_model("owner/tiny")
    assert load_model(source, device=CPU).name == "owner/tiny"
