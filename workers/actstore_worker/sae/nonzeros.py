"""Finds the nonzero features of a batch, on the device where they were computed.

TopK on the CPU has its own implementation, because `torch.topk` took 10 us per row of 1,024: a sixth of the bundled
model's whole forward pass. The k-th largest maximum of groups of features is at most the k-th largest feature, so one
pass leaves little more than k candidates per row, and a partition decides among them. If the result is not certain,
`torch.topk` is used.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from actstore_storage.runs.feature_index import SparseFeatures
from actstore_worker.sae.autoencoder import SparseAutoencoder, ThresholdSae, TopKSae

GROUP_SIZE = 16
# Dense activations are computed in slices that stay in a CPU's caches: this many bytes, or this many rows if they are
# wide, because a product of few rows reads the weights too often (with 32 rows it took 1.2 to 2 times as long per row
# as with 256, with 64 rows up to 1.4 times); and a batch of rows times the widest SAE may not fit into memory.
SLICE_BYTES, SLICE_ROWS, SLICE_BYTES_MAX = 1 << 22, 256, 1 << 27


def nonzero_features(sae: SparseAutoencoder, x: Float[Tensor, "row d_in"]) -> SparseFeatures:
    """The same as `sae.encode(x).nonzero()`: by token, features ascending; NaN counts as nonzero."""
    slices = list(_slices(sae, x))
    return SparseFeatures(
        np.concatenate([row for row, _, _ in slices]),
        np.concatenate([feature for _, feature, _ in slices]),
        np.concatenate([activation for _, _, activation in slices]),
    )


def _slices(
    sae: SparseAutoencoder, x: Tensor
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]]:
    row_bytes = 4 * sae.d_sae
    size = max(1, min(max(SLICE_BYTES // row_bytes, SLICE_ROWS), SLICE_BYTES_MAX // row_bytes))
    memory = torch.empty(
        min(size, len(x)), sae.d_sae, device=x.device
    )  # One buffer for all: new memory costs page faults.
    for first in range(0, len(x), size):
        rows = x[first : first + size]
        flat, activation = _flat_nonzeros(sae, sae.project(rows, out=memory[: len(rows)]))
        row, feature = np.divmod(flat, sae.d_sae)
        yield row + first, feature.astype(np.int32), activation


def _flat_nonzeros(sae: SparseAutoencoder, projected: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    if isinstance(sae, ThresholdSae):
        return above_thresholds(sae.compete(projected), sae.floor)
    if not isinstance(sae, TopKSae):
        return _of_dense(sae.activate(projected).flatten())
    before = sae.compete(projected)
    if before.device.type == "cpu" and (found := top_by_groups(before, sae.k)) is not None:
        return found
    return top_by_sorting(before, sae.k)


def above_thresholds(
    before: Float[Tensor, "row d_sae"], floor: Float[Tensor, " d_sae"]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Flat indices and values above each feature's threshold; NaN counts as above, because it is not zero."""
    if before.device.type == "cpu":  # NumPy compares rows four times, and finds nonzeros six times, as fast as torch.
        dense = before.numpy()
        flat = np.flatnonzero(~(dense <= floor.numpy()))
        return flat, dense.reshape(-1)[flat]
    found = (~(before <= floor)).flatten().nonzero().squeeze(-1)
    return found.cpu().numpy(), before.flatten()[found].cpu().numpy()


def _of_dense(activations: Float[Tensor, " element"]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    if activations.device.type == "cpu":  # NumPy counts nonzeros six times as fast as torch.
        dense = activations.numpy()
        flat = np.flatnonzero(dense != 0)
        return flat, dense[flat]
    found = activations.nonzero().squeeze(-1)
    return found.cpu().numpy(), activations[found].cpu().numpy()


def top_by_sorting(before: Float[Tensor, "row d_sae"], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Flat indices, ascending, and values of each row's k largest; values of 0 or less are left out."""
    features: Int[Tensor, "row k"] = before.topk(k, dim=-1, sorted=False).indices.sort(dim=-1).values
    activation = before.gather(-1, features).relu_()
    flat = features + torch.arange(len(before), device=before.device)[:, None] * before.shape[1]
    kept = activation != 0
    return flat[kept].cpu().numpy(), activation[kept].cpu().numpy()


def top_by_groups(before: Float[Tensor, "row d_sae"], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
    """As `top_by_sorting`; None if there are too few groups, if two features tie for the last place, and for NaN."""
    rows, d_sae = before.shape
    groups = d_sae // GROUP_SIZE
    if d_sae % GROUP_SIZE or groups < 2 * k:
        return None
    dense, maxima = before.numpy(), before.view(rows, GROUP_SIZE, groups).amax(dim=1).numpy()
    if np.isnan(maxima).any():
        return None
    floor = np.partition(maxima, groups - k, axis=1)[:, groups - k]
    flat = np.flatnonzero(dense >= floor[:, None])
    values, row = dense.reshape(-1)[flat], flat // d_sae
    keep = _largest_of_each_row(values, row, rows, k)
    return None if np.count_nonzero(keep) != rows * k else (flat[keep & (values > 0)], values[keep & (values > 0)])


def _largest_of_each_row(values: NDArray[Any], row: NDArray[np.int64], rows: int, k: int) -> NDArray[np.bool_]:
    """Which candidates are at least the k-th largest of their row. Each row has at least k candidates."""
    counts = np.bincount(row, minlength=rows)
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.full((rows, counts.max()), -np.inf, dtype=values.dtype)
    table[row, place] = values
    last = np.partition(table, table.shape[1] - k, axis=1)[:, table.shape[1] - k]
    kept: NDArray[np.bool_] = values >= last[row]
    return kept
