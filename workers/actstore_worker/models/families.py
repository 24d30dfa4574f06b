"""The model families that actstore can look into, and where each keeps its parts.

A site of TransformerLens is what goes into, or comes out of, one module of transformers. Each family says which; nobody
else knows the attribute names. All of them run with dropout off, so what a module returns is what the residual stream
gets. `loading.py` checks, on each model, that the parts add up as its family says.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM

from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import INNER_KINDS, RESIDUAL_KINDS
from actstore_worker.models.attention_only import MODEL_TYPE as ATTENTION_ONLY
from actstore_worker.models.attention_only import AttentionOnlyForCausalLM

LONGROPE = "longrope"


@dataclass(frozen=True)
class Tap:
    """What goes into the module at `path` of a layer ("": the layer itself), or else item `item` of what comes out.

    `select` takes the site's part of that tensor, where the module computes more than it: a view [batch, position,
    head, width of a head]; its second argument is the model's configuration.
    """

    path: str
    is_input: bool = False
    item: int = 0
    select: Callable[[Tensor, Any], Tensor] | None = None


def _fused_by_head(part: int) -> Callable[[Tensor, Any], Tensor]:
    """GPT-NeoX: each head's q, k and v lie together."""

    def select(fused: Tensor, config: Any) -> Tensor:
        heads = int(config.num_attention_heads)
        by_head: Tensor = fused.unflatten(-1, (heads, 3, -1))
        return by_head[..., part, :]

    return select


def _fused(part: int) -> Callable[[Tensor, Any], Tensor]:
    """GPT-2: the q of all heads, then the k, then the v."""

    def select(fused: Tensor, config: Any) -> Tensor:
        by_head: Tensor = fused.chunk(3, dim=-1)[part].unflatten(-1, (int(config.num_attention_heads), -1))
        return by_head

    return select


@dataclass(frozen=True)
class Family:
    """`name` is transformers' `model_type`; `taps` are by site kind, within one of the layers.

    `trunk` is the module without the unembedding; `final_norm`, below it, is what the last residual goes through before
    the unembedding ("": there is none). `causal`: a token's activations do not depend on those after it.
    `auto_class` loads it in transformers' way. `from_z` are the modules that make attn_out of z, one after
    the other, and `from_middle` those that make mlp_out of what lies between attention and MLP (none: there is no MLP);
    position by position.
    `attention_norm` is what q, k and v read the residual through. `has_sdpa`: transformers has torch's fused attention
    for it, and not eager attention alone.
    """

    name: str
    trunk: str
    layers: str
    final_norm: str
    taps: Mapping[str, Tap]
    from_z: tuple[str, ...] = ()
    from_middle: tuple[str, ...] = ()
    attention_norm: str = ""
    causal: bool = True
    auto_class: Any = AutoModelForCausalLM
    has_sdpa: bool = True

    def kinds(self, config: Any) -> tuple[str, ...]:
        """The residual site kinds that such a model has, in the order of a forward pass; sites with heads all have."""
        # In a parallel block attention and MLP read the same residual: there is nothing in the middle.
        missing = {"resid_mid"} if getattr(config, "use_parallel_residual", False) else set()
        return tuple(kind for kind in RESIDUAL_KINDS if kind in self.taps and kind not in missing)

    def block(self, config: Any) -> str:
        """How a layer is wired: pre_ln (its parts read the residual through norms and add to it), parallel (both parts
        read the same residual) or post_ln (each sum is normed before it goes on).
        """
        if not self.causal:
            return "post_ln"
        return "parallel" if getattr(config, "use_parallel_residual", False) else "pre_ln"

    @property
    def inner_kinds(self) -> tuple[str, ...]:
        return tuple(kind for kind in INNER_KINDS if kind in self.taps)

    def attention_implementation(self, config: Any) -> str:
        """What attention runs with, in transformers' words."""
        # Transformers honours GPT-2's option in eager attention only, and ignores it elsewhere without a word.
        return "sdpa" if self.has_sdpa and not getattr(config, "reorder_and_upcast_attn", False) else "eager"

    def context_length(self, config: Any) -> int:
        """How many tokens a text may have.

        With longrope, a text with more than the short factors are for has other frequencies at all of its positions: a
        token would depend on those after it, and on the texts beside it in a batch. So no text has more.
        """
        longest, rope = int(config.max_position_embeddings), getattr(config, "rope_parameters", None) or {}
        if rope.get("rope_type") == LONGROPE:
            return min(longest, int(rope["original_max_position_embeddings"]))
        return longest

    def decoder(self, module: nn.Module) -> nn.Module:
        return module.get_submodule(self.trunk)

    def layers_of(self, module: nn.Module) -> nn.ModuleList:
        layers = module.get_submodule(self.layers)
        assert isinstance(layers, nn.ModuleList)  # noqa: S101
        return layers


def _taps(
    attention: str, projection: str, mlp: str, middle: str, heads: Mapping[str, Tap], mlp_reader: str | None = None
) -> dict[str, Tap]:
    """A pre-LN block: attention's and the MLP's outputs are added to the residual as they come.

    `mlp_reader` is the MLP's first module where the MLP is none by itself.
    """
    return {
        "resid_pre": Tap("", is_input=True),
        **heads,
        "pattern": Tap(attention, item=1),
        "z": Tap(projection, is_input=True),
        "attn_out": Tap(attention),
        "resid_mid": Tap(middle, is_input=True),
        "mlp_input": Tap(mlp if mlp_reader is None else mlp_reader, is_input=True),
        "mlp_out": Tap(mlp),
        "resid_post": Tap(""),
    }


def _separate(attention: str, q: str = "q_proj", k: str = "k_proj", v: str = "v_proj") -> dict[str, Tap]:
    return {kind: Tap(f"{attention}.{name}") for kind, name in zip("qkv", (q, k, v), strict=True)}


_LLAMA = _taps("self_attn", "self_attn.o_proj", "mlp", "post_attention_layernorm", _separate("self_attn"))
# Gemma 2 norms what attention and MLP give before it adds it.
_GEMMA2 = _LLAMA | {
    "attn_out": Tap("post_attention_layernorm"),
    "resid_mid": Tap("pre_feedforward_layernorm", is_input=True),
    "mlp_out": Tap("post_feedforward_layernorm"),
}
_ATTENTION_ALONE = {
    "resid_pre": Tap("", is_input=True),
    **_separate("attention"),
    "pattern": Tap("attention", item=1),
    "z": Tap("attention.o_proj", is_input=True),
    "attn_out": Tap("attention"),
    "resid_post": Tap(""),
}
_NEOX_HEADS = {kind: Tap("attention.query_key_value", select=_fused_by_head(part)) for part, kind in enumerate("qkv")}
_GPT2_HEADS = {kind: Tap("attn.c_attn", select=_fused(part)) for part, kind in enumerate("qkv")}
# Post-LN, under TransformerLens's names: the sums before the LayerNorms are resid_mid and resid_post.
_BERT = {
    "resid_pre": Tap("", is_input=True),
    **_separate("attention.self", "query", "key", "value"),
    "pattern": Tap("attention.self", item=1),
    "z": Tap("attention.output.dense", is_input=True),
    "attn_out": Tap("attention.output.dense"),
    "resid_mid": Tap("attention.output.LayerNorm", is_input=True),
    "mlp_out": Tap("output.dense"),
    "resid_post": Tap("output.LayerNorm", is_input=True),
    "normalized_resid_post": Tap(""),
}

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            "gpt_neox",
            "gpt_neox",
            "gpt_neox.layers",
            "gpt_neox.final_layer_norm",
            _taps("attention", "attention.dense", "mlp", "post_attention_layernorm", _NEOX_HEADS),
            ("attention.dense",),
            ("post_attention_layernorm", "mlp"),
            "input_layernorm",
        ),
        Family(
            "gpt2",
            "transformer",
            "transformer.h",
            "transformer.ln_f",
            _taps("attn", "attn.c_proj", "mlp", "ln_2", _GPT2_HEADS),
            ("attn.c_proj",),
            ("ln_2", "mlp"),
            "ln_1",
        ),
        *(
            Family(
                name,
                "model",
                "model.layers",
                "model.norm",
                _LLAMA,
                ("self_attn.o_proj",),
                ("post_attention_layernorm", "mlp"),
                "input_layernorm",
            )
            for name in ("llama", "mistral", "qwen2", "qwen3", "gemma")
        ),
        Family(
            "gemma2",
            "model",
            "model.layers",
            "model.norm",
            _GEMMA2,
            ("self_attn.o_proj", "post_attention_layernorm"),
            ("pre_feedforward_layernorm", "mlp", "post_feedforward_layernorm"),
            "input_layernorm",
            has_sdpa=False,
        ),
        Family(
            "opt",
            "model",
            "model.decoder.layers",
            "model.decoder.final_layer_norm",
            _taps("self_attn", "self_attn.out_proj", "fc2", "final_layer_norm", _separate("self_attn"), "fc1"),
            ("self_attn.out_proj",),
            ("final_layer_norm", "fc1", "activation_fn", "fc2"),
            "self_attn_layer_norm",
        ),
        Family(
            ATTENTION_ONLY,
            "model",
            "model.layers",
            "model.final_norm",
            _ATTENTION_ALONE,
            ("attention.o_proj",),
            attention_norm="norm",
            auto_class=AttentionOnlyForCausalLM,
        ),
        Family("bert", "", "encoder.layer", "", _BERT, causal=False, auto_class=AutoModel),
    )
}


def find_family(model_type: str) -> Family:
    if model_type not in FAMILIES:
        raise BadRequest(
            f"models of type {model_type!r} are not supported; supported are {', '.join(FAMILIES)}",
            reason="MODEL_UNSUPPORTED",
            field="model",
            value=model_type,
            allowed=FAMILIES,
        )
    return FAMILIES[model_type]
