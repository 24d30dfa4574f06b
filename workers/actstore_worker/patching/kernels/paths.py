"""Path patching: the effect of one component directly on others, and on nothing else.

As published, this takes three runs (Wang et al. 2022, "Interpretability in the wild", section 3.1 and appendix B;
Goldowsky-Dill et al. 2023, "Localizing model behavior with path patching"). Run 1: both prompts, unpatched. Run 2: the
base run with the sender's activation from the source run, and all attention (and all MLPs, if `path_mlps` is frozen)
frozen to its output in the base run; it gives the receivers' values. Run 3: the base run with the receivers set to
their values of run 2, at every position, and everything after them recomputed. `frozen_paths.py` does exactly that.

Here run 2 needs no forward pass. Because attention is frozen, nothing moves between positions: the sender's change of
the residual is added to the base run's stream at its position, and the receivers read the result. Run 3 is one patch of
the receivers, which any kernel can compute.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from actstore_api.records.patching import SweepKernel
from actstore_storage.format.sites import HEAD_KINDS, Site
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.taps import by_head
from actstore_worker.patching.kernels.full import Cell, Count, Kernel, Patch
from actstore_worker.patching.kernels.joining import through
from actstore_worker.patching.kernels.receivers import Point, Receivers, enters
from actstore_worker.patching.kernels.recording import Recording

# Shares of a layer's computation if the MLP is four times as wide as the residual: the MLP, and the projection that
# computes q, k or v from the residual, with and without the change.
_MLP, _PROJECTIONS = 8 / 12, 2 / 12


class Paths:
    """A kernel whose patches define senders; the inner `kernel` computes the effect of the receivers. The cells of a
    patch are of one site, at any positions. Patches without cells are the base run, as the inner kernel computes it;
    patches without a path to a receiver are the base run itself.
    """

    def __init__(self, model: LanguageModel, receivers: Receivers, kernel: Kernel) -> None:
        self._model, self._receivers, self._kernel = model, receivers, kernel

    @property
    def name(self) -> SweepKernel:
        return self._kernel.name

    @property
    def count(self) -> Count:
        return self._kernel.count

    def price(self, cells: Sequence[Cell], length: int) -> float:
        received = self._receivers.cells(cells, length)
        return self._way(cells) + (self._kernel.price(received, length) if received or not cells else 0.0)

    @torch.inference_mode()
    def run(self, patches: Sequence[Patch]) -> Float[Tensor, "patch vocabulary"]:
        received = receiving(self._model, self._receivers, patches)
        self.count.add(sum(self._way(patch.cells) for patch in patches), 0)
        logits = torch.stack([patch.base.logits for patch in patches])
        rows = [row for row, found in enumerate(received) if found.cells or not patches[row].cells]
        if rows:
            logits[rows] = self._kernel.run([received[row] for row in rows])
        return logits

    def _way(self, cells: Sequence[Cell]) -> float:
        """Returns the token-layers that are computed between senders and receivers, at each sender's own position."""
        if not cells:
            return 0.0
        begin, through_mlps = enters(cells[0].site), _recomputed(self._model, self._receivers)
        read = [site for site in {site.whole for site in self._receivers.sites} if begin <= self._receivers.reads(site)]
        end = max(map(self._receivers.reads, read), default=begin)
        mlps = sum(begin <= point < end for point in through_mlps) + sum(site.kind == "mlp_out" for site in read)
        return len(cells) * (mlps * _MLP + sum(site.kind in HEAD_KINDS for site in read) * _PROJECTIONS)


@dataclass(frozen=True)
class _Received:
    """The base run, except for the receivers' values by (site, position)."""

    base: Recording
    logits: Float[Tensor, " vocabulary"]
    values: Mapping[tuple[Site, int], Float[Tensor, " width"]]

    def activation(self, site: Site, position: int, heads: int) -> Float[Tensor, " width"]:
        found = self.values.get((site.whole, position))
        if found is None:
            return self.base.activation(site, position, heads)
        return found if site.head is None else found.view(heads, -1)[site.head]


@dataclass(frozen=True)
class _Sender:
    """One cell of a patch."""

    patch: Patch
    cell: Cell

    def base(self, site: Site) -> Float[Tensor, " width"]:
        """All heads, if the site has heads."""
        return self.patch.base.activations[site.whole][self.cell.position]

    def stream(self, point: Point) -> Float[Tensor, " d_model"]:
        """The residual stream of the base run."""
        layer, middle = point
        before = self.patch.base.residuals[layer][self.cell.position]
        return before + self.base(Site(layer, "attn_out")) if middle else before


def receiving(model: LanguageModel, receivers: Receivers, patches: Sequence[Patch]) -> list[Patch]:
    """Returns, for each patch of senders, the patch of receivers with their values in run 2."""
    senders = [_Sender(patch, cell) for patch in patches for cell in patch.cells]
    numbers = [number for number, patch in enumerate(patches) for _ in patch.cells]
    values: list[dict[tuple[Site, int], Tensor]] = [{} for _ in patches]
    for site, of_site in _received(model, receivers, senders).items():
        for place, value in of_site.items():
            values[numbers[place]][site, senders[place].cell.position] = value
    return [
        Patch(
            patch.base,
            _Received(patch.base, patch.source.logits, of_patch),
            receivers.cells(patch.cells, len(patch.base.tokens)),
        )
        for patch, of_patch in zip(patches, values, strict=True)
    ]


def _recomputed(model: LanguageModel, receivers: Receivers) -> dict[Point, int]:
    """Returns the layers whose MLPs are recomputed between senders and receivers, by the point where they read the
    stream.
    """
    layers = range(model.layer_count) if receivers.through_mlps and "mlp_out" in model.kinds else ()
    return {receivers.reads(Site(layer, "mlp_out")): layer for layer in layers}


def _received(
    model: LanguageModel, receivers: Receivers, senders: Sequence[_Sender]
) -> dict[Site, dict[int, Float[Tensor, " width"]]]:
    """Returns by receiver (all of its heads) and sender the receiver's value. Receivers without a path are left out."""
    readers: dict[Point, list[Site]] = defaultdict(list)
    for site in dict.fromkeys(site.whole for site in receivers.sites):
        readers[receivers.reads(site)].append(site)
    mlps, end = _recomputed(model, receivers), max(readers)
    changes = _changes(model, senders)
    found: dict[Site, dict[int, Tensor]] = {}
    for point in sorted(point for point in {*readers, *mlps} if point <= end):
        there = [place for place, sender in enumerate(senders) if enters(sender.cell.site) <= point]
        if not there:
            continue
        reached = [senders[place] for place in there]
        stream = torch.stack([sender.stream(point) for sender in reached]) + changes[there]
        for site in readers.get(point, ()):
            found[site] = dict(zip(there, _read(model, site, reached, stream), strict=True))
        if point in mlps and point < end:
            written = through(model.layers[mlps[point]], model.family.from_middle, stream)
            changes[there] += written - torch.stack([sender.base(Site(mlps[point], "mlp_out")) for sender in reached])
    return found


def _read(
    model: LanguageModel, site: Site, senders: Sequence[_Sender], stream: Float[Tensor, "sender d_model"]
) -> Float[Tensor, "sender width"]:
    """Returns a receiver's value computed from a stream, at each sender's position."""
    if site.kind == "resid_post":
        return stream
    if site.kind == "mlp_out":
        return through(model.layers[site.layer], model.family.from_middle, stream)
    # Computed as a difference, so that other inputs at that position, such as a position's embedding, stay as they are.
    before = torch.stack([sender.stream((site.layer, 0)) for sender in senders])
    change = _projected(model, site, stream) - _projected(model, site, before)
    return torch.stack([sender.base(site) for sender in senders]) + change


def _projected(model: LanguageModel, site: Site, stream: Float[Tensor, "sender d_model"]) -> Tensor:
    """Returns q, k or v of all heads."""
    path = model.family.taps[site.kind].path
    fused = through(model.layers[site.layer], (model.family.attention_norm, path), stream)
    return by_head(model, site.kind, fused[None])[0].flatten(1)


def _changes(model: LanguageModel, senders: Sequence[_Sender]) -> Float[Tensor, "sender d_model"]:
    """Returns the change of the residual where each sender writes to it."""
    changes: list[Tensor] = [torch.empty(0)] * len(senders)
    by_site: dict[Site, list[int]] = defaultdict(list)
    for place, sender in enumerate(senders):
        by_site[sender.cell.site.whole].append(place)
    for site, places in by_site.items():
        chosen = [senders[place] for place in places]
        if site.kind in ("z", "pattern"):
            z = torch.stack([_patched_z(model, sender) for sender in chosen])
            written, was = through(model.layers[site.layer], model.family.from_z, z), Site(site.layer, "attn_out")
        else:
            written, was = torch.stack([_source(sender, site.kind, model) for sender in chosen]), site
        for place, change in zip(places, written - torch.stack([s.base(was) for s in chosen]), strict=True):
            changes[place] = change
    return torch.stack(changes) if changes else torch.empty(0, model.d_model)


def _patched_z(model: LanguageModel, sender: _Sender) -> Float[Tensor, " width"]:
    """For pattern: the product of the source's weights with the base run's values."""
    cell, heads = sender.cell, model.head_count
    z = sender.base(Site(cell.site.layer, "z")).clone()
    by_heads = z.view(heads, -1)
    chosen = range(heads) if cell.site.head is None else [cell.site.head]
    given = sender.patch.source.activation(cell.site, cell.position, heads).view(len(chosen), -1)
    values, shared = sender.patch.base.values[cell.site.layer], heads // model.head_counts["v"]
    for head, found in zip(chosen, given, strict=True):
        by_heads[head] = found if cell.site.kind == "z" else found @ values[head // shared]
    return z


def _source(sender: _Sender, kind: str, model: LanguageModel) -> Float[Tensor, " d_model"]:
    return sender.patch.source.activation(sender.cell.site, sender.cell.position, model.head_counts.get(kind, 1))
