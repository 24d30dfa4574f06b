"""The description of a model family: one frozen record with all facts that other code needs.

A TransformerLens site is the input or output of one transformers module. Each family says which; no other code uses the
attribute names. Dropout is off in all of them, so a module's output is what the residual stream gets. `wiring.py`
checks, for each model, that the parts add up as its family says.
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
    """A hook point: the input of the module at `path` of a layer ("": the layer itself), or else item `item` of its
    output.

    `select` takes the site's part of that tensor, if the module computes more: a view [batch, position, head, width of
    a head]. Its second argument is the model's configuration.
    """

    path: str
    is_input: bool = False
    item: int = 0
    select: Callable[[Tensor, Any], Tensor] | None = None


@dataclass(frozen=True)
class Layout:
    """The modules with the MLP's matrices, as paths within a layer. Empty: there is no such part. Attention's matrices
    are in the modules of its sites.

    `activation` is the function between `reads` and `writes`, if there is no gate.
    """

    reads: str = ""
    writes: str = ""
    gate: str = ""
    activation: str = ""


@dataclass(frozen=True)
class Refusal:
    """Values of an option in config.json with which a model is refused: `is_refused` takes the configuration and the
    option's value.
    """

    option: str
    is_refused: Callable[[Any, Any], bool]
    why: str


@dataclass(frozen=True)
class Family:
    """All facts about a family. `name` is transformers' `model_type`; `taps` are by site kind, within a layer.

    `trunk` is the module without the unembedding. `final_norm`, a path in it, is applied to the last residual before
    the unembedding ("": there is none). `position_embedding` is a learned vector for each position; families without it
    use rotary embeddings, which have no matrix.

    `from_z` are the modules that compute attn_out from z, one after the other, the first of them W_O. `from_middle` are
    those that compute mlp_out from the residual between attention and MLP, the first of them a norm (none: there is no
    MLP). All of them work position by position. `attention_norm` is the norm before q, k and v. `middle_norm` is
    applied to the sum in the middle before the MLP adds to it (post-LN; "": none). `layout` is None if matrices by head
    are not supported.
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
    # A token's activations do not depend on later tokens.
    causal: bool = True
    # The class of transformers that loads it.
    auto_class: Any = AutoModelForCausalLM
    # transformers has fused attention (sdpa) for it, and not only eager attention.
    has_sdpa: bool = True
    # transformers separates sequences that share a row by their position ids.
    packs: bool = True
    # Its norms multiply by 1 plus their weight.
    gain_less_one: bool = False
    # Its writing weights can be centered (TransformerLens's center_writing_weights) without changing what it computes.
    centrable: bool = False
    # Rotary embeddings may rotate a part of each head. The other families' layers ignore the option, or fail.
    turns_part_of_a_head: bool = False
    # Options that its layers use but its configuration's class does not declare.
    undeclared: frozenset[str] = frozenset()
    # Tensors that its files may or may not have, by their full names: of heads that are not used.
    optional_tensors: re.Pattern[str] | None = None
    # In addition to those of `files/options.py`, which apply to all families.
    refusals: tuple[Refusal, ...] = ()

    def kinds(self, config: Any) -> tuple[str, ...]:
        """The kinds of the residual stream that such a model has, in the order of a forward pass. All families have
        sites with heads.
        """
        # In a parallel block attention and MLP read the same residual, so there is no resid_mid.
        missing = {"resid_mid"} if _is_parallel(config) else set()
        return tuple(kind for kind in RESIDUAL_KINDS if kind in self.taps and kind not in missing)

    def block(self, config: Any) -> str:
        """How a layer's parts are connected: pre_ln (each part reads the residual through a norm and adds to it),
        parallel (both parts read the same residual) or post_ln (each sum is normed).
        """
        if self.middle_norm:
            return "post_ln"
        return "parallel" if _is_parallel(config) else "pre_ln"

    @property
    def inner_kinds(self) -> tuple[str, ...]:
        """The site kinds with width d_model that are not part of the residual stream."""
        return tuple(kind for kind in INNER_KINDS if kind in self.taps)

    @property
    def layer_output(self) -> str:
        """The site kind that the next layer reads."""
        return "normalized_resid_post" if self.middle_norm else "resid_post"

    @property
    def norms_writes(self) -> bool:
        """Whether outputs of attention and MLP are normed before they are added, so that no matrix alone writes to the
        residual.
        """
        return len(self.from_z) > 1

    def attention_implementation(self, config: Any) -> str:
        """The default attention implementation, named as in transformers."""
        return "sdpa" if self.has_sdpa and not upcasts_attention(config) else "eager"

    def context_length(self, config: Any) -> int:
        """The largest number of tokens in a text.

        With longrope, a text longer than the short factors allow would use other frequencies at all of its positions: a
        token would depend on later ones, and on other texts in the batch. So such texts are not allowed.
        """
        longest, rope = int(config.max_position_embeddings), getattr(config, "rope_parameters", None) or {}
        if rope.get("rope_type") == LONGROPE:
            return min(longest, int(rope["original_max_position_embeddings"]))
        return longest

    def decoder(self, module: nn.Module) -> nn.Module:
        """The trunk of a transformers model: everything except the unembedding."""
        return module.get_submodule(self.trunk)

    def layers_of(self, module: nn.Module) -> nn.ModuleList:
        """The layers of a transformers model, in order."""
        layers = module.get_submodule(self.layers)
        assert isinstance(layers, nn.ModuleList)  # noqa: S101
        return layers


def upcasts_attention(config: Any) -> bool:
    """GPT-2's option. transformers applies it in eager attention only, within the layer and not by a function that it
    looks up by name, and silently ignores it otherwise.
    """
    return bool(getattr(config, "reorder_and_upcast_attn", False))


def pre_ln_taps(
    attention: str, projection: str, mlp: str, middle: str, heads: Mapping[str, Tap], mlp_reader: str | None = None
) -> dict[str, Tap]:
    """The taps of a pre-LN block: attention's and the MLP's outputs are added to the residual as they are.

    `mlp_reader` is the MLP's first module, if the MLP is not a module of its own.
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
    """The taps of q, k and v, if each has its own module within attention."""
    return {kind: Tap(f"{attention}.{name}") for kind, name in zip("qkv", (q, k, v), strict=True)}


def _is_parallel(config: Any) -> bool:
    return bool(getattr(config, "use_parallel_residual", False))
