"""Attention-only models as TransformerLens's author published them.

They have his own `config.json` without a model type, and weights with the names of `HookedTransformer.state_dict()`.
Options that the file leaves out have TransformerLens's defaults (3.9, `convert_neel_model_config`).
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actstore_worker.files.safe_tensors import load_pickled, load_safetensors
from actstore_worker.models.families.attention_only import SHORTFORMER, STANDARD, AttentionOnlyConfig

# In order of preference. The second one is a pickle, from which only tensors are read.
WEIGHTS = ("model.safetensors", "model_final.pth")
# Norms with their own weights, or with weights folded into the matrices that follow.
_NORMALIZATIONS = ("LN", "LNPre")
_POSITIONS = (STANDARD, SHORTFORMER)
# Options with only one supported value. None means as many key heads as query heads.
_USUAL: Mapping[str, object] = {
    "attention_dir": "causal",
    "clip_qkv": None,
    "attn_scores_soft_cap": -1.0,
    "final_rms": False,
    "n_key_value_heads": None,
    "output_logits_soft_cap": -1.0,
    "post_embedding_ln": False,
    "scale_attn_by_inverse_layer_idx": False,
    "use_attn_scale": True,
    "use_attention_sinks": False,
    "use_local_attn": False,
    "use_logn_attn": False,
    "use_normalization_before_and_after": False,
    "use_qk_norm": False,
}
# Masks are computed from the configuration.
_READ = re.compile(
    r"blocks\.\d+\.attn\.([Wb]_[QKVO]|mask|IGNORE)|blocks\.\d+\.ln1\.[wb]|ln_final\.[wb]"
    r"|embed\.W_E|pos_embed\.W_pos|unembed\.(W_U|b_U)"
)
# Parts of attention: our name, and whether the head is the last dimension of their matrix.
_READERS = {"q_proj": "Q", "k_proj": "K", "v_proj": "V"}


def is_transformer_lens(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is in TransformerLens's format."""
    return "model_type" not in config and {"n_layers", "d_model", "n_heads"} <= set(config)


def read_config(config: Mapping[str, Any]) -> AttentionOnlyConfig:
    """Returns the configuration in transformers' form.

    Errors: KeyError for a missing size; ValueError for a model that has more than attention and LayerNorm, with the
    field, its value, and what is supported.
    """
    name = "normalization" if "normalization" in config else "normalization_type"
    _check("attn_only", config.get("attn_only", False), (True,))
    _check(name, config[name], _NORMALIZATIONS)
    for option, usual in _USUAL.items():
        _check(option, config.get(option, usual), (usual,))
    scale = math.sqrt(config["d_head"])
    _check("attn_scale", config.get("attn_scale", scale), (scale, -1.0))
    _check("d_vocab_out", config.get("d_vocab_out", config["d_vocab"]), (config["d_vocab"],))
    return AttentionOnlyConfig(
        vocab_size=config["d_vocab"],
        hidden_size=config["d_model"],
        num_hidden_layers=config["n_layers"],
        num_attention_heads=config["n_heads"],
        head_dim=config["d_head"],
        max_position_embeddings=config["n_ctx"],
        position_embedding=_position_embedding(config),
        layer_norm_eps=config.get("eps", 1e-5),
        architectures=["AttentionOnlyForCausalLM"],
    )


def _position_embedding(config: Mapping[str, Any]) -> str:
    """The published files say whether it is shortformer; TransformerLens's own configuration names it."""
    usual = SHORTFORMER if config.get("shortformer_pos", False) else STANDARD
    return str(_check("positional_embedding_type", config.get("positional_embedding_type", usual), _POSITIONS))


def _check(field: str, value: object, allowed: tuple[object, ...]) -> object:
    if value not in allowed:
        read = " and ".join(repr(found) for found in allowed)
        raise ValueError(f"{field} is {value!r}; for models in TransformerLens's format, only {read} is supported")
    return value


def read_weights(path: Path, config: AttentionOnlyConfig) -> dict[str, Tensor]:
    """Returns weights with the names of `attention_only.py`. Parts that the file lacks are left out; but if the file
    has no gains and biases of norms at all, they are filled in, because they are folded into the matrices that follow.

    Errors: ValueError for a tensor that does not belong to attention or norms.
    """
    theirs = load_safetensors(path) if path.suffix == ".safetensors" else load_pickled(path)
    if strange := sorted(name for name in theirs if not _READ.fullmatch(name)):
        raise ValueError(f"{path.name} has {', '.join(strange[:5])}, which an attention-only model does not use")
    return dict(_converted(theirs, config))


def _converted(theirs: Mapping[str, Tensor], config: AttentionOnlyConfig) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in theirs.items():
        block, _, part = name.removeprefix("blocks.").partition(".attn.")
        if name.startswith("blocks.") and part:
            yield from _attention(f"model.layers.{block}.attention", part, tensor)
    whole = {
        "model.embed.weight": "embed.W_E",
        "model.positions.weight": "pos_embed.W_pos",
        "lm_head.bias": "unembed.b_U",
    }
    yield from ((ours, theirs[name]) for ours, name in whole.items() if name in theirs)
    if "unembed.W_U" in theirs:
        yield "lm_head.weight", theirs["unembed.W_U"].T.contiguous()
    yield from _norms(theirs, config)


def _norms(theirs: Mapping[str, Tensor], config: AttentionOnlyConfig) -> Iterator[tuple[str, Tensor]]:
    """If a file has only some of the norms, they are not folded, and the others are missing."""
    names = {f"model.layers.{layer}.norm": f"blocks.{layer}.ln1" for layer in range(config.num_hidden_layers)}
    names["model.final_norm"] = "ln_final"
    there = {f"{name}.{letter}" for name in names.values() for letter in "wb"} & set(theirs)
    for ours, name in names.items():
        for part, letter, folded in (("weight", "w", torch.ones), ("bias", "b", torch.zeros)):
            if not there:
                yield f"{ours}.{part}", folded(config.hidden_size)
            elif f"{name}.{letter}" in there:
                yield f"{ours}.{part}", theirs[f"{name}.{letter}"]


def _attention(ours: str, part: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Their matrices are by head. Masks, which they store with them, are left out."""
    for name, letter in _READERS.items():
        if part == f"W_{letter}":  # [head, d_model, d_head]
            yield f"{ours}.{name}.weight", tensor.transpose(1, 2).flatten(0, 1).contiguous()
        elif part == f"b_{letter}":  # [head, d_head]
            yield f"{ours}.{name}.bias", tensor.flatten()
    if part == "W_O":  # [head, d_head, d_model]
        yield f"{ours}.o_proj.weight", tensor.flatten(0, 1).T.contiguous()
    elif part == "b_O":
        yield f"{ours}.o_proj.bias", tensor
