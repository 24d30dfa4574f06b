"""What is known of a model family: one frozen record, which is asked by whoever needs a fact of a family.

A site of TransformerLens is what goes into, or comes out of, one module of transformers. Each family says which; nobody
else knows the attribute names. All of them run with dropout off, so what a module returns is what the residual stream
gets. `wiring.py` checks, on each model, that the parts add up as its family says.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from actstore_storage.format.sites import INNER_KINDS, RESIDUAL_KINDS

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


@dataclass(frozen=True)
class Layout:
    """Which modules hold the MLP's matrices: paths within a layer. Empty: there is no such part. Attention's lie where
    its sites are.

    `activation` is the function between `reads` and `writes`, where there is no gate.
    """

    reads: str = ""
    writes: str = ""
    gate: str = ""
    activation: str = ""


@dataclass(frozen=True)
class Refusal:
    """With which values of an option of config.json a model is refused: `is_refused` takes the configuration and the
    option's value.
    """

    option: str
    is_refused: Callable[[Any, Any], bool]
    why: str


@dataclass(frozen=True)
class Family:
    """All that is told of a family by name. `name` is transformers' `model_type`; `taps` are by site kind, within one
    of the layers.

    `trunk` is the module without the unembedding; `final_norm`, below it, is what the last residual goes through before
    the unembedding ("": there is none). `position_embedding` learns a vector of each position; families without one
    turn queries and keys by it, which is no matrix.

    `from_z` are the modules that make attn_out of z, one after the other, the first of them W_O; `from_middle` those
    that make mlp_out of what lies between attention and MLP, the first of them a norm (none: there is no MLP); position
    by position. `attention_norm` is what q, k and v read the residual through. `middle_norm` is what the sum in the
    middle goes through before the MLP adds to it (post-LN; "": nothing). `layout` is None where nobody reads the
    matrices by head.
    """

    name: str
    trunk: str
    layers: str
    taps: Mapping[str, Tap]
    final_norm: str = ""
    position_embedding: str = ""
    from_z: tuple[str, ...] = ()
    from_middle: tuple[str, ...] = ()
    attention_norm: str = ""
    middle_norm: str = ""
    layout: Layout | None = None
    # A token's activations do not depend on those after it.
    causal: bool = True
    # Loads it in transformers' way.
    auto_class: Any = AutoModelForCausalLM
    # transformers has torch's fused attention for it, and not eager attention alone.
    has_sdpa: bool = True
    # transformers tells sequences that share a row apart by their position ids.
    packs: bool = True
    # Its norms multiply by one more than their weight.
    gain_less_one: bool = False
    # Its writing weights can be centred (TransformerLens's center_writing_weights) without changing what it computes.
    centrable: bool = False
    # Rotary embeddings may turn a part of each head. The other families' layers ignore the option, or fail.
    turns_part_of_a_head: bool = False
    # Options that its layers read, and its configuration's class does not declare.
    undeclared: frozenset[str] = frozenset()
    # Tensors that its files may have or lack, by their whole names: of heads that it is read without.
    optional_tensors: re.Pattern[str] | None = None
    # Beside those of `files/options.py`, which are for all families.
    refusals: tuple[Refusal, ...] = ()

    def kinds(self, config: Any) -> tuple[str, ...]:
        """The residual site kinds that such a model has, in the order of a forward pass; sites with heads all have."""
        # In a parallel block attention and MLP read the same residual: there is nothing in the middle.
        missing = {"resid_mid"} if _is_parallel(config) else set()
        return tuple(kind for kind in RESIDUAL_KINDS if kind in self.taps and kind not in missing)

    def block(self, config: Any) -> str:
        """How a layer is wired: pre_ln (its parts read the residual through norms and add to it), parallel (both parts
        read the same residual) or post_ln (each sum is normed before it goes on).
        """
        if self.middle_norm:
            return "post_ln"
        return "parallel" if _is_parallel(config) else "pre_ln"

    @property
    def inner_kinds(self) -> tuple[str, ...]:
        """The site kinds of d_model's width that are no part of the residual stream."""
        return tuple(kind for kind in INNER_KINDS if kind in self.taps)

    @property
    def layer_output(self) -> str:
        """The site kind that the next layer reads."""
        return "normalized_resid_post" if self.middle_norm else "resid_post"

    @property
    def norms_writes(self) -> bool:
        """What attention and MLP give is normed before it is added, so that no matrix alone writes it."""
        return len(self.from_z) > 1

    def attention_implementation(self, config: Any) -> str:
        """What attention runs with, in transformers' words."""
        return "sdpa" if self.has_sdpa and not upcasts_attention(config) else "eager"

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
        """The trunk of a model of transformers': all but the unembedding."""
        return module.get_submodule(self.trunk)

    def layers_of(self, module: nn.Module) -> nn.ModuleList:
        """The layers of a model of transformers', in order."""
        layers = module.get_submodule(self.layers)
        assert isinstance(layers, nn.ModuleList)  # noqa: S101
        return layers


def upcasts_attention(config: Any) -> bool:
    """GPT-2's option: transformers honours it in eager attention only, within the layer and not by a function that it
    looks up by name, and ignores it elsewhere without a word.
    """
    return bool(getattr(config, "reorder_and_upcast_attn", False))


def pre_ln_taps(
    attention: str, projection: str, mlp: str, middle: str, heads: Mapping[str, Tap], mlp_reader: str | None = None
) -> dict[str, Tap]:
    """The taps of a pre-LN block: attention's and the MLP's outputs are added to the residual as they come.

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


def head_taps(attention: str, q: str = "q_proj", k: str = "k_proj", v: str = "v_proj") -> dict[str, Tap]:
    """The taps of q, k and v where each has a module of its own within attention."""
    return {kind: Tap(f"{attention}.{name}") for kind, name in zip("qkv", (q, k, v), strict=True)}


def _is_parallel(config: Any) -> bool:
    return bool(getattr(config, "use_parallel_residual", False))
