"""Measures an SAE on held-out rows."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from actstore_worker.sae.autoencoder import SparseAutoencoder


@dataclass(frozen=True)
class Quality:
    """`l0`: active features per row, on average. `fvu`: the squared error divided by the squared distance of rows from
    their mean; None if the rows do not differ. `dead_share`: the fraction of features that fire on none of the rows.
    """

    l0: float
    fvu: float | None
    dead_share: float
    held_out_rows: int


def measure(sae: SparseAutoencoder, batches: Iterator[Float[Tensor, "row d_in"]], rows_max: int) -> Quality | None:
    """Measures on the first rows, about `rows_max`, in float64 sums; None if there are no rows."""
    device = sae.decoder.device
    total = torch.zeros(sae.d_in, dtype=torch.float64, device=device)
    squares = torch.zeros((), dtype=torch.float64, device=device)
    error, active = torch.zeros_like(squares), torch.zeros_like(squares)
    fired = torch.zeros(sae.d_sae, dtype=torch.bool, device=device)
    rows = 0
    for batch in batches:
        x = batch.to(device)
        with torch.inference_mode():
            features = sae.encode(x)
            error += (x - sae.decode(features, x)).double().square().sum()
            fired |= (features > 0).any(dim=0)
            active += (features > 0).sum()
            total += x.double().sum(dim=0)
            squares += x.double().square().sum()
        rows += len(x)
        if rows >= rows_max:
            break
    if not rows:
        return None
    variance = squares - total.square().sum() / rows
    return Quality(
        l0=float(active) / rows,
        fvu=float(error / variance) if rows > 1 and float(variance) > 0 else None,
        dead_share=1 - float(fired.double().mean()),
        held_out_rows=rows,
    )
