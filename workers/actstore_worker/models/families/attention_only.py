"""Attention-only transformers, such as TransformerLens's attn-only-1l to attn-only-4l, which transformers does not
have.

This is a separate model type with transformers' interfaces, so everything that works with its models works with these:
hooks, caches of keys and values, attention implementations, `from_pretrained`. Each layer adds attention of the normed
residual to it (Elhage et al. 2021, "A mathematical framework for transformer circuits", with norms and biases). A final
norm follows, and an unembedding with a bias, which is not tied to the embedding. Positions are learned, and are added
either to the embedding ("standard") or to the input of queries and keys in each layer ("shortformer", Press et al.
2021, section 5).
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from actstore_worker.models.families.family import Family, Layout, Refusal, Tap, head_taps

MODEL_TYPE = "attention_only"
STANDARD, SHORTFORMER = "standard", "shortformer"


class AttentionOnlyConfig(PreTrainedConfig):  # type: ignore[misc]
    """`position_embedding` is "standard" or "shortformer". `head_dim` x `num_attention_heads` may differ from the
    hidden size.
    """

    model_type = MODEL_TYPE

    vocab_size: int = 48262
    hidden_size: int = 512
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    head_dim: int = 64
    max_position_embeddings: int = 1024
    position_embedding: str = STANDARD
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None


def eager_attention_forward(
    _module: nn.Module,
    query: Float[Tensor, "row head query d_head"],
    key: Float[Tensor, "row head key d_head"],
    value: Float[Tensor, "row head key d_head"],
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Float[Tensor, "row query head d_head"], Float[Tensor, "row head query key"]]:
    """Eager attention with the same name, and softmax in float32, as in all of transformers' families."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class AttentionOnlyAttention(nn.Module):
    """Attention whose queries and keys may include positions that values do not."""

    def __init__(self, config: AttentionOnlyConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer, True
        self.head_dim = config.head_dim
        width = config.num_attention_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width)
        self.k_proj = nn.Linear(config.hidden_size, width)
        self.v_proj = nn.Linear(config.hidden_size, width)
        self.o_proj = nn.Linear(width, config.hidden_size)

    def forward(
        self,
        hidden_states: Float[Tensor, "row position d_model"],
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        position_embeddings: tuple[Float[Tensor, "#row position d_model"], ...],
    ) -> tuple[Float[Tensor, "row position d_model"], Tensor | None]:
        placed = sum(position_embeddings, hidden_states)
        query, key, value = (
            projection(read).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection, read in ((self.q_proj, placed), (self.k_proj, placed), (self.v_proj, hidden_states))
        )
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend: Any = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        z, weights = attend(self, query, key, value, attention_mask, scaling=self.head_dim**-0.5)
        return self.o_proj(z.flatten(2)), weights


class AttentionOnlyLayer(nn.Module):
    """A LayerNorm, and attention that adds to the residual."""

    def __init__(self, config: AttentionOnlyConfig, layer: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = AttentionOnlyAttention(config, layer)

    def forward(
        self,
        hidden_states: Float[Tensor, "row position d_model"],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        position_embeddings: tuple[Tensor, ...] = (),
    ) -> Float[Tensor, "row position d_model"]:
        """`position_embeddings` are added to the input of queries and keys: nothing if positions are in the residual
        from the start.
        """
        attended, _ = self.attention(self.norm(hidden_states), attention_mask, past_key_values, position_embeddings)
        written: Tensor = attended
        return hidden_states + written


class AttentionOnlyPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What transformers needs to load a model and to place it on devices."""

    config_class = AttentionOnlyConfig
    base_model_prefix = "model"
    _no_split_modules = ["AttentionOnlyLayer"]  # noqa: RUF012  transformers' own word
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True


class AttentionOnlyModel(AttentionOnlyPreTrainedModel):
    """The trunk: embeddings, layers and final norm."""

    def __init__(self, config: AttentionOnlyConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(AttentionOnlyLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "row position"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "row position"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "row position d_model"] | None = None,
        use_cache: bool | None = None,
    ) -> BaseModelOutputWithPast:
        hidden = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        if position_ids is None:
            before = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = before + torch.arange(hidden.shape[1], device=hidden.device)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        placed = self.positions(position_ids)
        shared = self.config.position_embedding == SHORTFORMER
        hidden = hidden if shared else hidden + placed
        for layer in self.layers:
            hidden = layer(
                hidden,
                attention_mask=mask,
                past_key_values=past_key_values,
                position_embeddings=(placed,) if shared else (),
            )
        return BaseModelOutputWithPast(last_hidden_state=self.final_norm(hidden), past_key_values=past_key_values)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed


class AttentionOnlyForCausalLM(AttentionOnlyPreTrainedModel):
    """The trunk with its unembedding."""

    def __init__(self, config: AttentionOnlyConfig) -> None:
        super().__init__(config)
        self.model = AttentionOnlyModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(
        self, input_ids: Int[Tensor, "row position"] | None = None, logits_to_keep: int = 0, **trunk: Any
    ) -> CausalLMOutputWithPast:
        """Logits of the last `logits_to_keep` positions; 0: of all. `trunk` is what `AttentionOnlyModel` takes."""
        found = self.model(input_ids, **trunk)
        logits = self.lm_head(found.last_hidden_state[:, -logits_to_keep:])
        return CausalLMOutputWithPast(logits=logits, past_key_values=found.past_key_values)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head


AutoConfig.register(MODEL_TYPE, AttentionOnlyConfig, exist_ok=True)

ATTENTION_ONLY = Family(
    MODEL_TYPE,
    trunk="model",
    layers="model.layers",
    final_norm="model.final_norm",
    position_embedding="model.positions",
    taps={
        "resid_pre": Tap("", is_input=True),
        **head_taps("attention"),
        "pattern": Tap("attention", item=1),
        "z": Tap("attention.o_proj", is_input=True),
        "attn_out": Tap("attention"),
        "resid_post": Tap(""),
    },
    from_z=("attention.o_proj",),
    attention_norm="norm",
    layout=Layout(),
    auto_class=AttentionOnlyForCausalLM,
    refusals=(
        Refusal(
            "position_embedding",
            lambda _, kind: kind not in (STANDARD, SHORTFORMER),
            f"only {STANDARD} and {SHORTFORMER} are known",
        ),
        Refusal("tie_word_embeddings", lambda _, tied: bool(tied), "its unembedding is separate from its embedding"),
    ),
)
