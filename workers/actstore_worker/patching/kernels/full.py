"""Patched runs: the interface, and the simple implementation, which runs the whole model for each of them."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from actstore_api.records.patching import SweepKernel
from actstore_storage.format.sites import Site
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.taps import Edit, changing, writing
from actstore_worker.patching.kernels.recording import Recording, Source


class Layer(Protocol):
    """A layer of a run in progress, as code that writes into it sees it."""

    @property
    def residual(self) -> Float[Tensor, "row position d_model"]:
        """The layer's input."""

    @property
    def values(self) -> Float[Tensor, "row kv_head position d_head"]:
        """The values of attention, from position 0 on."""


Found = tuple[int, "Cell", Source]


@dataclass(frozen=True)
class Cell:
    """One activation to replace: a site, or one head of a site with heads, at a position. For pattern: the attention
    weights of the query at that position.
    """

    site: Site
    position: int

    def __str__(self) -> str:
        return f"{self.site}@{self.position}"


@dataclass(frozen=True)
class Patch:
    """One patched run: `base`, with the activations of all `cells` taken from `source`."""

    base: Recording
    source: Source
    cells: tuple[Cell, ...]


@dataclass
class Count:
    """Token-layers (tokens times layers) that were computed, and those of full forward passes of each
    patched prompt.
    """

    computed: float = 0.0
    full: float = 0.0

    def add(self, computed: float, full: float) -> None:
        self.computed += computed
        self.full += full


class Kernel(Protocol):
    """A way to compute patched runs. All kernels agree with `FullForward`."""

    @property
    def name(self) -> SweepKernel: ...

    @property
    def count(self) -> Count: ...

    def price(self, cells: Sequence[Cell], length: int) -> float:
        """Returns the token-layers that `run` will count for a patch of these cells in a prompt of this length."""

    def run(self, patches: Sequence[Patch]) -> Float[Tensor, "patch vocabulary"]:
        """Returns the logits at the last position of each patch. All bases must have the same number of tokens."""


class FullForward:
    """The simple kernel: runs the whole model over the whole prompt, and unembeds only the last position."""

    name: SweepKernel = "full"

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self.count = Count()

    def price(self, cells: Sequence[Cell], length: int) -> float:  # noqa: ARG002
        return float(length * self._model.layer_count)

    @torch.inference_mode()
    def run(self, patches: Sequence[Patch]) -> Float[Tensor, "patch vocabulary"]:
        tokens = torch.stack([patch.base.tokens for patch in patches])
        self.count.add(tokens.numel() * self._model.layer_count, tokens.numel() * self._model.layer_count)
        edits = patch_edits(self._model, patches)
        with changing(self._model, writing(self._model, edits), tokens.shape), _unembedding_once(self._model):
            logits: Tensor = self._model.module(input_ids=tokens, use_cache=False, logits_to_keep=1).logits
        return logits[:, -1]


@contextmanager
def _unembedding_once(model: LanguageModel) -> Iterator[None]:
    """Within this context, the last positions reach the unembedding as one contiguous matrix. transformers' slice has
    gaps, so it would be multiplied prompt by prompt, and the whole unembedding read for each.
    """
    module: Any = model.module
    unembedding: nn.Module = module.get_output_embeddings()
    handle = unembedding.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    try:
        yield
    finally:
        handle.remove()


def patch_edits(model: LanguageModel, patches: Sequence[Patch]) -> dict[Site, Edit]:
    """Returns what to write into the whole model over the whole prompts, one patch per row."""
    found: dict[int, list[Found]] = defaultdict(list)
    for row, patch in enumerate(patches):
        for cell in patch.cells:
            found[cell.site.layer].append((row, cell, patch.source))
    edits: dict[Site, Edit] = {}
    for number, cells in found.items():
        layer = _SeenLayer()
        of_layer = site_edits(model, cells, 0, layer)
        for kind, see in {"resid_pre": layer.see_residual, "v": layer.see_values}.items():
            site = Site(number, kind)
            of_layer[site] = both(of_layer[site], see) if site in of_layer else see
        edits |= of_layer
    return edits


class _SeenLayer:
    """The values that passed through a layer, including what was written into it."""

    residual: Tensor
    values: Tensor

    def see_residual(self, residual: Tensor) -> None:
        self.residual = residual.squeeze(2)

    def see_values(self, v: Tensor) -> None:
        self.values = v.transpose(1, 2)


def site_edits(model: LanguageModel, cells: Sequence[Found], first_position: int, layer: Layer) -> dict[Site, Edit]:
    """Returns what to write at the sites of one layer: (row of the batch, cell, source of its activation). The batch
    begins at `first_position`.

    Two kinds cannot be written where they are read. Attention has already used its weights by then, so the product of
    the patched weights with the run's own values is written into z. And resid_mid is the input of the MLP's norm, not
    the stream itself, so the difference is added to attn_out.
    """
    by_site: dict[Site, list[Found]] = defaultdict(list)
    for row, cell, source in cells:
        by_site[cell.site.whole].append((row, cell, source))
    edits: dict[Site, Edit] = {}
    for site, chosen in sorted(by_site.items(), key=lambda item: INDIRECT.get(item[0].kind, "")):
        target = Site(site.layer, INDIRECT.get(site.kind, site.kind))
        if site.kind == "pattern":
            edit = _mixing(model, chosen, first_position, layer)
        elif site.kind == "resid_mid":
            edit = _completing(chosen, first_position, layer)
        else:
            edit = _writing(model, chosen, first_position)
        edits[target] = both(edits[target], edit) if target in edits else edit
    return edits


# Kinds that are written at another kind's place, after what is written there directly.
INDIRECT = {"pattern": "z", "resid_mid": "attn_out"}


def _writing(model: LanguageModel, cells: Sequence[Found], first_position: int) -> Edit:
    heads = model.head_counts.get(cells[0][1].site.kind, 1)
    of_heads = [found for found in cells if found[1].site.head is not None]
    whole = [found for found in cells if found[1].site.head is None]

    def write(tensor: Tensor) -> None:
        for chosen in (whole, of_heads):
            if not chosen:
                continue
            rows, positions = _places(chosen, first_position, tensor.device)
            sources = torch.stack([source.activation(cell.site, cell.position, heads) for _, cell, source in chosen])
            if chosen is whole:
                tensor[rows, positions] = sources.view(len(chosen), *tensor.shape[2:])
            else:
                index = torch.tensor([cell.site.head for _, cell, _ in chosen], device=tensor.device)
                tensor[rows, positions, index] = sources

    return write


def _completing(cells: Sequence[Found], first_position: int, layer: Layer) -> Edit:
    middle = torch.stack([source.activation(cell.site, cell.position, 1) for _, cell, source in cells])

    def complete(attn_out: Tensor) -> None:
        rows, positions = _places(cells, first_position, attn_out.device)
        attn_out[rows, positions, 0] = middle - layer.residual[rows, positions]

    return complete


def _mixing(model: LanguageModel, cells: Sequence[Found], first_position: int, layer: Layer) -> Edit:
    heads = model.head_count
    shared = heads // model.head_counts["v"]

    def mix(z: Tensor) -> None:
        found = layer.values
        for row, cell, source in cells:
            weights = source.activation(cell.site.whole, cell.position, heads).view(heads, -1)
            chosen = range(heads) if cell.site.head is None else [cell.site.head]
            for head in chosen:
                z[row, cell.position - first_position, head] = weights[head] @ found[row, head // shared]

    return mix


def _places(
    cells: Sequence[Found], first_position: int, device: torch.device
) -> tuple[Int[Tensor, " cell"], Int[Tensor, " cell"]]:
    rows = torch.tensor([row for row, _, _ in cells], device=device)
    return rows, torch.tensor([cell.position - first_position for _, cell, _ in cells], device=device)


def both(first: Edit, second: Edit) -> Edit:
    """Applies one edit after the other."""

    def edit(tensor: Tensor) -> None:
        first(tensor)
        second(tensor)

    return edit
