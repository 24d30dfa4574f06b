"""Direct logit attribution: the direct contribution of each component to the logit difference, without later layers.

The last residual is a sum: layer 0's input, and each layer's attn_out and mlp_out. With the final norm's scale held
fixed, norm and unembedding are linear, so each part has a share of the logit difference, and the shares, with that of
the biases, add up to it (Elhage et al. 2021, "A mathematical framework for transformer circuits"; the scale is frozen
as in Nanda's TransformerLens). Heads share attn_out in the same way, without its bias. A norm between heads and
residual (Gemma 2) has its scale held fixed, too. The shares refer to logits before Gemma 2's soft cap.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from actstore_storage.format.sites import Site
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.weights import read_norm
from actstore_worker.patching.kernels.recording import Recording


@dataclass(frozen=True)
class Share:
    """The share of one component. `part`: embedding (layer 0's input), attn_out, mlp_out, z (one head of attn_out), or
    bias (of the final norm and the unembedding). All except those of z add up to the logit difference.
    """

    part: str
    share: float
    layer: int | None = None
    head: int | None = None


@torch.inference_mode()
def direct_shares(model: LanguageModel, recording: Recording, answers: tuple[int, int]) -> list[Share]:
    """Returns the shares of logit(answers[0]) - logit(answers[1]) at the last position. The recording must have z of
    every layer.
    """
    module: Any = model.module
    unembedding, (first, second) = module.get_output_embeddings(), answers
    direction = (unembedding.weight[first] - unembedding.weight[second]).double()
    norm = _Frozen.at(model, model.final_norm, recording.residuals[-1][-1])
    bias = float(direction @ norm.shift)
    if getattr(unembedding, "bias", None) is not None:
        bias += float(unembedding.bias[first] - unembedding.bias[second])
    shares = [Share("embedding", float(norm.linear(recording.residuals[0][-1].double()) @ direction))]
    for layer in range(model.layer_count):
        for part, written in _written(model, recording, layer):
            values = (norm.linear(written) @ direction).tolist()
            heads = range(len(values)) if part == "z" else [None]
            shares += [Share(part, value, layer, head) for value, head in zip(values, heads, strict=True)]
    return [*shares, Share("bias", bias)]


def _written(
    model: LanguageModel, recording: Recording, layer: int
) -> Iterator[tuple[str, Float[Tensor, "part d_model"]]]:
    """Returns what a layer adds to the residual at the last position."""
    yield "z", _by_head(model, layer, recording.activations[Site(layer, "z")][-1])
    for kind in model.written_kinds:
        yield kind, recording.activations[Site(layer, kind)][-1:].double()


def _by_head(model: LanguageModel, layer: int, z: Float[Tensor, " width"]) -> Float[Tensor, "head d_model"]:
    projection, *norms = (model.layers[layer].get_submodule(path) for path in model.family.from_z)
    alone = torch.block_diag(*z.view(model.head_count, -1))  # One row per head, with zeros for all other heads.
    written: Tensor = (projection(alone) - projection(torch.zeros_like(z))).double()
    together = projection(z)
    for norm in norms:
        written, together = _Frozen.at(model, norm, together).linear(written), norm(together)
    return written


@dataclass(frozen=True)
class _Frozen:
    """A LayerNorm or RMS norm with a fixed scale: gain * (x, centered if it is a LayerNorm) + shift."""

    gain: Float[Tensor, " d_model"]
    shift: Float[Tensor, " d_model"]
    centred: bool

    @classmethod
    def at(cls, model: LanguageModel, norm: nn.Module, x: Float[Tensor, " d_model"]) -> "_Frozen":
        known = read_norm(model, norm)
        shift = norm(torch.zeros_like(x)).double()
        unscaled = known.gain.double() * (x - x.mean() if known.centred else x).double()
        scale = (norm(x).double() - shift) @ unscaled / (unscaled @ unscaled)
        return cls(known.gain.double() * scale, shift, known.centred)

    def linear(self, parts: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        return self.gain * (parts - parts.mean(-1, keepdim=True) if self.centred else parts)
