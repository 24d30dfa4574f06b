"""Path patching: what goes from one component straight into others, and nothing else.

Three runs, as published (Wang et al. 2022, "Interpretability in the wild", section 3.1 and appendix B; Goldowsky-Dill
et al. 2023, "Localizing model behavior with path patching"). 1: both prompts, unpatched. 2: the base run with the
sender's activation from the source run, and every attention (and, unless told otherwise, every MLP) held at what it
writes in the base run; it gives what the receivers are. 3: the base run with the receivers as they are in 2, at every
position, and all that follows them free. `frozen_paths.py` does just that.

Here the second run is not run. Attention is held, so nothing moves between positions: what the sender changes in the
residual at its position is added to the base run's stream there, and the receivers read that. And the third run is one
patch of the receivers, which any kernel computes.
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

# Of a layer's computing, where the MLP is four times as wide as the residual: the MLP, and what makes q, k or v of the
# residual, with the change and without.
_MLP, _PROJECTIONS = 8 / 12, 2 / 12


class Paths:
    """A kernel whose patches say what sends; `kernel` computes what becomes of the receivers. The cells of a patch are
    of one site, at any positions. Patches without cells are the base run, as the kernel computes it; those whose cells
    reach no receiver are the base run itself.
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
        """Token-layers of what is computed between senders and receivers, each at its own position."""
        if not cells:
            return 0.0
        begin, through_mlps = enters(cells[0].site), _recomputed(self._model, self._receivers)
        read = [site for site in {site.whole for site in self._receivers.sites} if begin <= self._receivers.reads(site)]
        end = max(map(self._receivers.reads, read), default=begin)
        mlps = sum(begin <= point < end for point in through_mlps) + sum(site.kind == "mlp_out" for site in read)
        return len(cells) * (mlps * _MLP + sum(site.kind in HEAD_KINDS for site in read) * _PROJECTIONS)


@dataclass(frozen=True)
class _Received:
    """The base run, but for what receivers are by (site, position)."""

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
        """All heads, where the site has heads."""
        return self.patch.base.activations[site.whole][self.cell.position]

    def stream(self, point: Point) -> Float[Tensor, " d_model"]:
        """Of the base run."""
        layer, middle = point
        before = self.patch.base.residuals[layer][self.cell.position]
        return before + self.base(Site(layer, "attn_out")) if middle else before


def receiving(model: LanguageModel, receivers: Receivers, patches: Sequence[Patch]) -> list[Patch]:
    """For each patch, whose cells send, one whose cells are the receivers, as they are in the second run."""
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
    """Layers whose MLPs make what they will of what has been sent, by where they read it."""
    layers = range(model.layer_count) if receivers.through_mlps and "mlp_out" in model.kinds else ()
    return {receivers.reads(Site(layer, "mlp_out")): layer for layer in layers}


def _received(
    model: LanguageModel, receivers: Receivers, senders: Sequence[_Sender]
) -> dict[Site, dict[int, Float[Tensor, " width"]]]:
    """By receiver, all heads of it, and place among the senders: what each receiver is. Those that nothing reaches are
    left out.
    """
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
    """What a receiver makes of a stream, at each sender's position."""
    if site.kind == "resid_post":
        return stream
    if site.kind == "mlp_out":
        return through(model.layers[site.layer], model.family.from_middle, stream)
    # By difference: what else goes into it at that position, such as a position's embedding, stays as it is.
    before = torch.stack([sender.stream((site.layer, 0)) for sender in senders])
    change = _projected(model, site, stream) - _projected(model, site, before)
    return torch.stack([sender.base(site) for sender in senders]) + change


def _projected(model: LanguageModel, site: Site, stream: Float[Tensor, "sender d_model"]) -> Tensor:
    """q, k or v of all heads."""
    path = model.family.taps[site.kind].path
    fused = through(model.layers[site.layer], (model.family.attention_norm, path), stream)
    return by_head(model, site.kind, fused[None])[0].flatten(1)


def _changes(model: LanguageModel, senders: Sequence[_Sender]) -> Float[Tensor, "sender d_model"]:
    """Of the residual, where each sender writes into it."""
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
    """Of pattern: what the source's weights make of the base run's values."""
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
