"""Measures how well an SAE reconstructs the activations at its site; shared by all questions about it."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from actstore_worker.live.saes.encode_text import DENSE_MAX
from actstore_worker.sae.autoencoder import SparseAutoencoder


class Unexplained:
    """The fraction of variance unexplained (FVU): squared error divided by squared distance from the mean row.

    It is accumulated in float64, so that a massive activation does not round the others away.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self._error = torch.zeros((), dtype=torch.float64, device=device)
        self._square = torch.zeros((), dtype=torch.float64, device=device)
        self._sum = torch.zeros(width, dtype=torch.float64, device=device)
        self._rows = 0

    def add(self, target: Float[Tensor, "row width"], reconstruction: Float[Tensor, "row width"]) -> None:
        target = target.double()
        self._error += (target - reconstruction).square().sum()
        self._square += target.square().sum()
        self._sum += target.sum(dim=0)
        self._rows += len(target)

    @property
    def fraction(self) -> float:
        """The FVU; NaN if all rows are equal."""
        variance = self._square - self._sum.square().sum() / self._rows
        return float(self._error / variance) if variance > 0 else float("nan")


class Firing:
    """Counts how many features fire on a row, and how many never fire."""

    def __init__(self, d_sae: int, device: torch.device) -> None:
        self._rows_by_feature = torch.zeros(d_sae, dtype=torch.int64, device=device)
        self._rows = 0

    def add(self, activations: Float[Tensor, "row d_sae"]) -> None:
        self._rows_by_feature += (activations > 0).sum(dim=0)
        self._rows += len(activations)

    @property
    def l0(self) -> float:
        return float(self._rows_by_feature.sum()) / self._rows

    @property
    def dead_share(self) -> float:
        return float((self._rows_by_feature == 0).double().mean())


def reconstructed(
    sae: SparseAutoencoder, x: Float[Tensor, "row d_in"], firing: Firing | None = None
) -> Float[Tensor, "row d_out"]:
    """The SAE's reconstruction of the rows. `firing` counts the features that fire."""

    def parts() -> Iterator[Float[Tensor, "part d_out"]]:
        for part in x.split(max(1, DENSE_MAX // sae.d_sae)):
            activations = sae.encode(part)
            if firing is not None:
                firing.add(activations)
            yield sae.decode(activations, part)

    return torch.cat(list(parts()))


def unexplained(sae: SparseAutoencoder, x: Float[Tensor, "row d_in"], scale: float = 1.0) -> float:
    """The FVU of the SAE on its own input, scaled by this factor."""
    found = Unexplained(x.shape[1], x.device)
    found.add(x, reconstructed(sae, x * scale) / scale)
    return found.fraction
