"""config.json: what of it decides numbers, what may be there all the same, and what is refused by name."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.families import FAMILIES
from actstore_worker.models.files.identity import DECIDES, DECIDES_NOTHING
from actstore_worker.models.loading import describe_model
from tests.made_models.small_models import SAVERS, change_config, save_family, save_llama
from tests.worker.sae.refused import refusal

# config.json of published checkpoints, but for sizes, which the saved ones keep: every key that they have.
_SHARED = {
    "_name_or_path": "x", "architectures": ["X"], "torch_dtype": "bfloat16", "transformers_version": "4.40.0",
    "use_cache": True, "initializer_range": 0.02, "_attn_implementation_autoset": True, "_commit_hash": "0" * 40,
}  # fmt: skip
_OF_LLAMA = _SHARED | {"attention_bias": False, "attention_dropout": 0.0, "rope_scaling": None, "pad_token_id": 0}
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-2": ("llama", _OF_LLAMA | {"pretraining_tp": 1, "tie_word_embeddings": False, "max_sequence_length": 2048}),
    "llama-3.2": (
        "llama",
        _OF_LLAMA
        | {
            "mlp_bias": False, "rope_theta": 500000.0, "eos_token_id": [3, 4, 5], "unsloth_version": "2024.9",
            "rope_scaling": {
                "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                "original_max_position_embeddings": 16, "rope_type": "llama3",
            },
        },
    ),
    "deepseek-coder": ("llama", _OF_LLAMA | {"rope_scaling": {"factor": 4.0, "type": "linear"}, "rope_theta": 100000}),
    "smollm2": (
        "llama",
        _OF_LLAMA
        | {
            "is_llama_config": True, "rope_interleaved": False, "rope_theta": 100000,
            "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}},
        },
    ),
    "mistral-0.3": ("mistral", _SHARED | {"sliding_window": None, "rope_theta": 1e6, "attention_dropout": 0.0}),
    "qwen2.5": (
        "qwen2",
        _SHARED
        | {
            "max_window_layers": 2, "rope_theta": 1e6, "sliding_window": 131072, "use_sliding_window": False,
            "use_mrope": False, "attention_dropout": 0.0,
        },
    ),
    "qwen3": (
        "qwen3",
        _OF_LLAMA | {"max_window_layers": 2, "sliding_window": None, "use_sliding_window": False, "rope_theta": 1e6},
    ),
    "gemma-2b": ("gemma", _OF_LLAMA | {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"}),
    "gemma-2-2b": (
        "gemma2",
        _OF_LLAMA
        | {
            "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 5,
            "cache_implementation": "hybrid", "sliding_window_size": 5, "final_logit_softcapping": 30.0,
        },
    ),
    "pythia": (
        "neox_parallel",
        _SHARED
        | {
            "rotary_pct": 0.25, "rotary_emb_base": 10000, "hidden_act": "gelu", "classifier_dropout": 0.1,
            "hidden_dropout": 0.0, "attention_dropout_prob": 0, "hidden_dropout_prob": 0, "tie_word_embeddings": False,
        },
    ),
    "pythia, saved by transformers 4.46": (  # which has each of two options under two names
        "neox_parallel",
        _SHARED
        | {"rotary_pct": 0.5, "partial_rotary_factor": 0.5, "rotary_emb_base": 7, "rope_theta": 7},
    ),
    "llama, of whole heads": ("llama", _OF_LLAMA | {"partial_rotary_factor": 1.0}),
    "gpt2": (
        "gpt2",
        _SHARED
        | {
            "n_ctx": 32, "summary_type": "cls_index", "summary_activation": None, "summary_use_proj": True,
            "n_inner": None, "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
            "output_past": True, "_num_labels": 2, "pruned_heads": {}, "xla_device": None, "top_k": 50,
        },
    ),
    "opt": ("opt", _SHARED | {"activation_dropout": 0.0, "prefix": "</s>", "init_std": 0.02, "layerdrop": 0.0}),
    "galactica": ("opt", _SHARED | {"learned_embeddings": True, "scale_embeddings": False, "enable_bias": True}),
    "bert": (
        "bert",
        _SHARED
        | {
            "gradient_checkpointing": False, "position_embedding_type": "absolute", "directionality": "bidi",
            "pooler_fc_size": 768, "pooler_num_attention_heads": 12, "pooler_num_fc_layers": 3,
            "pooler_size_per_head": 128, "pooler_type": "first_token_transform", "id2label": {"0": "a"},
        },
    ),
}  # fmt: skip


def saved(folder: Path, name: str) -> Path:
    return save_family(name, folder) if name == "bert" else SAVERS[name](folder)


def without_rope(folder: Path) -> Path:
    """Without what transformers 5 alone writes."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("rope_parameters", None)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_of_a_family_is_known_to_decide_or_not(family: str) -> None:
    """A key that transformers adds is to be put into one of the two tables."""
    assert not DECIDES & DECIDES_NOTHING
    assert {field.name for field in fields(CONFIG_MAPPING[family])} <= DECIDES | DECIDES_NOTHING


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_published_checkpoints_say_is_read(name: str, tmp_path: Path) -> None:
    family, keys = PUBLISHED[name]
    folder = without_rope(saved(tmp_path / "model", family))
    change_config(folder, **keys)
    describe_model(ModelCatalog((tmp_path,)).find_model("model"))


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("llama", "residual_multiplier", 0.22),  # Granite
        ("llama", "embedding_multiplier", 12.0),
        ("llama", "attention_multiplier", 0.0078125),
        ("llama", "logits_scaling", 8.0),
        ("llama", "sliding_window", 8),  # Mistral
        ("llama", "use_qk_norm", True),
        ("llama", "query_pre_attn_scalar", 256),  # Gemma 2
        ("llama", "n_head", 2),
        ("qwen2", "is_causal", False),  # an encoder that was made of a decoder
        ("gpt2", "rope_theta", 10000.0),
        ("gpt2", "rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        ("gpt2", "alibi", True),
        ("opt", "scale_embeddings", True),
        ("neox_parallel", "head_dim", 8),
        ("llama", "per_layer_config", {"0": {"rms_norm_eps": 1.0}}),
        ("llama", "a_key_that_nobody_has_seen", 1),
    ],
)
def test_what_another_family_would_compute_by_is_refused_by_name(
    family: str, key: str, value: object, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "model", family)
    change_config(folder, **{key: value})
    message = refusal(folder).message
    assert key in message
    assert "remove it from config.json" in message


def test_what_a_rotary_embedding_does_not_know_is_refused_by_name(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "model")
    change_config(folder, rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1]})
    assert "rope_parameters.mrope_section" in refusal(folder).message


@pytest.mark.parametrize(
    ("scaling", "named"),
    [
        ({"factor": 4.0}, "rope_parameters.factor = 4.0 of rope_type default"),  # its type was forgotten
        ({"rope_type": "default", "factor": 1.0, "low_freq_factor": 1.0}, "rope_parameters.low_freq_factor"),
        ({"rope_type": "linear", "factor": 4.0, "attention_factor": 2.0}, "rope_parameters.attention_factor"),
        ({"rope_type": "dynamic", "factor": 4.0, "beta_fast": 2}, "rope_parameters.beta_fast"),
    ],
    ids=str,
)
def test_what_its_kind_of_rotary_embedding_does_not_read_is_refused_by_name(
    scaling: dict[str, Any], named: str, tmp_path: Path
) -> None:
    """Transformers keeps such a key and leaves the positions as they are."""
    folder = without_rope(save_llama(tmp_path / "model"))
    change_config(folder, rope_theta=100.0, rope_scaling=scaling)
    assert named in refusal(folder).message


# As writers of files for several versions of transformers have them: each reads other names.
_LINEAR = {"rope_type": "linear", "factor": 4.0}
TWICE: dict[str, tuple[str, dict[str, Any], tuple[str, str]]] = {
    "a base inside and beside": (
        "llama", {"rope_parameters": _LINEAR | {"rope_theta": 5.0}, "rope_theta": 7.0}, ("rope_theta = 5.0", "= 7.0"),
    ),
    "two tables": (
        "llama", {"rope_parameters": _LINEAR, "rope_scaling": {"type": "linear", "factor": 2.0}},
        ("rope_parameters.factor = 4.0", "rope_scaling.factor = 2.0"),
    ),
    "two types": (
        "llama", {"rope_scaling": {"type": "linear", "rope_type": "dynamic", "factor": 4.0}},
        ("rope_scaling.type = linear", "rope_scaling.rope_type = dynamic"),
    ),
    "a table that is not read": (
        "llama", {"rope_parameters": _LINEAR | {"rope_theta": 5.0}, "rope_scaling": _LINEAR},
        ("rope_parameters.rope_theta = 5.0", "reads as 10000.0"),
    ),
    "a share of a head": (
        "neox_parallel", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}, "rotary_pct": 1},
        ("rope_parameters.partial_rotary_factor = 0.5", "rotary_pct = 1"),
    ),
    "a base of GPT-NeoX": (
        "neox_parallel", {"rope_parameters": {"rope_type": "default", "rope_theta": 10.0}, "rotary_emb_base": 3},
        ("rope_parameters.rope_theta = 10.0", "rotary_emb_base = 3"),
    ),
    "heads of GPT-2": ("gpt2", {"n_head": 4, "num_attention_heads": 2}, ("n_head = 4", "num_attention_heads = 2")),
}  # fmt: skip


@pytest.mark.parametrize("case", TWICE)
def test_two_names_of_an_option_that_disagree_are_refused_with_both(case: str, tmp_path: Path) -> None:
    family, keys, named = TWICE[case]
    folder = without_rope(saved(tmp_path / "model", family))
    change_config(folder, **keys)
    message = refusal(folder).message
    assert all(name in message for name in named)


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        (
            "llama",
            {
                "rope_theta": 5, "rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 4.0},
                "rope_parameters": _LINEAR | {"rope_theta": 5.0},
            },
        ),
        ("neox_parallel", {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}, "rotary_emb_base": 7}),
        ("neox_parallel", {"rotary_emb_base": 7, "rope_theta": 7, "rotary_pct": 0.5, "partial_rotary_factor": 0.5}),
        ("gpt2", {"n_head": 4, "num_attention_heads": 4}),
        ("llama", {"rope_scaling": {"rope_type": "default", "factor": 1.0, "attention_factor": None}}),
    ],
)  # fmt: skip
def test_two_names_of_an_option_may_agree(family: str, keys: dict[str, Any], tmp_path: Path) -> None:
    folder = without_rope(saved(tmp_path / "model", family))
    change_config(folder, **keys)
    found = describe_model(ModelCatalog((tmp_path,)).find_model("model")).model_config
    theta = {"llama": keys.get("rope_theta", 10000), "neox_parallel": 7}.get(family)
    assert theta is None or found["rope_parameters"]["rope_theta"] == theta


# By family, an option that changes its numbers and fits its weights.
OPTIONS: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "mistral": {"sliding_window": 3},
    "qwen2": {"rms_norm_eps": 0.1},
    "qwen3": {"hidden_act": "relu"},
    "gemma": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    "gemma2": {"query_pre_attn_scalar": 7},
    "gpt2": {"scale_attn_by_inverse_layer_idx": True},
    "neox_parallel": {"use_parallel_residual": False},
    "opt": {"activation_function": "gelu"},
    "bert": {"layer_norm_eps": 0.1},
}


@pytest.mark.parametrize("family", OPTIONS)
def test_what_changes_numbers_changes_the_hash_and_nothing_else_does(family: str, tmp_path: Path) -> None:
    folder, source = saved(tmp_path / "model", family), ModelCatalog((tmp_path,)).find_model("model")
    first = describe_model(source)
    nothing = {"initializer_range": 0.5, "use_cache": False, "torch_dtype": "float16", "_name_or_path": "elsewhere"}
    change_config(folder, **nothing, transformers_version="1.0", architectures=["Other"], pad_token_id=5)
    again = describe_model(source)
    assert again.config_sha256 == first.config_sha256
    change_config(folder, **OPTIONS[family])
    other = describe_model(source)
    assert other.config_sha256 != first.config_sha256
    assert other.weights_sha256 == first.weights_sha256
    (option,) = OPTIONS[family]
    differing = {key for key in first.model_config if first.model_config[key] != other.model_config[key]}
    assert differing == {option}


def test_a_default_is_the_same_said_or_not(tmp_path: Path) -> None:
    """And a number is the same however it is written. What ends a generated text is no part of it."""
    folder, source = save_llama(tmp_path / "model"), ModelCatalog((tmp_path,)).find_model("model")
    hashes = [describe_model(source).config_sha256]
    config = json.loads((folder / "config.json").read_text())
    parts = config.pop("rope_parameters")
    for change in ({}, {"rope_theta": int(parts["rope_theta"]), "rope_scaling": None}):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        hashes.append(describe_model(source).config_sha256)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 7]}))
    hashes.append(describe_model(source).config_sha256)
    assert len(set(hashes)) == 1


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested"),
        ('{"model_type": ' + '{"a":' * 100_000 + "1" + "}" * 100_001, "nested"),
        ('{"task_specific_params": ' + '{"a":' * 500 + "1" + "}" * 501, "nested"),
        ("[]", "not a JSON object"),
        ("{", "cannot be read"),
        ("", "cannot be read"),
        ('{"a": NaN}', "NaN"),
        ('{"a": 1e999}', "1e999"),
        ('{"rope_theta": 1, "rope_theta": 2}', "'rope_theta' more than once"),
        ("{}", "no model_type"),
        ('{"model_type": 7}', "no model_type"),
        ("\xff", "cannot be read"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (" " * (5 << 20), "the limit is"),
    ],
    ids=range(14),
)
def test_a_file_that_is_no_configuration_is_refused(text: str, named: str, tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "model")
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    message = refusal(folder).message
    assert named in message
    assert "config.json" in message


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 0},
        {"num_attention_heads": 3},
        {"num_key_value_heads": 3},
        {"num_key_value_heads": -2},
        {"num_hidden_layers": -3},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": "3"},
        {"num_hidden_layers": 3.0},
        {"num_hidden_layers": True},
        {"num_hidden_layers": 100_000},
        {"num_hidden_layers": 10**30},
        {"num_hidden_layers": 500},
        {"vocab_size": 10**12},
        {"vocab_size": 300},
        {"hidden_size": -16},
        {"hidden_size": 1 << 19},
        {"intermediate_size": 1 << 40},
        {"head_dim": 0},
        {"max_position_embeddings": 1 << 60},
        {"hidden_act": "nothing of the kind"},
        {"rms_norm_eps": "small"},
        {"rope_parameters": {"rope_type": "nothing of the kind"}},
        {"rope_parameters": 7},
    ],
    ids=str,
)
def test_sizes_that_no_model_has_are_refused_before_anything_is_allocated(
    change: dict[str, Any], tmp_path: Path
) -> None:
    folder = save_llama(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["head_dim"]
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    message = refusal(folder).message
    named = (*change, "disagree on sizes", "layers cannot be stored in", "the number of attention heads")
    assert any(each in message for each in named)


def test_a_model_in_the_other_form_has_sizes_as_well(tmp_path: Path) -> None:
    config = {"n_layers": 100_000, "d_model": 8, "n_heads": 2, "d_head": 4, "n_ctx": 8, "d_vocab": 10}
    folder = save_llama(tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(config))
    assert "n_layers is '100000'" in refusal(folder).message
