"""The model families that actstore can look into, and where each keeps its parts.

A site of TransformerLens is the input or output of one module of transformers. Each family says which; nobody else
knows the attribute names. All of them run with dropout off, so what a module returns is what the residual stream gets.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import nn

from actstore_storage.errors import BadRequest
from actstore_storage.sites import RESIDUAL_KINDS


class Family(ABC):
    """`name` is transformers' `model_type`. A `layer` is one element of `layers(module)`."""

    name: str

    def kinds(self, config: Any) -> tuple[str, ...]:  # noqa: ARG002
        """The site kinds that such a model has, in the order of a forward pass."""
        return RESIDUAL_KINDS

    def attention_implementation(self, config: Any) -> str:  # noqa: ARG002
        """What attention runs with, in transformers' words."""
        return "sdpa"

    @abstractmethod
    def decoder(self, module: nn.Module) -> nn.Module:
        """The trunk: embedding, layers and final norm, without the unembedding."""

    @abstractmethod
    def layers(self, module: nn.Module) -> nn.ModuleList: ...

    @abstractmethod
    def attention(self, layer: nn.Module) -> nn.Module:
        """Returns attn_out as the first element of a tuple."""

    @abstractmethod
    def attention_projection(self, layer: nn.Module) -> nn.Module:
        """Its input is z, heads concatenated: [batch, position, head_count * d_head]."""

    @abstractmethod
    def mlp(self, layer: nn.Module) -> nn.Module:
        """Returns mlp_out."""

    @abstractmethod
    def middle(self, layer: nn.Module) -> nn.Module:
        """Its input is resid_mid; meaningless where `kinds` has no resid_mid."""


class GptNeoX(Family):
    name = "gpt_neox"

    def kinds(self, config: Any) -> tuple[str, ...]:
        """In a parallel block attention and MLP read the same residual: there is nothing in the middle."""
        if config.use_parallel_residual:
            return tuple(kind for kind in RESIDUAL_KINDS if kind != "resid_mid")
        return RESIDUAL_KINDS

    def decoder(self, module: nn.Module) -> nn.Module:
        return module.get_submodule("gpt_neox")

    def layers(self, module: nn.Module) -> nn.ModuleList:
        return _list(module, "gpt_neox.layers")

    def attention(self, layer: nn.Module) -> nn.Module:
        return layer.get_submodule("attention")

    def attention_projection(self, layer: nn.Module) -> nn.Module:
        return layer.get_submodule("attention.dense")

    def mlp(self, layer: nn.Module) -> nn.Module:
        return layer.get_submodule("mlp")

    def middle(self, layer: nn.Module) -> nn.Module:
        return layer.get_submodule("post_attention_layernorm")


class Gpt2(Family):
    name = "gpt2"

    def attention_implementation(self, config: Any) -> str:
        """Transformers honours this option in eager attention only, and ignores it elsewhere without a word."""
        return "eager" if config.reorder_and_upcast_attn else "sdpa"

    def decoder(self, module: nn.Module) -> nn.Module:
        return module.get_submodule("transformer")

    def layers(self, module: nn.Module) -> nn.ModuleList:
        return _list(module, "transformer.h")

    def attention(self, layer: nn.Module) -> nn.Module:
        return layer.get_submodule("attn")

    def attention_projection(self, layer: nn.Module) -> nn.Module:
        return layer.get_submodule("attn.c_proj")

    def mlp(self, layer: nn.Module) -> nn.Module:
        return layer.get_submodule("mlp")

    def middle(self, layer: nn.Module) -> nn.Module:
        return layer.get_submodule("ln_2")


class Llama(Family):
    name = "llama"

    def decoder(self, module: nn.Module) -> nn.Module:
        return module.get_submodule("model")

    def layers(self, module: nn.Module) -> nn.ModuleList:
        return _list(module, "model.layers")

    def attention(self, layer: nn.Module) -> nn.Module:
        return layer.get_submodule("self_attn")

    def attention_projection(self, layer: nn.Module) -> nn.Module:
        return layer.get_submodule("self_attn.o_proj")

    def mlp(self, layer: nn.Module) -> nn.Module:
        return layer.get_submodule("mlp")

    def middle(self, layer: nn.Module) -> nn.Module:
        return layer.get_submodule("post_attention_layernorm")


FAMILIES: Mapping[str, Family] = {family.name: family for family in (GptNeoX(), Gpt2(), Llama())}


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


def _list(module: nn.Module, name: str) -> nn.ModuleList:
    layers = module.get_submodule(name)
    assert isinstance(layers, nn.ModuleList)  # noqa: S101
    return layers
