"""The matrices of each layer under TransformerLens's names, whatever module a family keeps them in.

W_Q, W_K, W_V are [head, d_model, d_head], W_O [head, d_head, d_model], W_in and W_gate [d_model, d_mlp], W_out [d_mlp,
d_model]; a vector is multiplied from the left. Keys and values have the heads that they have: of queries that share
them, the repeated ones are not stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from actstore_storage.errors import BadRequest
from actstore_worker.models.attention_only import MODEL_TYPE as ATTENTION_ONLY
from actstore_worker.models.model import LanguageModel

# Of families that learn an embedding of each position; the others turn queries and keys by it, which is no matrix.
POSITION_EMBEDDINGS: Mapping[str, str] = {
    "gpt2": "transformer.wpe",
    "opt": "model.decoder.embed_positions",
    ATTENTION_ONLY: "model.positions",
}
# Families whose RMSNorm multiplies by one more than its weight.
WEIGHT_IS_GAIN_LESS_ONE = ("gemma", "gemma2")


@dataclass(frozen=True)
class Layout:
    """Paths within a layer. `qkv` has three modules, or one that makes all. Empty: there is no such part.

    `fused_by_head`: in that one module each head's q, k and v lie together (GPT-NeoX), and not those of all heads.
    `norms_writes`: what attention and MLP give is normed before it is added, so that no matrix alone writes it.
    """

    attention_norm: str
    qkv: tuple[str, ...]
    output: str
    mlp_norm: str = ""
    reads: str = ""
    writes: str = ""
    gate: str = ""
    fused_by_head: bool = False
    norms_writes: bool = False


def _separate(within: str) -> tuple[str, ...]:
    return tuple(f"{within}.{name}_proj" for name in "qkv")


_LLAMA: dict[str, Any] = {
    "qkv": _separate("self_attn"),
    "output": "self_attn.o_proj",
    "reads": "mlp.up_proj",
    "writes": "mlp.down_proj",
    "gate": "mlp.gate_proj",
}
LAYOUTS: Mapping[str, Layout] = {
    "gpt_neox": Layout(
        "input_layernorm",
        ("attention.query_key_value",),
        "attention.dense",
        "post_attention_layernorm",
        "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
        fused_by_head=True,
    ),
    "gpt2": Layout("ln_1", ("attn.c_attn",), "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"),
    **{
        name: Layout("input_layernorm", mlp_norm="post_attention_layernorm", **_LLAMA)
        for name in ("llama", "mistral", "qwen2", "qwen3", "gemma")
    },
    "gemma2": Layout("input_layernorm", mlp_norm="pre_feedforward_layernorm", norms_writes=True, **_LLAMA),
    "opt": Layout(
        "self_attn_layer_norm", _separate("self_attn"), "self_attn.out_proj", "final_layer_norm", "fc1", "fc2"
    ),
    ATTENTION_ONLY: Layout("norm", _separate("attention"), "attention.o_proj"),
}


@dataclass(frozen=True)
class Norm:
    """What a norm does after its division: `centred` for a LayerNorm, which takes the mean away."""

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"] | None
    centred: bool

    def fold(self, reading: Float[Tensor, "*head d_model width"]) -> Float[Tensor, "*head d_model width"]:
        """As TransformerLens folds a norm: a matrix that reads the residual itself, but for the division."""
        gained = self.gain[:, None] * reading
        return gained - gained.mean(dim=-2, keepdim=True) if self.centred else gained

    def folded_bias(self, reading: Float[Tensor, "*head d_model width"]) -> Tensor | float:
        """What the norm's own bias writes through the matrix."""
        return 0.0 if self.bias is None else self.bias @ reading


Matrix = tuple[Tensor, Tensor | None]  # weight and bias


@dataclass(frozen=True)
class LayerWeights:
    """In float32. Each matrix with its bias; None where the model has no such part."""

    attention_norm: Norm
    q: Matrix
    k: Matrix
    v: Matrix
    o: Matrix
    mlp_norm: Norm | None
    reads: Matrix | None
    gate: Matrix | None
    writes: Matrix | None

    @property
    def group(self) -> int:
        """Query heads that share a key and value head."""
        return len(self.q[0]) // len(self.k[0])

    def constant_write(self, *, folded: bool) -> Float[Tensor, " d_model"]:
        """What attention writes whatever it reads, since a pattern's row sums to 1: b_O + b_V W_O; `folded`: and what
        the norm's bias writes through W_V W_O.
        """
        matrix, bias = self.o
        value = torch.zeros(len(self.v[0]), self.v[0].shape[-1], device=matrix.device)
        if self.v[1] is not None:
            value = value + self.v[1]
        if folded:
            value = value + self.attention_norm.folded_bias(self.v[0])
        found: Tensor = torch.einsum("hk,hkd->d", self.shared(value), matrix)
        return found if bias is None else found + bias

    def shared(self, by_key_head: Float[Tensor, "key_head ..."]) -> Float[Tensor, "head ..."]:
        return by_key_head.repeat_interleave(self.group, dim=0)


def layout_of(model: LanguageModel) -> Layout:
    """Errors: BadRequest MODEL_UNSUPPORTED."""
    if model.family.name not in LAYOUTS:
        raise BadRequest(
            f"where {model.family.name} models keep their weights by head is not known here",
            reason="MODEL_UNSUPPORTED",
            field="model",
            value=model.name,
            allowed=f"a model of {', '.join(LAYOUTS)}",
        )
    return LAYOUTS[model.family.name]


def layer_weights(model: LanguageModel, layer: int) -> LayerWeights:
    layout, block = layout_of(model), model.layers[layer]

    def matrix(path: str) -> Matrix | None:
        return _matrix(block.get_submodule(path)) if path else None

    q, k, v = _heads(model, layout, block)
    weight, bias = _matrix(block.get_submodule(layout.output))
    return LayerWeights(
        read_norm(model, block.get_submodule(layout.attention_norm)),
        q,
        k,
        v,
        (weight.unflatten(0, (model.head_count, -1)), bias),
        read_norm(model, block.get_submodule(layout.mlp_norm)) if layout.mlp_norm else None,
        matrix(layout.reads),
        matrix(layout.gate),
        matrix(layout.writes),
    )


def position_embedding(model: LanguageModel) -> Float[Tensor, "position d_model"] | None:
    """W_pos; OPT's begins behind rows that stand for no position."""
    path = POSITION_EMBEDDINGS.get(model.family.name)
    if path is None:
        return None
    module = model.module.get_submodule(path)
    weight: Any = module.weight
    rows: Tensor = weight[getattr(module, "offset", 0) :].float()
    return rows


def read_norm(model: LanguageModel, module: nn.Module) -> Norm:
    """A norm without a weight has gain 1."""
    width = torch.ones(model.d_model, device=model.device)
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    gain = width if weight is None else weight.float()
    gain = gain + 1 if model.family.name in WEIGHT_IS_GAIN_LESS_ONE else gain
    return Norm(gain, None if bias is None else bias.float(), isinstance(module, nn.LayerNorm))


def _matrix(module: nn.Module) -> Matrix:
    weight: Any = module.weight
    bias: Any = getattr(module, "bias", None)
    oriented = weight.float() if isinstance(module, Conv1D) else weight.float().T
    return oriented, None if bias is None else bias.float()


def _heads(model: LanguageModel, layout: Layout, block: nn.Module) -> tuple[Matrix, Matrix, Matrix]:
    parts = [_matrix(block.get_submodule(path)) for path in layout.qkv]
    if len(parts) == 1:
        ((weight, bias),) = parts
        weights = _fused(weight, model.head_count, layout.fused_by_head)
        biases = [None] * 3 if bias is None else _fused(bias, model.head_count, layout.fused_by_head)
        q, k, v = ((w.transpose(0, 1), b) for w, b in zip(weights, biases, strict=True))
        return q, k, v
    q, k, v = (
        (
            weight.unflatten(-1, (model.head_counts[kind], -1)).transpose(0, 1),
            None if bias is None else bias.unflatten(-1, (model.head_counts[kind], -1)),
        )
        for kind, (weight, bias) in zip("qkv", parts, strict=True)
    )
    return q, k, v


def _fused(tensor: Float[Tensor, "*d_model width"], heads: int, by_head: bool) -> list[Tensor]:
    """q, k and v, each [*d_model, head, d_head]."""
    if by_head:
        return list(tensor.unflatten(-1, (heads, 3, -1)).unbind(-2))
    return [part.unflatten(-1, (heads, -1)) for part in tensor.chunk(3, dim=-1)]
