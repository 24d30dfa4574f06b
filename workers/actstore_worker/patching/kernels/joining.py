"""The first layer of a patched run, whose input differs from the base run's at one position only.

At all other positions, queries, keys and values equal the base run's. So the whole layer runs only at that one
position. For later positions, only attention with the base run's queries is computed, and what its output passes
through: its projection, and the MLP, unless the block is parallel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from actstore_storage.format.sites import Site
from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.kernels.recording import Recording
from actstore_worker.patching.kernels.scattered import Runs, compute_layer, stacked

# Shares of a layer's computation if the MLP is four times as wide as the residual: the output projection, and both.
_OUTPUT, _OUTPUT_AND_MLP = 1 / 12, 9 / 12


@dataclass(frozen=True)
class Joining:
    """A run whose layer input equals `base`, except for `residual` at `position`."""

    base: Recording
    position: int
    residual: Float[Tensor, " d_model"]


def later_share(model: LanguageModel) -> float:
    """Token-layers of one later position of such a run; the patched position itself counts as one."""
    return _OUTPUT_AND_MLP if "resid_mid" in model.kinds else _OUTPUT


def join_layer(
    model: LanguageModel, layer: int, call: Mapping[str, Any], rows: Sequence[Joining], first: int, start: int
) -> Float[Tensor, "row position d_model"]:
    """Returns the layer's output from position `start` on, with zeros before a row's own position. `call` are the
    layer's arguments for whole prompts. No row's position is before `first`.
    """
    bases = [row.base for row in rows]
    positions = torch.tensor([row.position for row in rows], device=model.device)
    queries = stacked(bases, lambda base: base.queries[layer][:, first:])
    keys, values = stacked(bases, lambda base: base.keys[layer]), stacked(bases, lambda base: base.values[layer])
    runs = Runs(queries.clone(), keys.clone(), values.clone())
    numbers = torch.arange(len(rows), device=model.device)
    hidden = torch.stack([row.residual for row in rows])
    there = compute_layer(model, layer, call, runs, hidden, numbers, positions)
    wanted = torch.arange(start, keys.shape[2], device=model.device)
    out = there.new_zeros(len(rows), len(wanted), there.shape[1])
    out[wanted == positions[:, None]] = there[positions >= start]
    later = wanted > positions[:, None]
    if later.any():
        out[later] = _after(model, layer, bases, runs.mixed[:, start - first :].flatten(2), later)
    return out


def _after(
    model: LanguageModel,
    layer: int,
    bases: Sequence[Recording],
    z: Float[Tensor, "row position width"],
    later: Bool[Tensor, "row position"],
) -> Float[Tensor, "later d_model"]:
    """Returns the layer's output where only attention sees the change."""
    start = len(bases[0].tokens) - z.shape[1]
    family, module = model.family, model.layers[layer]
    attn_out = through(module, family.from_z, z[later])
    if "resid_mid" not in model.kinds:
        was = stacked(bases, lambda base: base.activations[Site(layer, "attn_out")][start:])
        return stacked(bases, lambda base: base.residuals[layer + 1][start:])[later] + (attn_out - was[later])
    middle = stacked(bases, lambda base: base.residuals[layer][start:])[later] + attn_out
    return middle + through(module, family.from_middle, middle)


def through(layer: nn.Module, paths: Sequence[str], found: Tensor) -> Tensor:
    """Applies a layer's modules one after the other."""
    for path in paths:
        found = layer.get_submodule(path)(found)
    return found
