"""Computes the residual after a patch of one activation: between two layers, at the one position that it changes."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from actstore_storage.format.sites import Site
from actstore_worker.models.model import LanguageModel
from actstore_worker.patching.kernels.full import Cell, Patch
from actstore_worker.patching.kernels.joining import through

# Kinds of the residual stream between layers.
BETWEEN = ("resid_pre", "resid_post")


def between_layers(model: LanguageModel, site: Site, patches: Sequence[Patch]) -> Float[Tensor, "patch d_model"]:
    """Returns the residual at the patched position, for patches of one cell each, all of this site."""
    family, layer = model.family, model.layers[site.layer]
    cells = [patch.cells[0] for patch in patches]
    value = _values(model, site, patches)
    if site.kind in BETWEEN:
        return value
    if site.kind == "z":
        value = through(layer, family.from_z, value)
    parallel = "resid_mid" not in model.kinds
    before = _stacked(patches, cells, site.layer)
    if site.kind == "mlp_out" or parallel:
        kind = "mlp_out" if site.kind == "mlp_out" else "attn_out"
        was = [patch.base.activations[Site(site.layer, kind)][cell.position] for patch, cell in _zip(patches)]
        return _stacked(patches, cells, site.layer + 1) + (value - torch.stack(was))
    middle = value if site.kind == "resid_mid" else before + value
    return middle + through(layer, family.from_middle, middle)


def _values(model: LanguageModel, site: Site, patches: Sequence[Patch]) -> Float[Tensor, "patch width"]:
    """Returns the site's values at each patch's position; for z, with the base run's values in the other heads."""
    heads = model.head_counts.get(site.kind, 1)
    found = []
    for patch, cell in _zip(patches):
        value = patch.source.activation(cell.site, cell.position, heads)
        if cell.site.head is not None:
            value, patched = patch.base.activations[site][cell.position].clone(), value
            value.view(heads, -1)[cell.site.head] = patched
        found.append(value)
    return torch.stack(found)


def _stacked(patches: Sequence[Patch], cells: Sequence[Cell], layer: int) -> Float[Tensor, "patch d_model"]:
    return torch.stack([p.base.residuals[layer][cell.position] for p, cell in zip(patches, cells, strict=True)])


def _zip(patches: Sequence[Patch]) -> Iterator[tuple[Patch, Cell]]:
    return ((patch, patch.cells[0]) for patch in patches)
