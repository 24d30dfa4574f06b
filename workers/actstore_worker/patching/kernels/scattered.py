"""Computes a layer at chosen positions of several runs, in one batch of tokens.

Only attention depends on how tokens are arranged. So the layer gets one row of tokens, whichever run and position they
belong to, and only attention distinguishes runs, with keys and values of all their positions.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actstore_worker.models.attention import Mixed, Usual, attending
from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.kernels.layer_calls import Enough, told
from actstore_worker.patching.kernels.recording import Recording


@dataclass
class Runs:
    """The attention of some runs in one layer. Queries are of positions from `first` on, keys and values of all; the
    tokens' own keys and values are written into them.
    """

    queries: Float[Tensor, "run head query d_head"]
    keys: Float[Tensor, "run kv_head position d_head"]
    values: Float[Tensor, "run kv_head position d_head"]
    mixed: Float[Tensor, "run query head d_head"] = field(init=False)

    @property
    def first(self) -> int:
        return int(self.keys.shape[2] - self.queries.shape[2])


@dataclass
class _Tokens:
    """The run and position of each token of a batch. It is passed to the layer as its cache, and computes attention."""

    runs: Runs
    rows: Int[Tensor, " token"]
    positions: Int[Tensor, " token"]
    mask: Tensor
    leaves: bool

    def update(self, keys: Tensor, values: Tensor, _layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.runs.keys[self.rows, :, self.positions] = keys[0].transpose(0, 1)
        self.runs.values[self.rows, :, self.positions] = values[0].transpose(0, 1)
        if self.leaves:
            raise Enough
        return keys, values

    def __call__(self, usual: Usual, query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Mixed:  # noqa: ARG002
        runs, places = self.runs, self.positions - self.runs.first
        runs.queries[self.rows, :, places] = query[0].transpose(0, 1)
        runs.mixed, _ = usual(runs.queries, runs.keys, runs.values, self.mask[..., runs.first :, :])
        return runs.mixed[self.rows, places][None], None


def compute_layer(
    model: LanguageModel,
    layer: int,
    call: Mapping[str, Any],
    runs: Runs,
    hidden: Float[Tensor, "token d_model"],
    rows: Int[Tensor, " token"],
    positions: Int[Tensor, " token"],
) -> Float[Tensor, "token d_model"]:
    """Returns the layer's output at these tokens. `call` are the layer's arguments for whole prompts."""
    tokens = _Tokens(runs, rows, positions, call["attention_mask"], leaves=False)
    with attending(model, tokens):
        found = model.layers[layer](hidden[None], **told(call, tokens, positions))
    out: Tensor = found[0] if isinstance(found, tuple) else found
    return out[0]


def compute_keys(
    model: LanguageModel,
    layer: int,
    call: Mapping[str, Any],
    runs: Runs,
    hidden: Float[Tensor, "token d_model"],
    rows: Int[Tensor, " token"],
    positions: Int[Tensor, " token"],
) -> None:
    """Returns the keys and values of these tokens only: the layer is left as soon as it has those."""
    tokens = _Tokens(runs, rows, positions, call["attention_mask"], leaves=True)
    with suppress(Enough):
        model.layers[layer](hidden[None], **told(call, tokens, positions))


def stacked(bases: Sequence[Recording], part: Callable[[Recording], Float[Tensor, "..."]]) -> Float[Tensor, "base ..."]:
    """Returns that part of each base run, as a view if all base runs are the same."""
    if all(base is bases[0] for base in bases):
        found = part(bases[0])
        return found.expand(len(bases), *found.shape)
    return torch.stack([part(base) for base in bases])
