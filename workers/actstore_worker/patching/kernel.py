"""Runs a model with activations replaced: many cells in one forward pass, each in a row of its own."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from actstore_storage.sites import Site
from actstore_worker.model import LanguageModel
from actstore_worker.patching.plan import Cell

# Takes an activation [batch, position, width] and returns what goes on in its place.
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Recording:
    """One prompt's unpatched run. `logits` are those of its last position."""

    tokens: Int[Tensor, " position"]
    logits: Float[Tensor, " vocabulary"]
    activations: Mapping[Site, Float[Tensor, "position width"]]


class Kernel(Protocol):
    """A way to compute patched runs; all of them agree with `FullForward`."""

    def run(self, base: Recording, cells: Sequence[Cell], source: Recording) -> Float[Tensor, "cell vocabulary"]:
        """Logits at the last position of `base` when one cell, each in its turn, holds the activation of `source`."""


class FullForward:
    """The obvious kernel: the whole model over the whole prompt, unembedding the last position only."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    @torch.inference_mode()
    def run(self, base: Recording, cells: Sequence[Cell], source: Recording) -> Float[Tensor, "cell vocabulary"]:
        rows_by_site: dict[Site, list[int]] = defaultdict(list)
        for row, cell in enumerate(cells):
            rows_by_site[cell.site].append(row)
        changes = {
            site: _replacement(rows, [cells[row] for row in rows], source.activations[site], self._model.head_count)
            for site, rows in rows_by_site.items()
        }
        return _last_logits(self._model, base.tokens.expand(len(cells), -1), changes)


@torch.inference_mode()
def record(model: LanguageModel, tokens: Sequence[int], sites: Iterable[Site]) -> Recording:
    """One forward pass that keeps the activations of `sites`; z has its heads side by side."""
    ids = torch.tensor(tokens, device=model.device)
    kept: dict[Site, Tensor] = {}

    def keeper(site: Site) -> Change:
        def keep(activation: Tensor) -> Tensor:
            kept[site] = activation[0].clone()
            return activation

        return keep

    logits = _last_logits(model, ids[None], {site: keeper(site) for site in sites})
    return Recording(ids, logits[0], kept)


def _replacement(rows: Sequence[int], cells: Sequence[Cell], source: Tensor, head_count: int) -> Change:
    """The change of one site: row rows[i] gets cells[i] from `source` [position, width]; other rows stay."""
    row_index = torch.tensor(rows, device=source.device)
    position_index = torch.tensor([cell.position for cell in cells], device=source.device)
    if cells[0].head is None:

        def replace(activation: Tensor) -> Tensor:
            changed = activation.clone()
            changed[row_index, position_index] = source[position_index]
            return changed

        return replace
    head_index = torch.tensor([cell.head for cell in cells], device=source.device)

    def replace_heads(activation: Tensor) -> Tensor:
        changed = activation.clone()
        by_head = changed.view(*changed.shape[:2], head_count, -1)
        by_head[row_index, position_index, head_index] = source.view(len(source), head_count, -1)[
            position_index, head_index
        ]
        return changed

    return replace_heads


def _last_logits(
    model: LanguageModel, tokens: Int[Tensor, "batch position"], changes: Mapping[Site, Change]
) -> Float[Tensor, "batch vocabulary"]:
    with changing(model, changes, tokens.shape):
        logits: Tensor = model.module(input_ids=tokens, use_cache=False, logits_to_keep=1).logits
    return logits[:, -1]


@contextmanager
def changing(model: LanguageModel, changes: Mapping[Site, Change], shape: torch.Size) -> Iterator[None]:
    """While it lasts, the model computes with those sites changed; of token ids of that shape [batch, position]."""
    handles: list[RemovableHandle] = []
    try:
        for site, change in changes.items():
            handles.append(_attach(model, site, _on_rows(change, shape)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _attach(model: LanguageModel, site: Site, change: Change) -> RemovableHandle:
    tap = model.family.taps[site.kind]
    module = model.layers[site.layer].get_submodule(tap.path)
    return (
        module.register_forward_pre_hook(_on_input(change))
        if tap.is_input
        else module.register_forward_hook(_on_output(change))
    )


def _on_rows(change: Change, shape: torch.Size) -> Change:
    """OPT's MLP sees the rows of all sequences as one list."""
    return lambda found: change(found.unflatten(0, shape)).flatten(0, 1) if found.ndim == 2 else change(found)


def _on_input(change: Change) -> Callable[[Any, tuple[Any, ...]], tuple[Any, ...]]:
    return lambda _module, inputs: (change(inputs[0]), *inputs[1:])


def _on_output(change: Change) -> Callable[[Any, Any, Any], Any]:
    """Attention modules return their output first in a tuple, MLPs alone."""

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return hook
