"""Gemma, and Gemma 2, which norms the outputs of attention and MLP before adding them."""

from actstore_worker.models.families.family import Refusal, Tap
from actstore_worker.models.families.llama import LLAMA_TAPS, llama_kind

GEMMA = llama_kind("gemma", gain_less_one=True)
GEMMA2 = llama_kind(
    "gemma2",
    taps={
        **LLAMA_TAPS,
        "attn_out": Tap("post_attention_layernorm"),
        "resid_mid": Tap("pre_feedforward_layernorm", is_input=True),
        "mlp_out": Tap("post_feedforward_layernorm"),
    },
    from_z=("self_attn.o_proj", "post_attention_layernorm"),
    from_middle=("pre_feedforward_layernorm", "mlp", "post_feedforward_layernorm"),
    has_sdpa=False,
    gain_less_one=True,
    refusals=(
        Refusal("sliding_window", lambda _, window: window is None, "models of this family need a sliding window"),
    ),
)
