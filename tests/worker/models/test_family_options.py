"""Every option of every family's configuration: with it the numbers are right, or the model is refused by its name.

The tables are what was tried. `RIGHT` has, by family, models each of which has several options at once; REFUSED has
options of config.json one by one.
"""

import json
import shutil
from dataclasses import fields
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from actstore_api.records.model import GetTextLens
from actstore_api.records.terms import ModelReference
from actstore_storage.errors import BadRequest
from actstore_worker.capture.plan import PlanSettings, plan_capture
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.places import DatasetPlaces
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.live.passes.running import Passes
from actstore_worker.live.texts.lens_of_text import lens_text
from actstore_worker.models.families import FAMILIES
from actstore_worker.models.files.options import ROPE_TYPES
from actstore_worker.models.loading import describe_model, load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.turns import Turns, share
from tests.capture_requests import capture_request
from tests.made_models.small_models import CONTEXT_LENGTH, LAYERS, save_family
from tests.worker.models.option_checks import (
    check_heads,
    check_live,
    check_neighbours,
    check_patches,
    check_sites,
    check_written,
    plain_model,
)

CPU = torch.device("cpu")
THRESHOLD = 8
# What is tried with every family: what a call may ask for, and what only training does.
ANYWHERE: dict[str, Any] = {
    "return_dict": False,
    "output_hidden_states": True,
    "chunk_size_feed_forward": 3,
    "use_cache": False,
    "is_encoder_decoder": True,
    "pad_token_id": 5,
    "bos_token_id": None,
    "eos_token_id": [1, 2],
}
# Said by config.json alone: a model is not built with them.
_OF_FILE = ("return_dict", "output_hidden_states", "chunk_size_feed_forward")

ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 3.0, "original_max_position_embeddings": THRESHOLD},
    "yarn": {"factor": 3.0, "original_max_position_embeddings": THRESHOLD},
    "longrope": {"factor": 3.0, "original_max_position_embeddings": THRESHOLD},
    "llama3": {"factor": 3.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    | {"original_max_position_embeddings": THRESHOLD},
    "proportional": {"factor": 3.0, "partial_rotary_factor": 0.5},
}


def rope(kind: str, *, pairs: int = 2, **more: Any) -> dict[str, Any]:
    """`pairs`: of numbers in a head that are turned."""
    found = {"rope_theta": 100.0, "rope_type": kind} | ROPES[kind] | more
    if kind == "longrope":
        found |= {"short_factor": [1.0 + 0.5 * pair for pair in range(pairs)], "long_factor": [8.0] * pairs}
    return {"rope_parameters": found}


def _llamas(*own: dict[str, Any], pairs: int = 2) -> list[dict[str, Any]]:
    """Each kind of rotary embedding once, beside what else all families of Llama's kind have, and `own`.

    `pairs` are those of a head that is as wide as `save_family` has it.
    """
    models = [rope(kind, pairs=pairs) for kind in ROPE_TYPES]
    beside = (
        {"num_key_value_heads": 1, "rms_norm_eps": 0.1, "head_dim": 10},
        {"num_key_value_heads": 4, "tie_word_embeddings": True, "intermediate_size": 10, "head_dim": 6},
        {"attention_dropout": 0.5, "initializer_range": 0.5, "tie_word_embeddings": False},
    )
    for number, options in enumerate((*beside, *own)):
        models[number % len(models)] |= options
    return models


_WINDOWS = (
    {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0},
    {"use_sliding_window": False, "sliding_window": 5, "max_window_layers": 0},
    {
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
)
RIGHT: dict[str, list[dict[str, Any]]] = {
    "gpt_neox": [
        rope("default", partial_rotary_factor=0.5)
        | {"use_parallel_residual": False, "attention_bias": False, "hidden_act": "relu"},
        rope("default", partial_rotary_factor=1.0)
        | {"layer_norm_eps": 0.1, "tie_word_embeddings": True, "intermediate_size": 10, "hidden_act": "prelu"},
        rope("dynamic")
        | {"attention_dropout": 0.5, "hidden_dropout": 0.5, "classifier_dropout": 0.5, "initializer_range": 0.5},
        rope("linear", partial_rotary_factor=0.5) | {"is_decoder": True, "use_parallel_residual": False},
        *(rope(kind, pairs=1, partial_rotary_factor=0.5) for kind in ("yarn", "longrope", "llama3", "proportional")),
    ],
    "gpt2": [
        {"scale_attn_by_inverse_layer_idx": True, "activation_function": "relu", "n_inner": 10},
        {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False},
        {"scale_attn_weights": False, "layer_norm_epsilon": 0.1, "activation_function": "prelu"},
        dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.5) | {"initializer_range": 0.5},
    ],
    "llama": _llamas(
        {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
        {"pretraining_tp": 2},
        {"attention_bias": True},
    ),
    "mistral": _llamas({"sliding_window": None}, {"sliding_window": 1}, {"hidden_act": "relu"}),
    "qwen2": _llamas(*_WINDOWS, {"hidden_act": "gelu"}),
    "qwen3": _llamas(*_WINDOWS, {"attention_bias": True, "hidden_act": "gelu"}, pairs=3),
    "gemma": _llamas({"attention_bias": True}, {"hidden_act": "gelu"}, {"use_bidirectional_attention": False}, pairs=3),
    "gemma2": _llamas(
        {"attention_bias": True, "attn_logit_softcapping": None},
        {"final_logit_softcapping": None, "query_pre_attn_scalar": 16},
        {"final_logit_softcapping": 2.0, "attn_logit_softcapping": None, "hidden_activation": "relu"},
        {"layer_types": ["full_attention", "full_attention", "sliding_attention"], "sliding_window": 3},
        {"use_bidirectional_attention": False, "final_logit_softcapping": None},
        pairs=3,
    ),
    "opt": [
        {"layer_norm_elementwise_affine": False, "activation_function": "gelu"},
        {"_remove_final_layer_norm": True, "enable_bias": False, "tie_word_embeddings": False},
        {"layer_norm_elementwise_affine": False, "_remove_final_layer_norm": True, "ffn_dim": 10},
        {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5, "init_std": 0.5, "activation_function": "prelu"},
    ],
    "attention_only": [
        {"position_embedding": "shortformer", "head_dim": 3},
        {"layer_norm_eps": 0.1, "initializer_range": 0.5},
    ],
    "bert": [
        {"type_vocab_size": 1, "layer_norm_eps": 0.1, "hidden_act": "relu", "intermediate_size": 10},
        dict.fromkeys(("attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout"), 0.5)
        | {"tie_word_embeddings": False, "initializer_range": 0.5},
    ],
}
# Option, value, and what the refusal names beside the option.
REFUSED: list[tuple[str, str, Any, str]] = [
    *((family, "is_causal", not FAMILIES[family].causal, "") for family in FAMILIES),
    *((family, "per_layer_config", {"1": {"hidden_dropout": 0.1}}, "") for family in ("gpt_neox", "bert")),
    ("llama", "per_layer_config", {"1": {"intermediate_size": 10}}, ""),
    *(
        (family, "rope_parameters", {"rope_type": "nope", "rope_theta": 10.0}, "nope")
        for family in ("gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")
    ),
    *(
        (family, "rope_parameters", rope("default", partial_rotary_factor=0.5)["rope_parameters"], "partial_rotary")
        for family in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")
    ),
    ("gemma2", "rope_parameters", {"full_attention": {"rope_type": "default", "rope_theta": 10.0}}, "full_attention"),
    ("llama", "head_dim", 3, "pairs"),
    ("mistral", "sliding_window", 0, "window"),
    ("qwen2", "layer_types", ["sliding_attention"] * LAYERS, "sliding_window"),
    ("qwen3", "layer_types", ["chunked_attention"] * LAYERS, "chunked_attention"),
    ("gemma2", "sliding_window", None, ""),
    ("mistral", "layer_types", ["full_attention"] * LAYERS, "ministral"),
    ("gemma", "use_bidirectional_attention", True, "later tokens"),
    ("gemma2", "use_bidirectional_attention", True, "later tokens"),
    ("gemma2", "attn_logit_softcapping", 0.0, "above 0"),
    ("gemma2", "final_logit_softcapping", 0.0, "above 0"),
    ("gpt2", "add_cross_attention", True, "encoder"),
    ("bert", "add_cross_attention", True, "encoder"),
    ("bert", "is_decoder", True, "encoders"),
    ("opt", "do_layer_norm_before", False, "opt-350m"),
    ("opt", "word_embed_proj_dim", 8, "projected"),
    ("attention_only", "position_embedding", "rotary", "shortformer"),
    ("attention_only", "tie_word_embeddings", True, "separate"),
    ("llama", "hidden_act", "nope", "nope"),
    ("gemma2", "hidden_activation", "nope", "nope"),
    ("gpt2", "activation_function", "nope", "nope"),
]
# Options that every model here has one way or another.
_SIZES = frozenset({
    "vocab_size", "hidden_size", "n_embd", "num_hidden_layers", "n_layer", "num_attention_heads", "n_head",
    "max_position_embeddings", "n_positions",
})  # fmt: skip
# What nothing is computed with: where a file comes from, and heads of other tasks. dtype: models are loaded in one.
_NOTHING = frozenset({
    "transformers_version", "architectures", "dtype", "id2label", "label2id", "problem_type", "summary_activation",
    "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj", "classifier_dropout",
})  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain model of each family."""
    folder = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        save_family(family, folder / family)
    return folder


def change(folder: Path, **options: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | options))


def load(folder: Path, **options: Any) -> LanguageModel:
    return load_model(ModelCatalog((folder.parent,)).find_model(folder.name), device=CPU, **options)


def model_with(folder: Path, family: str, options: dict[str, Any]) -> LanguageModel:
    options = ANYWHERE | options
    save_family(family, folder, **{name: value for name, value in options.items() if name not in _OF_FILE})
    change(folder, **{name: options[name] for name in _OF_FILE})
    vary_gains(folder / "model.safetensors")
    return load(folder)


def vary_gains(path: Path) -> None:
    """Of fresh norms all gains are alike, so that leaving them out would not show."""
    tensors, generator = load_file(path), torch.Generator().manual_seed(3)
    for name, tensor in tensors.items():
        if tensor.ndim == 1 and "bias" not in name:
            tensor += 0.3 * torch.randn(tensor.shape, generator=generator)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("family", "number"), [(family, number) for family, models in RIGHT.items() for number in range(len(models))]
)
def test_with_these_options_the_numbers_are_right(family: str, number: int, tmp_path: Path) -> None:
    options = RIGHT[family][number]
    model = model_with(tmp_path / "model", family, options)
    plain = plain_model(tmp_path / "model")
    check_sites(model, plain)
    check_neighbours(model)
    if family == "bert":
        return
    check_written(model, plain)
    check_patches(model, plain)
    check_live(model, plain)
    if options.get("position_embedding") != "shortformer":  # whose queries read positions beside the residual
        check_heads(model)


@pytest.mark.parametrize(("family", "option", "value", "named"), REFUSED)
def test_these_options_are_refused_by_name(
    family: str, option: str, value: Any, named: str, folder: Path, tmp_path: Path
) -> None:
    """Before any weights are read."""
    shutil.copytree(folder / family, tmp_path / "model")
    change(tmp_path / "model", **{option: value})
    with pytest.raises(BadRequest) as refused:
        describe_model(ModelCatalog((tmp_path,)).find_model("model"))
    assert refused.value.reason == "MODEL_UNSUPPORTED"
    assert refused.value.details["field"] == "model"
    assert named in refused.value.message
    assert option in refused.value.message or named == "ministral"  # transformers makes another family of it


@pytest.mark.parametrize("family", FAMILIES)
def test_no_configuration_has_an_option_that_was_not_tried(family: str) -> None:
    """Whatever a later transformers adds has to be tried first, and put into one of the tables above."""
    config = AutoConfig.for_model(family)
    there = {field.name for field in fields(config)} | {name for name in vars(config) if not name.startswith("_")}
    tried = {name for options in RIGHT[family] for name in options} | {row[1] for row in REFUSED if row[0] == family}
    assert not there - tried - ANYWHERE.keys() - _SIZES - _NOTHING


def test_every_kind_of_rotary_embedding_was_tried() -> None:
    assert set(ROPES) == set(ROPE_TYPES)
    for family, models in RIGHT.items():
        if hasattr(AutoConfig.for_model(family), "rope_parameters"):
            assert {options["rope_parameters"]["rope_type"] for options in models} == set(ROPE_TYPES)


def test_a_text_that_longrope_would_read_otherwise_is_refused(tmp_path: Path) -> None:
    """With more than 8 tokens, the first of them would have other frequencies than in a text of 8."""
    model = model_with(tmp_path / "model", "llama", rope("longrope"))
    assert model.context_length == THRESHOLD
    assert int(model.config.max_position_embeddings) == CONTEXT_LENGTH
    why = f"not {CONTEXT_LENGTH}: its config.json says rope_type longrope"
    with pytest.raises(BadRequest, match=why) as refused:
        lens_text(
            Passes(share(model, Turns()), Event()), GetTextLens(ModelReference("model"), "x" * THRESHOLD), LiveLimits()
        )
    assert (refused.value.reason, refused.value.details["value"]) == ("LIMIT_EXCEEDED", "9 tokens")
    (tmp_path / "text.txt").write_text("some text that is longer")
    settings = PlanSettings(DatasetPlaces((tmp_path,)))
    catalog = ModelCatalog((tmp_path,))
    with pytest.raises(BadRequest, match=why) as refused:
        plan_capture(capture_request("model", "text.txt", context_length=THRESHOLD + 1), catalog, settings)
    assert refused.value.details["field"] == "context_length"
    planned = plan_capture(capture_request("model", "text.txt"), catalog, settings)
    assert planned.record.specification.context_length == planned.sequences.lengths.max() == THRESHOLD
