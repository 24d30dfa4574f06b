"""GPT-NeoX, the family of Pythia."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from actstore_worker.models.families.family import Family, Layout, Tap, pre_ln_taps


def _part(part: int) -> Callable[[Tensor, Any], Tensor]:
    """Each head's q, k and v are adjacent."""

    def select(fused: Tensor, config: Any) -> Tensor:
        heads = int(config.num_attention_heads)
        by_head: Tensor = fused.unflatten(-1, (heads, 3, -1))
        return by_head[..., part, :]

    return select


_HEADS = {kind: Tap("attention.query_key_value", select=_part(part)) for part, kind in enumerate("qkv")}
GPT_NEOX = Family(
    "gpt_neox",
    trunk="gpt_neox",
    layers="gpt_neox.layers",
    final_norm="gpt_neox.final_layer_norm",
    taps=pre_ln_taps("attention", "attention.dense", "mlp", "post_attention_layernorm", _HEADS),
    from_z=("attention.dense",),
    from_middle=("post_attention_layernorm", "mlp"),
    attention_norm="input_layernorm",
    layout=Layout(reads="mlp.dense_h_to_4h", writes="mlp.dense_4h_to_h", activation="mlp.act"),
    centrable=True,
    turns_part_of_a_head=True,
)
