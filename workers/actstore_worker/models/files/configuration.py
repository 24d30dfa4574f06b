"""Reads and checks config.json, as transformers would read it.

A key that does not affect numbers (`identity.py`) may have any value. Any other key is refused by name if the family's
class does not know it. transformers would keep such a key and ignore it: a Granite checkpoint labelled llama would
load, and compute without its multipliers.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig

from actstore_worker.files.damage import DamagedFile
from actstore_worker.models.families import find_family
from actstore_worker.models.files.folder import raw_configuration
from actstore_worker.models.files.identity import DECIDES_NOTHING
from actstore_worker.models.files.source import ModelSource
from actstore_worker.models.files.transformer_lens import is_transformer_lens, read_config

# Sizes, under every name that a family has for them, and the largest allowed value of each: several times the largest
# published one, and small enough that building such a model without weights takes seconds.
LAYERS_MAX, HEADS_MAX, WIDTH_MAX, VOCABULARY_MAX, POSITIONS_MAX = 512, 1024, 1 << 20, 1 << 22, 1 << 27
# transformers makes a name for each label of a classifier.
LABELS_MAX = 1 << 16
_SIZES: Mapping[str, int] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers"), LAYERS_MAX),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "n_heads"), HEADS_MAX),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "head_dim", "d_head"), WIDTH_MAX),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner"), WIDTH_MAX),
    **dict.fromkeys(("vocab_size", "type_vocab_size", "d_vocab"), VOCABULARY_MAX),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), POSITIONS_MAX),
    **dict.fromkeys(("num_labels", "_num_labels"), LABELS_MAX),
}
_ROPE = "rope_parameters"
# The keys that each kind of rotary embedding in transformers uses, in addition to those that are always allowed. It
# ignores other keys: a factor without a type would scale nothing.
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
# Other places in config.json for the contents of `rope_parameters`: two tables, and single keys with their names there.
_ROPE_TABLES = (_ROPE, "rope_scaling")
_ROPE_BESIDE: Mapping[str, str] = {
    "rope_theta": "rope_theta",
    "rotary_emb_base": "rope_theta",
    "partial_rotary_factor": "partial_rotary_factor",
    "rotary_pct": "partial_rotary_factor",
}

# Keys of other families that say which tensors there are, or their shape. The weight files say so themselves, and have
# to fit.
_SAID_BY_TENSORS = frozenset({
    "intermediate_size", "ffn_dim", "n_inner", "word_embed_proj_dim", "type_vocab_size", "num_key_value_heads",
    "bias", "attention_bias", "mlp_bias", "enable_bias", "qkv_bias", "use_qkv_bias",
})  # fmt: skip
# Keys of other families, with the values at which they change nothing, or describe what is always so.
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
# These have no effect if `use_sliding_window` is false; the second one has no effect alone.
_WINDOW = frozenset({"sliding_window", "max_window_layers"})
# Other names for options of the family's class.
_SYNONYMS: Mapping[str, str] = {
    "hidden_act": "hidden_activation",
    "hidden_activation": "hidden_act",
    "sliding_window_size": "sliding_window",
}


def read_configuration(source: ModelSource) -> Any:
    """Returns transformers' configuration of a supported family. Nothing is allocated, and no code in the folder is
    run.

    Errors: BadRequest MODEL_UNSUPPORTED for another family; OSError; ValueError for anything else that is wrong with
    it.
    """
    raw = raw_configuration(source.folder)
    if raw.get("quantization_config") is not None:
        raise DamagedFile("its weights are quantized, which is not supported")
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


def _check_sizes(found: Mapping[str, Any]) -> None:
    for name, largest in _SIZES.items():
        value = found.get(name)
        if value is not None and (type(value) is not int or not 1 <= value <= largest):
            raise DamagedFile(f"{name} is {str(value)[:40]!r}, not a whole number from 1 to {largest}")


def _check_heads(config: Any) -> None:
    heads, width = config.num_attention_heads, config.hidden_size
    shared = getattr(config, "num_key_value_heads", None) or heads
    if getattr(config, "head_dim", None) is None and width % heads:
        raise DamagedFile(f"num_attention_heads is {heads}, which does not divide hidden_size, {width}")
    if heads % shared:
        raise DamagedFile(f"num_key_value_heads is {shared}, which does not divide num_attention_heads, {heads}")


def _check_said_once(raw: Mapping[str, Any]) -> None:
    """Checks that options with two names have one value. Which name transformers uses depends on its version."""
    said: dict[str, tuple[str, Any]] = {}
    for name, where, value in _by_meaning(raw):
        first, other = said.setdefault(name, (where, value))
        if other != value:
            raise DamagedFile(
                f"it says {first} = {str(other)[:40]} and {where} = {str(value)[:40]}, which are the same option under "
                "two names: remove the one that is wrong"
            )


def _by_meaning(raw: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yields options with several names: transformers' name, where it is, and its value."""
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
    """Checks that transformers read everything about rotary embeddings: of two tables it uses one."""
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
    """Returns keys, with their values, that transformers would turn into other keys, which the family does not use."""
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
    """Returns keys, with their values, that this family's class does not use, and another family's might."""
    kind = type(config)
    known = {field.name for field in fields(kind)} | kind.attribute_map.keys() | vars(kind()).keys()
    for name, value in vars(config).items():
        if name not in known and not _changes_nothing(config, name, value):
            yield f"{name} = {str(value)[:40]}"
    if _ROPE in known:
        yield from _unread_of_rope(getattr(config, _ROPE, None) or {})


def _unread_of_rope(rope: Mapping[str, Any]) -> Iterator[str]:
    read = _ROPE_READ.get(str(rope.get("rope_type")), rope.keys())  # An unknown kind is refused elsewhere.
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
