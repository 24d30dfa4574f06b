"""Runs patched runs that start at different positions through the layers in one batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.kernels.full import Count
from actstore_worker.patching.kernels.recording import Recording
from actstore_worker.patching.kernels.scattered import Runs, compute_keys, compute_layer, stacked

# The share of query, key and value projections in a layer's computation.
PROJECTIONS = 1 / 4


@dataclass(frozen=True)
class Run:
    """The output of `layer` from `position` on; in the last layer only at the last position."""

    base: Recording
    layer: int
    position: int
    residuals: Float[Tensor, "position d_model"]


@dataclass(frozen=True)
class Ragged:
    """Computes such runs. `calls`: each layer's arguments for whole prompts."""

    model: LanguageModel
    calls: Sequence[Mapping[str, Any]]
    count: Count

    def last_residuals(self, runs: Sequence[Run]) -> Float[Tensor, "run d_model"]:
        """Returns the last layer's output at the last position, for runs sorted by layer."""
        hidden, there = runs[0].residuals[:0], 0
        for layer in range(self.model.layer_count):
            if there:
                compute = self._layer if layer < self.model.layer_count - 1 else self._last_layer
                hidden = compute(layer, hidden, runs[:there])
            joining = [run.residuals for run in runs[there:] if run.layer == layer]
            hidden, there = torch.cat([hidden, *joining]), there + len(joining)
        return hidden

    def _layer(self, layer: int, hidden: Tensor, runs: Sequence[Run]) -> Float[Tensor, "token d_model"]:
        rows, positions = _places(runs, hidden.device)
        self.count.add(len(rows), 0)
        attention = self._attention(layer, runs, min(run.position for run in runs))
        return compute_layer(self.model, layer, self.calls[layer], attention, hidden, rows, positions)

    def _last_layer(self, layer: int, hidden: Tensor, runs: Sequence[Run]) -> Float[Tensor, "run d_model"]:
        """In the last layer, all tokens except the last ones only need keys and values."""
        model, call, last = self.model, self.calls[layer], len(runs[0].base.tokens) - 1
        rows, positions = _places(runs, hidden.device)
        attention, before = self._attention(layer, runs, last), positions < last
        if before.any():
            compute_keys(model, layer, call, attention, hidden[before], rows[before], positions[before])
        self.count.add(len(runs) + PROJECTIONS * (len(rows) - len(runs)), 0)
        return compute_layer(model, layer, call, attention, hidden[~before], rows[~before], positions[~before])

    def _attention(self, layer: int, runs: Sequence[Run], first: int) -> Runs:
        """Attention that includes the base runs' earlier keys and values."""
        bases = [run.base for run in runs]
        queries = stacked(bases, lambda base: base.queries[layer][:, first:])
        keys, values = stacked(bases, lambda base: base.keys[layer]), stacked(bases, lambda base: base.values[layer])
        empty = torch.zeros_like(queries, memory_format=torch.contiguous_format)
        return Runs(empty, keys.clone(), values.clone())


def _places(runs: Sequence[Run], device: torch.device) -> tuple[Int[Tensor, " token"], Int[Tensor, " token"]]:
    """Returns for each token its run and position."""
    length = len(runs[0].base.tokens)
    after = torch.tensor([length - run.position for run in runs])
    rows = torch.arange(len(runs)).repeat_interleave(after)
    positions = torch.cat([torch.arange(run.position, length) for run in runs])
    return rows.to(device), positions.to(device)
