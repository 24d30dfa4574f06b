"""Attribution patching: estimates the effects of patches to first order, from gradients.

The effect of replacing an activation a of the base run by that of the source run is estimated as (a_source - a_base) .
g, where g is the gradient of the logit difference at a in the base run (Nanda 2023, "Attribution patching: activation
patching at industrial scale"). One forward and one backward pass estimate all cells of a grid. An estimate uses only
the base run, and so inherits the asymmetry of denoise and noise: for one half of an AND whose other half is missing it
is 0.

Two corrections are from Kramar et al. 2024, "AtP*: an efficient and scalable method for localizing LLM behaviour to
components". First, a saturated softmax has no gradient: for q and k, attention is computed exactly with the patched
value, and only the effect of the change of z is taken from the gradient. Second, GradDrop: a component's direct and
indirect effects may cancel. Therefore the gradient is computed once for each layer, with the part through that layer
dropped, and the estimate is the mean of the absolute estimates over all layers except the component's own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from actstore_api.records.patching import Screen
from actstore_storage.format.sites import HEAD_KINDS, Site
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.taps import Change, Edit, by_head, changing, writing
from actstore_worker.patching.kernels.full import INDIRECT, Cell
from actstore_worker.patching.kernels.recording import Recording

# A site's share of the effect, for each gradient: [drop, position, head]. Kinds without heads have one head.
_Terms = dict[Site, Float[Tensor, "drop position head"]]
# The layer whose gradient is dropped; None: no layer's.
_Drops = Sequence[int | None]
_CORRECTED = ("q", "k")
# A backward pass needs all intermediate values, so its batches are smaller by this factor.
_GRAPH_SHARE = 4


@dataclass(frozen=True)
class _Runs:
    model: LanguageModel
    base: Recording
    source: Recording


def estimate_effects(
    model: LanguageModel,
    base: Recording,
    source: Recording,
    answers: tuple[int, int],
    patches: Sequence[Sequence[Cell]],
    screen: Screen,
    tokens_at_once: int,
) -> npt.NDArray[np.float64]:
    """Estimates by how much each patch would change logit(answers[0]) - logit(answers[1]) at the last position.

    The cells of a patch are at one site, at any positions, and both recordings must have the sites. With
    `screen.grad_drop` no estimate is negative. A batch has at most `tokens_at_once` tokens, and at least one prompt.
    """
    dropping = screen.grad_drop and model.layer_count > 1
    drops: _Drops = range(model.layer_count) if dropping else [None]
    rows, graph_rows = (max(1, tokens_at_once // share // len(base.tokens)) for share in (1, _GRAPH_SHARE))
    runs = _Runs(model, base, source)
    parts = [
        _summed(_terms(runs, answers, patches, screen, drops[first : first + graph_rows], rows), patches)
        for first in range(0, len(drops), graph_rows)
    ]
    found: npt.NDArray[np.float64] = np.concatenate(parts)
    if dropping:
        own = np.array([cells[0].site.layer for cells in patches])
        others = np.arange(model.layer_count)[:, None] != own
        found = (np.abs(found) * others).sum(0, keepdims=True) / (model.layer_count - 1)
    estimates: npt.NDArray[np.float64] = np.abs(found[0]) if screen.grad_drop else found[0]
    return estimates


def site_gradients(
    model: LanguageModel,
    tokens: Sequence[int],
    answers: tuple[int, int],
    sites: Iterable[Site],
    drops: _Drops = (None,),
) -> dict[Site, Float[Tensor, "drop position head width"]]:
    """Returns gradients of logit(answers[0]) - logit(answers[1]) at the last position, at sites that can be written. In
    row i no gradient flows through what layer drops[i] adds to the residual.
    """
    wanted, probes, clean, corrupt = list(sites), dict[Site, Tensor](), *answers
    with torch.inference_mode(False), torch.enable_grad():
        ids = torch.tensor([list(tokens)] * len(drops), device=model.device)
        with changing(model, _probing(wanted, drops, probes), ids.shape):
            logits = model.module(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1]
        difference = (logits[:, clean] - logits[:, corrupt]).sum()
        found = torch.autograd.grad(difference, [probes[site] for site in wanted])
    return {site: by_head(model, site.kind, gradient) for site, gradient in zip(wanted, found, strict=True)}


def _probing(sites: Sequence[Site], drops: _Drops, probes: dict[Site, Tensor]) -> dict[Site, Change]:
    """Adds zeros at sites, so that gradients with respect to them exist, and drops layers from the backward pass."""
    incoming: dict[int, Tensor] = {}

    def change(site: Site) -> Change:
        def changed(found: Tensor) -> Tensor:
            if site.kind == "resid_post" and site.layer in drops:
                found = _dropped(incoming[site.layer], found, [drop == site.layer for drop in drops])
            if site in sites:
                probes[site] = torch.zeros_like(found, requires_grad=True)
                found = found + probes[site]
            if site.kind == "resid_pre":
                incoming[site.layer] = found
            return found

        return changed

    ends = [Site(layer, kind) for layer in drops if layer is not None for kind in ("resid_pre", "resid_post")]
    return {site: change(site) for site in (*sites, *ends)}


def _dropped(incoming: Tensor, outgoing: Tensor, rows: Sequence[bool]) -> Tensor:
    """Returns the same numbers, but in the dropped rows only the layer's input receives a gradient."""
    through = outgoing.detach() + (incoming - incoming.detach())
    return torch.where(torch.tensor(rows, device=outgoing.device)[:, None, None], through, outgoing)


def _terms(
    runs: _Runs,
    answers: tuple[int, int],
    patches: Sequence[Sequence[Cell]],
    screen: Screen,
    drops: _Drops,
    rows: int,
) -> _Terms:
    corrected, plain = set[Site](), set[Site]()
    for site in {cell.site.whole for cells in patches for cell in cells}:
        (corrected if screen.qk_correction and site.kind in _CORRECTED else plain).add(site)
    targets = {_target(site) for site in plain} | {Site(site.layer, "z") for site in corrected}
    gradients = site_gradients(runs.model, runs.base.tokens.tolist(), answers, targets, drops)
    terms: _Terms = {}
    for site in plain:
        terms[site] = torch.einsum("phw,dphw->dph", _change(runs, site), gradients[_target(site)])
    queries = [site.layer for site in corrected if site.kind == "q"]
    if queries:
        terms |= _query_terms(runs, queries, gradients)
    keys = [site.layer for site in corrected if site.kind == "k"]
    if keys:
        positions = sorted({cell.position for cells in patches for cell in cells if cell.site.kind == "k"})
        terms |= _key_terms(runs, keys, positions, gradients, rows)
    return terms


def _target(site: Site) -> Site:
    """Returns where a patch of this site is written: the change there equals the change at the site."""
    return Site(site.layer, INDIRECT.get(site.kind, site.kind))


def _change(runs: _Runs, site: Site) -> Float[Tensor, "position head width"]:
    """Returns the change from base to source where it is written; for pattern, in the weighted sum of the base run's
    values.
    """
    change = runs.source.activations[site] - runs.base.activations[site]
    by_heads: Tensor = change.unflatten(-1, (runs.model.head_counts[site.kind] if site.kind in HEAD_KINDS else 1, -1))
    if site.kind != "pattern":
        return by_heads
    values = runs.base.values[site.layer].repeat_interleave(runs.model.head_count // runs.model.head_counts["v"], dim=0)
    return torch.einsum("qhk,hkw->qhw", by_heads, values)


def _query_terms(
    runs: _Runs,
    layers: Sequence[int],
    gradients: Mapping[Site, Tensor],
) -> _Terms:
    """A query affects only z of its own position and head, so all queries are replaced at once."""
    terms: _Terms = {}

    def see(layer: int, moved: Tensor) -> None:
        terms[Site(layer, "q")] = torch.einsum("phw,dphw->dph", moved[0], gradients[Site(layer, "z")])

    _watch_moved_z(runs, "q", layers, [range(len(runs.base.tokens))], see)
    return terms


def _key_terms(
    runs: _Runs,
    layers: Sequence[int],
    positions: Sequence[int],
    gradients: Mapping[Site, Tensor],
    rows: int,
) -> _Terms:
    """A key affects all positions from its own on, in the heads that share it: one row per position."""
    shared = runs.model.head_counts["k"], -1
    terms = {}
    for layer in layers:
        whole = gradients[Site(layer, "z")]
        terms[Site(layer, "k")] = whole.new_zeros(len(whole), len(runs.base.tokens), runs.model.head_counts["k"])
    for replaced in _batches(positions, rows):

        def see(layer: int, moved: Tensor, replaced: Sequence[int] = replaced) -> None:
            by_query_head = torch.einsum("rphw,dphw->drh", moved, gradients[Site(layer, "z")])
            terms[Site(layer, "k")][:, replaced] = by_query_head.unflatten(-1, shared).sum(-1)

        _watch_moved_z(runs, "k", layers, [[position] for position in replaced], see)
    return terms


def _batches(positions: Sequence[int], rows: int) -> Iterator[Sequence[int]]:
    """Yields batches; one row of each is the run with nothing patched."""
    size = max(1, rows - 1)
    return (positions[first : first + size] for first in range(0, len(positions), size))


@torch.inference_mode()
def _watch_moved_z(
    runs: _Runs,
    kind: str,
    layers: Sequence[int],
    replaced: Sequence[Sequence[int]],
    see: Callable[[int, Float[Tensor, "row position head d_head"]], None],
) -> None:
    """Returns, for each layer, how much z changes and where if, in row i, q or k of all its heads come from the source
    run at positions replaced[i]. Each layer gets the base run's residual, so one pass gives the result for each layer
    alone.
    """
    heads = runs.model.head_counts[kind]
    rows = [row for row, positions in enumerate(replaced) for _ in positions]
    places = [position for positions in replaced for position in positions]

    def resetting(layer: int) -> Edit:
        def reset(residual: Tensor) -> None:
            residual[:, :, 0] = runs.base.residuals[layer]

        return reset

    def replacing(layer: int) -> Edit:
        values = runs.source.activations[Site(layer, kind)].unflatten(-1, (heads, -1))

        def replace(by_heads: Tensor) -> None:
            by_heads[rows, places] = values[places]

        return replace

    def seeing(layer: int) -> Edit:
        return lambda z: see(layer, z[:-1] - z[-1])

    edits: dict[Site, Edit] = {Site(layer, "resid_pre"): resetting(layer) for layer in range(runs.model.layer_count)}
    for layer in layers:
        edits |= {Site(layer, kind): replacing(layer), Site(layer, "z"): seeing(layer)}
    ids = runs.base.tokens.expand(len(replaced) + 1, -1)
    with changing(runs.model, writing(runs.model, edits), ids.shape):
        runs.model.module(input_ids=ids, use_cache=False, logits_to_keep=1)


def _summed(terms: _Terms, patches: Sequence[Sequence[Cell]]) -> npt.NDArray[np.float64]:
    """Sums estimates to [drop, patch]."""
    found = {site: values.double().cpu().numpy() for site, values in terms.items()}
    return np.stack([sum((_term(found, cell) for cell in cells), np.zeros(())) for cells in patches], axis=-1)


def _term(terms: Mapping[Site, npt.NDArray[np.float64]], cell: Cell) -> npt.NDArray[np.float64]:
    heads = terms[cell.site.whole][:, cell.position]
    found: npt.NDArray[np.float64] = heads.sum(-1) if cell.site.head is None else heads[:, cell.site.head]
    return found
