"""The matrices of each layer with TransformerLens's names, whichever module a family stores them in.

W_Q, W_K, W_V are [head, d_model, d_head], W_O [head, d_head, d_model], W_in and W_gate [d_model, d_mlp], W_out [d_mlp,
d_model]; a vector is multiplied from the left. If queries share keys and values, W_K and W_V have one entry for each
key-value head.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from actstore_storage.errors import BadRequest
from actstore_worker.models.families import FAMILIES
from actstore_worker.models.families.family import Layout
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.taps import by_head


@dataclass(frozen=True)
class Norm:
    """What a norm does after its division: `centred` for a LayerNorm, which subtracts the mean."""

    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"] | None
    centred: bool

    def fold(self, reading: Float[Tensor, "*head d_model width"]) -> Float[Tensor, "*head d_model width"]:
        """Folds the norm into a matrix, as TransformerLens does: the result reads the residual directly, except for the
        division.
        """
        gained = self.gain[:, None] * reading
        return gained - gained.mean(dim=-2, keepdim=True) if self.centred else gained

    def folded_bias(self, reading: Float[Tensor, "*head d_model width"]) -> Tensor | float:
        """The contribution of the norm's own bias through the matrix."""
        return 0.0 if self.bias is None else self.bias @ reading


Matrix = tuple[Tensor, Tensor | None]  # weight and bias


@dataclass(frozen=True)
class LayerWeights:
    """The weights of a layer in float32. Each matrix with its bias; None if the model has no such part."""

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
        """The number of query heads that share a key-value head."""
        return len(self.q[0]) // len(self.k[0])

    def constant_write(self, *, folded: bool) -> Float[Tensor, " d_model"]:
        """The part of attention's output that does not depend on its input, because a pattern's rows sum to 1: b_O +
        b_V W_O; `folded`: plus the contribution of the norm's bias through W_V W_O.
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
        """Repeats a key-value head's part for each query head that shares it."""
        return by_key_head.repeat_interleave(self.group, dim=0)


def layout_of(model: LanguageModel) -> Layout:
    """Where the model's family stores its matrices. Errors: BadRequest MODEL_UNSUPPORTED if that is not supported."""
    if model.family.layout is None:
        raise BadRequest(
            f"reading the weights of single heads is not supported for {model.family.name} models",
            reason="MODEL_UNSUPPORTED",
            field="model",
            value=model.name,
            allowed=f"a model of {', '.join(name for name, family in FAMILIES.items() if family.layout)}",
        )
    return model.family.layout


def layer_weights(model: LanguageModel, layer: int) -> LayerWeights:
    """The matrices and norms of one layer. Errors: as `layout_of`."""
    family, layout, block = model.family, layout_of(model), model.layers[layer]

    def matrix(path: str) -> Matrix | None:
        return _matrix(block.get_submodule(path)) if path else None

    q, k, v = _heads(model, block)
    weight, bias = _matrix(block.get_submodule(family.from_z[0]))
    return LayerWeights(
        read_norm(model, block.get_submodule(family.attention_norm)),
        q,
        k,
        v,
        (weight.unflatten(0, (model.head_count, -1)), bias),
        read_norm(model, block.get_submodule(family.from_middle[0])) if family.from_middle else None,
        matrix(layout.reads),
        matrix(layout.gate),
        matrix(layout.writes),
    )


def position_embedding(model: LanguageModel) -> Float[Tensor, "position d_model"] | None:
    """W_pos, if positions are learned; OPT's begins after rows that represent no position."""
    if not model.family.position_embedding:
        return None
    module = model.module.get_submodule(model.family.position_embedding)
    weight: Any = module.weight
    rows: Tensor = weight[getattr(module, "offset", 0) :].float()
    return rows


def read_norm(model: LanguageModel, module: nn.Module) -> Norm:
    """A norm's gain and bias, in float32. A norm without a weight has gain 1."""
    width = torch.ones(model.d_model, device=model.device)
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    gain = width if weight is None else weight.float()
    gain = gain + 1 if model.family.gain_less_one else gain
    return Norm(gain, None if bias is None else bias.float(), isinstance(module, nn.LayerNorm))


def _matrix(module: nn.Module) -> Matrix:
    weight: Any = module.weight
    bias: Any = getattr(module, "bias", None)
    oriented = weight.float() if isinstance(module, Conv1D) else weight.float().T
    return oriented, None if bias is None else bias.float()


def _heads(model: LanguageModel, block: nn.Module) -> tuple[Matrix, Matrix, Matrix]:
    """W_Q, W_K and W_V, from the modules that compute q, k and v."""
    paths = {kind: model.family.taps[kind].path for kind in "qkv"}
    parts = {path: _matrix(block.get_submodule(path)) for path in set(paths.values())}  # often one module

    def of(kind: str) -> Matrix:
        weight, bias = parts[paths[kind]]
        return by_head(model, kind, weight).transpose(0, 1), None if bias is None else by_head(model, kind, bias)

    return of("q"), of("k"), of("v")
