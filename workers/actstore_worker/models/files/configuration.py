"""What config.json says of a model, as transformers reads it: checked, and cut to what decides numbers.

Every key is of one of three kinds. A key in DECIDES is part of the model's identity. A key in DECIDES_NOTHING may have
any value. Any other key is refused by name if the family's class does not know it. transformers would keep such a key
and do nothing with it: a Granite checkpoint called llama would load, and compute without its multipliers. A test fails
when transformers adds a key to a family's class that is in neither table.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig

from actstore_storage.format.records import canonical_json
from actstore_worker.files.damage import DamagedFile
from actstore_worker.models.families import FAMILIES, find_family
from actstore_worker.models.files.folder import raw_configuration
from actstore_worker.models.files.source import ModelSource
from actstore_worker.models.files.transformer_lens import is_transformer_lens, read_config

# Sizes, under every name that a family has for them, and the largest of each: some times what was ever published, and
# small enough that to build such a model without its weights takes seconds.
LAYERS_MAX, HEADS_MAX, WIDTH_MAX, VOCABULARY_MAX, POSITIONS_MAX = 512, 1024, 1 << 20, 1 << 22, 1 << 27
_SIZES: Mapping[str, int] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers"), LAYERS_MAX),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "n_heads"), HEADS_MAX),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "head_dim", "d_head"), WIDTH_MAX),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner"), WIDTH_MAX),
    **dict.fromkeys(("vocab_size", "type_vocab_size", "d_vocab"), VOCABULARY_MAX),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), POSITIONS_MAX),
}
_ROPE = "rope_parameters"
# What each of transformers' kinds of rotary embeddings reads, beside what may always be there. It keeps other keys, and
# does nothing with them: a factor without a type would scale nothing.
_ROPE_ALWAYS = frozenset({
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings", "finetuned",
})  # fmt: skip
_ROPE_READ: Mapping[str, frozenset[str]] = {
    "default": frozenset(),
    **dict.fromkeys(("linear", "dynamic", "proportional"), frozenset({"factor"})),
    "yarn": frozenset({
        "factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
    }),
    "longrope": frozenset({"factor", "attention_factor", "short_factor", "long_factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor"}),
}  # fmt: skip
# Where config.json may say what is in `rope_parameters` as well: two tables, and single keys by their names there.
_ROPE_TABLES = (_ROPE, "rope_scaling")
_ROPE_BESIDE: Mapping[str, str] = {
    "rope_theta": "rope_theta",
    "rotary_emb_base": "rope_theta",
    "partial_rotary_factor": "partial_rotary_factor",
    "rotary_pct": "partial_rotary_factor",
}

DECIDES = frozenset({
    # sizes
    "vocab_size", "type_vocab_size", "hidden_size", "n_embd", "word_embed_proj_dim", "intermediate_size", "ffn_dim",
    "n_inner", "num_hidden_layers", "n_layer", "num_attention_heads", "n_head", "num_key_value_heads", "head_dim",
    "max_position_embeddings", "n_positions",
    # attention and positions
    "rope_parameters", "position_embedding", "sliding_window", "use_sliding_window", "max_window_layers",
    "layer_types", "attn_logit_softcapping", "query_pre_attn_scalar", "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "use_bidirectional_attention", "is_decoder",
    "add_cross_attention", "is_encoder_decoder",
    # the rest of a layer, and what comes after the last
    "hidden_act", "hidden_activation", "activation_function", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon",
    "layer_norm_elementwise_affine", "_remove_final_layer_norm", "do_layer_norm_before", "use_parallel_residual",
    "attention_bias", "mlp_bias", "enable_bias", "tie_word_embeddings", "final_logit_softcapping",
})  # fmt: skip

# Of ids, the tokenizer's are used. Those that end a generated text decide how much of it there is, and none of its
# numbers.
DECIDES_NOTHING = frozenset({
    # where it comes from, and with what it was written
    "_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "architectures", "model_type",
    "auto_map", "tokenizer_class", "dtype", "torch_dtype", "torchscript", "use_bfloat16", "tf_legacy_loss",
    "xla_device", "language", "transformers.js_config", "unsloth_version", "unsloth_fixed", "is_llama_config",
    "custom_pipelines", "license", "_pre_quantization_dtype", "quantization_aware_training", "model_name",
    "base_model", "_diffusers_version",
    # ids
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "unk_token_id", "mask_token_id",
    "decoder_start_token_id", "end_token_id", "pad_token", "bos_token", "eos_token", "unk_token",
    # training: initial weights, dropout, how much memory it took
    "initializer_range", "initializer_factor", "init_std", "gradient_checkpointing", "pretraining_tp",
    "neftune_noise_alpha", "attention_dropout", "hidden_dropout", "classifier_dropout",
    "attention_probs_dropout_prob", "hidden_dropout_prob", "attention_dropout_prob", "attn_pdrop", "embd_pdrop",
    "resid_pdrop", "dropout", "activation_dropout", "layerdrop", "embedding_dropout", "tensor_parallel_degree",
    "tensor_parallel_size", "sequence_parallel",
    # what a call asks for
    "use_cache", "return_dict", "use_return_dict", "output_attentions", "output_hidden_states", "output_past",
    "chunk_size_feed_forward", "tie_last_hidden_states", "cache_implementation", "cache_config",
    "keys_to_ignore_at_inference", "ignore_keys_at_rope_validation",
    "attn_implementation", "_attn_implementation", "_attn_implementation_autoset",
    "_attn_implementation_internal", "_flash_attn_2_enabled", "use_flash_attn", "use_flash_attention",
    "_experts_implementation", "experts_implementation",
    # heads for other tasks
    "id2label", "label2id", "num_labels", "_num_labels", "problem_type", "finetuning_task", "task_specific_params",
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
    "directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head",
    "pooler_type", "predict_special_tokens", "sentence_transformers",
    # how long a text is meant to be, and what is put in front of it; how it is padded
    "n_ctx", "max_sequence_length", "max_seq_len", "max_seq_length", "seq_length", "model_max_length", "prefix",
    "padding_side", "do_lower_case",
})  # fmt: skip

# Keys of other families that say which tensors there are, or of what shape: the weight files say it themselves,
# and have to fit.
_SAID_BY_TENSORS = frozenset({
    "intermediate_size", "ffn_dim", "n_inner", "word_embed_proj_dim", "type_vocab_size", "num_key_value_heads",
    "bias", "attention_bias", "mlp_bias", "enable_bias", "qkv_bias", "use_qkv_bias",
})  # fmt: skip
# Keys of other families, with the values at which they change nothing, or say what is so in any case.
_CHANGES_NOTHING: Mapping[str, tuple[object, ...]] = {
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "logits_scaling": (1,),
    "logit_scale": (1,),
    "position_embedding_type": ("absolute",),
    "learned_embeddings": (True,),
    "is_causal": (True,),
    "is_decoder": (False, True),
    **dict.fromkeys(
        (
            "add_cross_attention", "scale_embeddings", "rope_interleaved", "use_mrope", "use_sliding_window",
            "clip_qkv", "tie_encoder_decoder", "use_qk_norm", "qk_norm", "qk_layernorm",
            "use_bidirectional_attention", "reorder_and_upcast_attn", "scale_attn_by_inverse_layer_idx",
            "use_parallel_residual", "parallel_attn", "alibi",
        ),
        (False,),
    ),
}  # fmt: skip
# They do nothing where `use_sliding_window` is false; the second does nothing alone, either.
_WINDOW = frozenset({"sliding_window", "max_window_layers"})
# Other words for what the family's class knows.
_SYNONYMS: Mapping[str, str] = {
    "hidden_act": "hidden_activation",
    "hidden_activation": "hidden_act",
    "sliding_window_size": "sliding_window",
}


def read_configuration(source: ModelSource) -> Any:
    """Transformers' configuration of a supported family. Nothing is allocated, and no code of the folder's is run.

    Errors: BadRequest MODEL_UNSUPPORTED of another family; OSError; ValueError for whatever else is wrong with it.
    """
    raw = raw_configuration(source.folder)
    if raw.get("quantization_config") is not None:
        raise DamagedFile("its weights are quantised")
    _check_sizes(raw)
    if is_transformer_lens(raw):
        config = read_config(raw)
    else:
        if not isinstance(raw.get("model_type"), str):
            raise DamagedFile("it has no model_type")
        find_family(raw["model_type"])
        _refuse_keys(raw["model_type"], _elsewhere(raw))
        _check_said_once(raw)
        config = AutoConfig.from_pretrained(source.folder, trust_remote_code=False, local_files_only=True)
    _check_sizes({name: getattr(config, name, None) for name in _SIZES})
    _check_heads(config)
    _refuse_keys(config.model_type, _unknown(config))
    _check_rope(config, raw)
    return config


def identity_of(config: Any, said: Collection[str]) -> dict[str, Any]:
    """What decides the numbers, with every default filled in, under transformers' names; what is off is left out.

    `said` are the keys of config.json. A key that a later transformers adds is in here where the file says it, and else
    not, so that a model that stays the same has the same identity.
    """
    there = {field.name for field in fields(config)}.union(*(family.undeclared for family in FAMILIES.values()))
    counts = (DECIDES | {*said} - DECIDES_NOTHING) & there
    found = {name: value for name, value in config.to_dict().items() if name in counts}
    identity: dict[str, Any] = _plain({"model_type": config.model_type, **found})
    return identity


def identity_sha256(identity: Mapping[str, Any]) -> str:
    """The hash of what `identity_of` gives, in hexadecimal digits."""
    return hashlib.sha256(canonical_json(identity)).hexdigest()


def _check_sizes(found: Mapping[str, Any]) -> None:
    for name, largest in _SIZES.items():
        value = found.get(name)
        if value is not None and (type(value) is not int or not 1 <= value <= largest):
            raise DamagedFile(f"{name} is {str(value)[:40]!r}, and not a whole number from 1 to {largest}")


def _check_heads(config: Any) -> None:
    heads, width = config.num_attention_heads, config.hidden_size
    shared = getattr(config, "num_key_value_heads", None) or heads
    if getattr(config, "head_dim", None) is None and width % heads:
        raise DamagedFile(f"num_attention_heads is {heads}, which does not divide hidden_size, {width}")
    if heads % shared:
        raise DamagedFile(f"num_key_value_heads is {shared}, which does not divide num_attention_heads, {heads}")


def _check_said_once(raw: Mapping[str, Any]) -> None:
    """That what has two names has one value. Which of them transformers takes is another with each of its versions."""
    said: dict[str, tuple[str, Any]] = {}
    for name, where, value in _by_meaning(raw):
        first, other = said.setdefault(name, (where, value))
        if other != value:
            raise DamagedFile(
                f"it says {first} = {str(other)[:40]} and {where} = {str(value)[:40]}, which are the same option under "
                "two names: remove the one that is wrong"
            )


def _by_meaning(raw: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """What options with several names say: transformers' name of each, where it stands, and its value."""
    kind = CONFIG_MAPPING[raw["model_type"]]
    for alias, name in kind.attribute_map.items():
        yield from ((name, where, raw[where]) for where in (name, alias) if raw.get(where) is not None)
    if _ROPE in kind.__dataclass_fields__:
        yield from _of_rope(raw)


def _of_rope(raw: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for where in _ROPE_TABLES:
        table = raw.get(where)
        for key, value in table.items() if isinstance(table, dict) else ():
            if value is not None:
                yield f"{_ROPE}.{'rope_type' if key == 'type' else key}", f"{where}.{key}", value
    for where, key in _ROPE_BESIDE.items():
        if raw.get(where) is not None:
            yield f"{_ROPE}.{key}", where, raw[where]


def _check_rope(config: Any, raw: Mapping[str, Any]) -> None:
    """That transformers took over all that is said: of two tables it reads one."""
    if not (rope := getattr(config, _ROPE, None)) or is_transformer_lens(raw):
        return
    for name, where, value in _of_rope(raw):
        key = name.removeprefix(f"{_ROPE}.")
        if (read := rope.get(key)) != value:
            raise DamagedFile(
                f"it says {where} = {str(value)[:40]}, which transformers reads as {str(read)[:40]}: say it in "
                f"{_ROPE}, and remove rope_scaling"
            )


def _elsewhere(raw: Mapping[str, Any]) -> Iterator[str]:
    """Keys, with their values, that transformers would turn into other keys, which the family does not use."""
    has_rope = _ROPE in CONFIG_MAPPING[raw["model_type"]].__dataclass_fields__
    for name in ("per_layer_config", *(() if has_rope else ("rope_scaling", "rope_theta"))):
        if raw.get(name):
            yield f"{name} = {str(raw[name])[:40]}"


def _refuse_keys(family: str, unknown: Iterable[str]) -> None:
    if found := sorted(set(unknown)):
        raise DamagedFile(
            f"it says {', '.join(found)}, which {family} models do not use: the model would not compute what it was "
            "trained to; give it the right model_type, or, if the key changes nothing, remove it from config.json"
        )


def _unknown(config: Any) -> Iterator[str]:
    """Keys, with their values, that this family's class does not use, and another family's might."""
    kind = type(config)
    known = {field.name for field in fields(kind)} | kind.attribute_map.keys() | vars(kind()).keys()
    for name, value in vars(config).items():
        if name not in known and not _changes_nothing(config, name, value):
            yield f"{name} = {str(value)[:40]}"
    if _ROPE in known:
        yield from _unread_of_rope(getattr(config, _ROPE, None) or {})


def _unread_of_rope(rope: Mapping[str, Any]) -> Iterator[str]:
    read = _ROPE_READ.get(str(rope.get("rope_type")), rope.keys())  # a kind that is not there is refused as that
    for name in rope.keys() - _ROPE_ALWAYS - read:
        if rope[name] is not None and (name, rope[name]) != ("factor", 1):
            yield f"{_ROPE}.{name} = {str(rope[name])[:40]} of rope_type {rope['rope_type']}"


def _changes_nothing(config: Any, name: str, value: object) -> bool:
    if value is None or value in ("", [], {}) or name.startswith("unsloth_"):
        return True
    if name in DECIDES_NOTHING or name in _SAID_BY_TENSORS:
        return True
    if name in _SYNONYMS and value == getattr(config, _SYNONYMS[name], None):
        return True
    if name in _ROPE_BESIDE:
        return bool((getattr(config, _ROPE, None) or {}).get(_ROPE_BESIDE[name]) == value)
    if name in find_family(config.model_type).undeclared:
        return True
    if name == "head_dim":
        return bool(value == config.hidden_size // config.num_attention_heads)
    if name in _WINDOW:
        return getattr(config, "use_sliding_window", None) is False or name == "max_window_layers"
    if name == "layer_types":
        return value == ["full_attention"] * config.num_hidden_layers and not getattr(config, "sliding_window", None)
    return value in _CHANGES_NOTHING.get(name, ())


def _plain(value: Any) -> Any:
    """Without what is None; a number is written one way, whether the file has it as 10000 or as 10000.0."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items() if part is not None}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
