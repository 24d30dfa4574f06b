"""The slow reference of path patching: both forward passes, in full."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from actstore_api.records.patching import SweepKernel
from actstore_storage.format.sites import Site
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.taps import Edit, changing, writing
from actstore_worker.patching.kernels.full import Cell, Count, FullForward, Patch, both, patch_edits
from actstore_worker.patching.kernels.receivers import Receivers
from actstore_worker.patching.kernels.recording import Recording


class FrozenPaths:
    """The simple kernel of path patching, for the same patches as `paths.Paths`. Recordings must have z of
    every layer.
    """

    name: SweepKernel = "full"

    def __init__(self, model: LanguageModel, receivers: Receivers) -> None:
        self._model, self._receivers = model, receivers
        self._full = FullForward(model)

    @property
    def count(self) -> Count:
        return self._full.count

    def price(self, cells: Sequence[Cell], length: int) -> float:
        return 2 * self._full.price(cells, length)

    @torch.inference_mode()
    def run(self, patches: Sequence[Patch]) -> Float[Tensor, "patch vocabulary"]:
        seen: dict[Site, Tensor] = {}
        tokens = torch.stack([patch.base.tokens for patch in patches])
        edits = _freezing(self._model, self._receivers, [patch.base for patch in patches], seen)
        for site, edit in patch_edits(self._model, patches).items():
            edits[site] = both(edits[site], edit) if site in edits else edit
        self.count.add(tokens.numel() * self._model.layer_count, 0)
        with changing(self._model, writing(self._model, edits), tokens.shape):
            self._model.module(input_ids=tokens, use_cache=False, logits_to_keep=1)
        return self._full.run([self._pinned(patch, seen, row) for row, patch in enumerate(patches)])

    def _pinned(self, patch: Patch, seen: Mapping[Site, Tensor], row: int) -> Patch:
        """The base run with the receivers' values set to those of the second run."""
        received = {**patch.base.activations, **{site: found[row] for site, found in seen.items()}}
        source = replace(patch.base, activations=received, logits=patch.source.logits)
        last = len(patch.base.tokens) - 1
        cells = (
            Cell(site, position)
            for site in self._receivers.sites
            for position in ([last] if site.kind == "resid_post" else range(last + 1))
        )
        return Patch(patch.base, source, tuple(cells))


def _freezing(
    model: LanguageModel, receivers: Receivers, bases: Sequence[Recording], seen: dict[Site, Tensor]
) -> dict[Site, Edit]:
    """Freezes attention and MLPs to their outputs in the base runs, one per row, and records the receivers' values."""

    def holding(site: Site) -> Edit:
        held = torch.stack([base.activations[site] for base in bases])

        def hold(found: Tensor) -> None:
            found[:] = held.view(found.shape)

        return hold

    def keeping(site: Site) -> Edit:
        return lambda found: seen.__setitem__(site, found.flatten(2).clone())

    edits = {site: keeping(site) for site in {site.whole for site in receivers.sites}}
    kinds = ("z",) if receivers.through_mlps or "mlp_out" not in model.kinds else ("z", "mlp_out")
    for site in (Site(layer, kind) for layer in range(model.layer_count) for kind in kinds):
        edits[site] = both(edits[site], holding(site)) if site in edits else holding(site)
    return edits
