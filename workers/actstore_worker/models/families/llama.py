"""Llama, and families in transformers that are derived from it."""

from collections.abc import Mapping
from typing import Any

from actstore_worker.models.families.family import Family, Layout, Tap, head_taps, pre_ln_taps

LLAMA_TAPS: Mapping[str, Tap] = pre_ln_taps(
    "self_attn", "self_attn.o_proj", "mlp", "post_attention_layernorm", head_taps("self_attn")
)


def llama_kind(name: str, **differences: Any) -> Family:
    """Returns a family with Llama's modules, except for the `differences`, which are fields of a family."""
    facts: dict[str, Any] = {
        "trunk": "model",
        "layers": "model.layers",
        "final_norm": "model.norm",
        "taps": LLAMA_TAPS,
        "from_z": ("self_attn.o_proj",),
        "from_middle": ("post_attention_layernorm", "mlp"),
        "attention_norm": "input_layernorm",
        "layout": Layout(reads="mlp.up_proj", writes="mlp.down_proj", gate="mlp.gate_proj"),
    }
    return Family(name, **facts | differences)


LLAMA = llama_kind("llama")
MISTRAL = llama_kind("mistral")
QWEN2 = llama_kind("qwen2", undeclared=frozenset({"head_dim"}))
QWEN3 = llama_kind("qwen3")
