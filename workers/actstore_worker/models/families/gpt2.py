"""GPT-2."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from actstore_worker.models.families.family import Family, Layout, Tap, pre_ln_taps


def _part(part: int) -> Callable[[Tensor, Any], Tensor]:
    """The module returns the q of all heads, then the k, then the v."""

    def select(fused: Tensor, config: Any) -> Tensor:
        by_head: Tensor = fused.chunk(3, dim=-1)[part].unflatten(-1, (int(config.num_attention_heads), -1))
        return by_head

    return select


_HEADS = {kind: Tap("attn.c_attn", select=_part(part)) for part, kind in enumerate("qkv")}
GPT2 = Family(
    "gpt2",
    trunk="transformer",
    layers="transformer.h",
    final_norm="transformer.ln_f",
    position_embedding="transformer.wpe",
    taps=pre_ln_taps("attn", "attn.c_proj", "mlp", "ln_2", _HEADS),
    from_z=("attn.c_proj",),
    from_middle=("ln_2", "mlp"),
    attention_norm="ln_1",
    layout=Layout(reads="mlp.c_fc", writes="mlp.c_proj", activation="mlp.act"),
    centrable=True,
)
