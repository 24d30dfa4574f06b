"""The computation of a sparse autoencoder, whatever its file format: encode, decode, and the contribution of one
feature.

Every convention of a format is resolved when its file is read: scales are folded into the weights, thresholds are plain
numbers, and matrices are [from, to]. Computation is in float32, whatever the file's dtype.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from actstore_storage.format.sites import Site

# SAELens and OpenAI add it to the deviation, not to the variance.
LAYER_NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class SparseAutoencoder(ABC):
    """An SAE. `tensors`: W_enc [d_in, d_sae], W_dec [d_sae, d_out], b_dec [d_out], the architecture's own, each
    [d_sae], and W_skip [d_in, d_out] if a transcoder has one.

    A transcoder reads `site` and predicts `output_site`; for all others the two are the same.
    """

    name: str
    sha256: str
    # The format of its files: "sae_lens", "gemma_scope", ...
    format: str
    site: Site
    output_site: Site
    d_in: int
    d_sae: int
    d_out: int
    # The model it was trained on, according to its configuration; "" if it does not say.
    model: str
    # How each row is normalized before encoding, which is undone after decoding: "none", "layer_norm",
    # "constant_norm_rescale", or "centred", for SAEs of models whose writing weights were centered (TransformerLens's
    # center_writing_weights): the residual minus its mean over d_model.
    normalisation: str
    subtracts_b_dec: bool
    # Quality figures in its own files, if any: l0, fvu, dead_share, loss_recovered.
    claims: Mapping[str, float]
    tensors: Mapping[str, Tensor]

    architecture: ClassVar[str]
    biases: ClassVar[tuple[str, ...]]

    @property
    def is_transcoder(self) -> bool:
        """Whether it predicts another site than it reads."""
        return self.site != self.output_site

    @property
    def decoder(self) -> Float[Tensor, "d_sae d_out"]:
        """The decoder directions, one row per feature. If pre-activations are scaled by the rows' norms, the rows have
        norm 1 and activations contain the norm.
        """
        return self.tensors["W_dec"]

    @property
    def encoder(self) -> Float[Tensor, "d_sae d_in"]:
        """The encoder directions, one row per feature."""
        return self.tensors["W_enc"].T

    def encode(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, "row d_sae"]:
        """Feature activations, 0 where a feature is off."""
        return self.activate(self.project(x))

    def project(self, x: Float[Tensor, "row d_in"], out: Tensor | None = None) -> Float[Tensor, "row d_sae"]:
        """The product with the encoder's matrix, before any bias of the encoder; into `out` if given."""
        x = _normalise(x.float(), self.normalisation)
        if self.subtracts_b_dec:
            x = x - self.tensors["b_dec"]
        return torch.mm(x, self.tensors["W_enc"], out=out)

    @abstractmethod
    def activate(self, projected: Float[Tensor, "row d_sae"]) -> Float[Tensor, "row d_sae"]:
        """Feature activations of what `project` gave, which may be overwritten."""

    def decode(
        self, activations: Float[Tensor, "row d_sae"], x: Float[Tensor, "row d_in"]
    ) -> Float[Tensor, "row d_out"]:
        """The reconstruction of `output_site`, in that site's own scale. `x` is the encoded input: it is needed to undo
        the normalization of a row, and for a skip connection.
        """
        x = x.float()
        written = activations.to(self.decoder.dtype) @ self.decoder + self.tensors["b_dec"]
        if "W_skip" in self.tensors:
            written = written + x @ self.tensors["W_skip"]
        if self.is_transcoder:  # Its input's scale is not its output's, and SAELens undoes nothing there either.
            return written
        shift, scale, _ = _row_statistics(x, self.normalisation)
        return written * scale + shift

    def contribution(
        self, activation: Float[Tensor, " row"], feature: int, x: Float[Tensor, "row d_in"]
    ) -> Float[Tensor, "row d_out"]:
        """What one feature adds to the reconstruction of `decode` on each row, in the site's own scale."""
        written = activation.to(self.decoder.dtype)[:, None] * self.decoder[feature]
        return written if self.is_transcoder else written * _row_statistics(x.float(), self.normalisation)[1]

    def to(self, device: torch.device) -> "SparseAutoencoder":
        """Returns the same SAE on another device."""
        return replace(self, tensors={name: tensor.to(device) for name, tensor in self.tensors.items()})


class ThresholdSae(SparseAutoencoder):
    """SAEs in which each feature has a threshold, above which its full pre-activation is kept."""

    @property
    @abstractmethod
    def floor(self) -> Float[Tensor, " d_sae"]:
        """0 or above: no feature is negative."""

    def compete(self, projected: Float[Tensor, "row d_sae"]) -> Float[Tensor, "row d_sae"]:
        return projected.add_(self.tensors["b_enc"])

    def activate(self, projected: Float[Tensor, "row d_sae"]) -> Float[Tensor, "row d_sae"]:
        before = self.compete(projected)
        return before.relu() * (before > self.floor)


class StandardSae(ThresholdSae):
    """ReLU: a feature is active above 0."""

    architecture = "standard"
    biases = ("b_enc",)

    @property
    def floor(self) -> Float[Tensor, " d_sae"]:
        return torch.zeros_like(self.tensors["b_enc"])


class JumpReluSae(ThresholdSae):
    """Rajamanoharan et al. 2024: a feature below its threshold is 0, one above keeps its full value."""

    architecture = "jumprelu"
    biases = ("b_enc", "threshold")

    @property
    def floor(self) -> Float[Tensor, " d_sae"]:
        return self.tensors["threshold"].clamp(min=0)


class GatedSae(SparseAutoencoder):
    """Rajamanoharan et al. 2024: one matrix, two heads; `b_gate` decides whether a feature is active, `r_mag` and
    `b_mag` its value.
    """

    architecture = "gated"
    biases = ("b_gate", "b_mag", "r_mag")

    def activate(self, projected: Float[Tensor, "row d_sae"]) -> Float[Tensor, "row d_sae"]:
        open_gates = projected + self.tensors["b_gate"] > 0
        return (projected * self.tensors["r_mag"].exp() + self.tensors["b_mag"]).relu_() * open_gates


@dataclass(frozen=True)
class TopKSae(SparseAutoencoder):
    """Gao et al. 2024: the k largest features of a token, if they are positive."""

    k: int

    architecture = "topk"
    biases = ("b_enc",)

    def activate(self, projected: Float[Tensor, "row d_sae"]) -> Float[Tensor, "row d_sae"]:
        before = self.compete(projected)
        values, features = before.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(before).scatter_(-1, features, values.relu_())

    def compete(self, projected: Float[Tensor, "row d_sae"]) -> Float[Tensor, "row d_sae"]:
        return projected.add_(self.tensors["b_enc"])


ARCHITECTURES: Mapping[str, type[SparseAutoencoder]] = {
    kind.architecture: kind for kind in (StandardSae, TopKSae, JumpReluSae, GatedSae)
}


def _normalise(x: Float[Tensor, "row d_in"], normalisation: str) -> Float[Tensor, "row d_in"]:
    if normalisation == "none":
        return x
    shift, scale, epsilon = _row_statistics(x, normalisation)
    return (x - shift) / (scale + epsilon)


def _row_statistics(
    x: Float[Tensor, "row d_in"], normalisation: str
) -> tuple[Float[Tensor, "row one"], Float[Tensor, "row one"], float]:
    """(shift, scale, epsilon): a row is encoded as (x - shift) / (scale + epsilon), and decoded as y * scale + shift.

    As in SAELens at run time: its layer norm has no affine part and uses the unbiased deviation, and the epsilon is not
    undone. `constant_norm_rescale` gives every row the norm sqrt(d_in).
    """
    zero, one = x.new_zeros(len(x), 1), x.new_ones(len(x), 1)
    if normalisation == "layer_norm":
        return x.mean(dim=-1, keepdim=True), x.std(dim=-1, keepdim=True), LAYER_NORM_EPSILON
    if normalisation == "constant_norm_rescale":
        return zero, x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5, 0.0
    if normalisation == "centred":
        return x.mean(dim=-1, keepdim=True), one, 0.0
    return zero, one, 0.0
