"""Partial forward passes: patched runs that compute only what the patch can change.

A patch at layer l and position p leaves the layers before l unchanged and, because attention is causal, also the
positions before p. So its row joins the batch at layer l with the base run's residual from about p on, attention uses
the base run's keys and values for earlier positions, and in the last layer only the last position is needed. All
patches whose first positions are in one group of positions share a batch, which grows from layer to layer.

A patch of one activation, except q, k, v and pattern, changes one position of the residual between two layers. This is
computed for all patches of a site at once. If attention can be hooked, `joining` computes the next layer, most of which
equals the base run's, and `ragged` the layers after that, in which each row has its own first position.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from actstore_api.records.patching import SweepKernel
from actstore_storage.format.sites import Site
from actstore_worker.models.attention import can_attend, seeing
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.taps import changing, writing
from actstore_worker.patching.kernels.between_layers import BETWEEN, between_layers
from actstore_worker.patching.kernels.full import Cell, Count, Found, Patch, site_edits
from actstore_worker.patching.kernels.joining import Joining, join_layer, later_share
from actstore_worker.patching.kernels.layer_calls import Enough, Unresumable, check_call, told, watch_layers
from actstore_worker.patching.kernels.ragged import PROJECTIONS, Ragged, Run
from actstore_worker.patching.kernels.scattered import stacked

# Patches that begin within this many positions share a batch. Smaller groups waste less, larger ones fill a batch
# better.
GROUP_POSITIONS = 8
# Tokens of a batch in which every patch has its own first position. More tokens fill a batch better, but waste more of
# the padding that attention needs.
BATCH_TOKENS = 2048
# The number of prompt lengths whose masks and rotary embeddings are cached.
_LENGTHS_KEPT = 4
# Kinds whose patch changes the residual at its own position only, until the next layer.
_OWN_POSITION = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "z", "resid_post")
# A patch without cells is computed like a patch of this site with the base run's own value.
_NOTHING = Cell(Site(0, "resid_pre"), 0)


@dataclass(frozen=True)
class _Row:
    """A patch in the batch. It joins at `layer`, with the residual of its base run except for `at_one` position."""

    number: int
    patch: Patch
    layer: int
    at_one: Joining | None = None

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells that are not written yet."""
        return self.patch.cells if self.at_one is None else ()


class Resumed:
    """The kernel for causal models whose layers can be called separately: all families except encoders.

    Raises Unresumable for others.
    """

    name: SweepKernel = "resumed"

    def __init__(self, model: LanguageModel, group_positions: int = GROUP_POSITIONS) -> None:
        if not model.family.causal:
            raise Unresumable(f"attention of {model.name} is not causal")
        self._model, self._group_positions = model, group_positions
        self._calls = lru_cache(_LENGTHS_KEPT)(partial(watch_layers, model))
        self._can_join, self._later_share = can_attend(model), later_share(model)
        self._last = model.layer_count - 1
        self.count = Count()
        for call in self._calls(1):
            check_call(call)

    def price(self, cells: Sequence[Cell], length: int) -> float:
        cells = cells or (_NOTHING,)
        positions, last = length - self._group(cells), self._last
        if not _is_own_position(cells):
            layers = last - min(cell.site.layer for cell in cells)
            inside = any(_is_inside(cell, last) for cell in cells)
            return float(positions * layers + (positions if inside else _last_layer(positions)))
        layers, later = last - _joins_at(cells[0]), length - 1 - cells[0].position
        if layers < 0:
            return 0.0
        if not self._can_join:
            return float(positions * layers + _last_layer(positions))
        if not layers:
            return self._joined(min(later, 1))
        return self._joined(later) + (later + 1) * (layers - 1) + _last_layer(later + 1)

    def _joined(self, later: int) -> float:
        """Token-layers of such a run, if this many later positions are needed."""
        return 1 + later * self._later_share

    @torch.inference_mode()
    def run(self, patches: Sequence[Patch]) -> Float[Tensor, "patch vocabulary"]:
        rows, last = self._rows(patches), dict[int, Float[Tensor, " d_model"]]()
        at_one = [row for row in rows if row.at_one is not None] if self._can_join else []
        self._calls(len(patches[0].base.tokens))  # Recorded with the attention implementation unchanged.
        with seeing(self._model):
            for row, residual in self._run_at_one(at_one):
                last[row.number] = residual
        groups: dict[int, list[_Row]] = defaultdict(list)
        for row in rows:
            if row.at_one is None or not self._can_join:
                groups[self._group(row.patch.cells)].append(row)
        for first, found in groups.items():
            for row, residual in zip(found, self._run_group(found, first), strict=True):
                last[row.number] = residual
        self.count.add(0, sum(len(patch.base.tokens) for patch in patches) * self._model.layer_count)
        return self._unembed(torch.stack([last[number] for number in range(len(patches))]))

    def _rows(self, patches: Sequence[Patch]) -> list[_Row]:
        """Returns rows in order of the layer at which they join."""
        single: dict[Site, list[tuple[int, Patch]]] = defaultdict(list)
        rows = []
        for number, patch in enumerate(patches):
            if not patch.cells:
                rows.append(_Row(number, patch, 0, Joining(patch.base, 0, patch.base.residuals[0][0])))
            elif _is_own_position(patch.cells):
                site = patch.cells[0].site
                single[Site(site.layer, site.kind)].append((number, patch))
            else:
                rows.append(_Row(number, patch, min(cell.site.layer for cell in patch.cells)))
        for site, found in single.items():
            residuals = between_layers(self._model, site, [patch for _, patch in found])
            for (number, patch), residual in zip(found, residuals, strict=True):
                cell = patch.cells[0]
                rows.append(_Row(number, patch, _joins_at(cell), Joining(patch.base, cell.position, residual)))
        return sorted(rows, key=lambda row: row.layer)

    def _group(self, cells: Sequence[Cell]) -> int:
        """Returns the first position of the group of positions that share a batch."""
        return _first(cells) - _first(cells) % self._group_positions

    def _run_at_one(self, rows: Sequence[_Row]) -> Iterator[tuple[_Row, Float[Tensor, " d_model"]]]:
        """Returns the last layer's output at the last position, for rows that join with one changed position."""
        runs: list[tuple[_Row, Run]] = []
        for layer, joining in groupby(rows, key=lambda row: row.layer):
            if layer < self._model.layer_count:
                runs += self._join(layer, list(joining))
            else:
                yield from ((row, _residual(row, len(row.patch.base.tokens) - 1)[0]) for row in joining)
        runs.sort(key=lambda found: found[1].position)
        for batch in _batches(runs):
            batch.sort(key=lambda found: found[1].layer)
            ragged = Ragged(self._model, self._calls(len(batch[0][1].base.tokens)), self.count)
            yield from zip((row for row, _ in batch), ragged.last_residuals([run for _, run in batch]), strict=True)

    def _join(self, layer: int, rows: Sequence[_Row]) -> Iterator[tuple[_Row, Run]]:
        """Computes all rows that join at the layer at once: there is little to compute, and the layer's weights are
        read only once.
        """
        joining = [row.at_one for row in rows if row.at_one is not None]
        length, first = len(joining[0].base.tokens), min(at_one.position for at_one in joining)
        start = first if layer < self._model.layer_count - 1 else length - 1
        out = join_layer(self._model, layer, self._calls(length)[layer], joining, first, start)
        for row, at_one, residuals in zip(rows, joining, out, strict=True):
            seen = max(start, at_one.position)
            self.count.add(self._joined(length - max(start, at_one.position + 1)), 0)
            yield row, Run(at_one.base, layer, at_one.position, residuals[seen - start :])

    def _run_group(self, rows: list[_Row], first: int) -> Float[Tensor, "row d_model"]:
        """Returns the last layer's output at the last position."""
        length, layers = len(rows[0].patch.base.tokens), self._model.layer_count
        calls = self._calls(length)
        hidden, there = rows[0].patch.base.residuals[0][None, first:][:0], 0
        for layer in range(layers + 1):
            joining = [row for row in rows[there:] if row.layer == layer]
            hidden = torch.cat([hidden, *(_residual(row, first)[None] for row in joining)])
            there += len(joining)
            if there and layer < layers - 1:
                hidden = self._layer(calls[layer], layer, hidden, rows[:there], first)
            elif there and layer == layers - 1:
                hidden = self._by_need(calls[layer], layer, hidden, rows[:there], first)
        return hidden[:, -1]

    def _by_need(
        self, call: dict[str, Any], layer: int, hidden: Tensor, rows: Sequence[_Row], first: int
    ) -> Float[Tensor, "row position d_model"]:
        """Separates rows that are written inside the last layer, which need all of it, from others, which do not."""
        inside = torch.tensor([any(_is_inside(cell, layer) for cell in row.cells) for row in rows])
        if inside.all() or not inside.any():
            return self._layer(call, layer, hidden, rows, first)
        found = hidden.clone()
        for chosen in (inside, ~inside):
            some = [row for row, wanted in zip(rows, chosen.tolist(), strict=True) if wanted]
            found[chosen] = self._layer(call, layer, hidden[chosen], some, first)
        return found

    def _layer(
        self, call: dict[str, Any], layer: int, hidden: Tensor, rows: Sequence[_Row], first: int
    ) -> Float[Tensor, "row position d_model"]:
        cells = [(i, cell, row.patch.source) for i, row in enumerate(rows) for cell in row.cells]
        here = [found for found in cells if found[1].site.layer == layer]
        before = [found for found in here if found[1].site.kind == "resid_pre"]
        after = [found for found in here if found[1].site.kind == "resid_post"]
        inside = [found for found in here if _is_inside(found[1], layer)]
        hidden = _written(hidden, before, first)
        bases = [row.patch.base for row in rows]
        prefix = _Prefix(
            hidden,
            stacked(bases, lambda base: base.keys[layer][:, :first]),
            stacked(bases, lambda base: base.values[layer][:, :first]),
        )
        if layer == self._model.layer_count - 1 and not inside and hidden.shape[1] > 1:
            out = self._last_position(call, layer, hidden, prefix, first)
        else:
            edits = site_edits(self._model, inside, first, prefix)
            with changing(self._model, writing(self._model, edits), hidden.shape[:2]):
                out = self._call(call, layer, hidden, prefix, slice(first, None))
            self.count.add(hidden.shape[0] * hidden.shape[1], 0)
        return _written(out, after, first)

    def _last_position(
        self, call: dict[str, Any], layer: int, hidden: Tensor, prefix: "_Prefix", first: int
    ) -> Float[Tensor, "row position d_model"]:
        """In the last layer only the last position is needed, and the others only for their keys and values. The layer
        is left as soon as it has those, and called again for the last position.
        """
        last, before = first + hidden.shape[1] - 1, replace(prefix, leaves=True)
        with suppress(Enough):
            self._call(call, layer, hidden[:, :-1], before, slice(first, last))
        out = self._call(call, layer, hidden[:, -1:], replace(before, leaves=False), slice(last, None))
        self.count.add(hidden.shape[0] * _last_layer(hidden.shape[1]), 0)
        return torch.cat([hidden[:, :-1], out], dim=1)

    def _call(self, call: dict[str, Any], layer: int, hidden: Tensor, prefix: "_Prefix", positions: slice) -> Tensor:
        found = self._model.layers[layer](hidden, **told(call, prefix, positions))
        out: Tensor = found[0] if isinstance(found, tuple) else found
        return out

    def _unembed(self, last: Float[Tensor, "patch d_model"]) -> Float[Tensor, "patch vocabulary"]:
        return self._model.unembed(self._model.final_norm(last))


@dataclass
class _Prefix:
    """Passed to a layer as its cache: keys and values [row, kv_head, position, d_head] of earlier positions, and its
    own once computed. `residual` is the layer's input. With `leaves`, the layer ends there.
    """

    residual: Tensor
    keys: Tensor
    values: Tensor
    leaves: bool = False

    def update(self, keys: Tensor, values: Tensor, _layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.keys = torch.cat([self.keys, keys], dim=2)
        self.values = torch.cat([self.values, values], dim=2)
        if self.leaves:
            raise Enough
        return self.keys, self.values


def _is_own_position(cells: Sequence[Cell]) -> bool:
    return len(cells) == 1 and cells[0].site.kind in _OWN_POSITION


def _batches(runs: Sequence[tuple[_Row, Run]]) -> Iterator[list[tuple[_Row, Run]]]:
    batch: list[tuple[_Row, Run]] = []
    tokens = 0
    for row, run in runs:
        after = len(run.base.tokens) - run.position
        if batch and tokens + after > BATCH_TOKENS:
            yield batch
            batch, tokens = [], 0
        batch.append((row, run))
        tokens += after
    if batch:
        yield batch


def _first(cells: Sequence[Cell]) -> int:
    return min(cell.position for cell in cells)


def _joins_at(cell: Cell) -> int:
    return cell.site.layer + (cell.site.kind != "resid_pre")


def _is_inside(cell: Cell, layer: int) -> bool:
    return cell.site.layer == layer and cell.site.kind not in BETWEEN


def _last_layer(positions: int) -> float:
    """The share of the last layer for this many positions, where only the last one is needed: query, key and value
    projections of the others are about a quarter of a layer.
    """
    return 1 + PROJECTIONS * (positions - 1)


def _residual(row: _Row, first: int) -> Float[Tensor, "position d_model"]:
    residual = row.patch.base.residuals[row.layer][first:]
    if row.at_one is None or row.at_one.position < first:
        return residual
    residual = residual.clone()
    residual[row.at_one.position - first] = row.at_one.residual
    return residual


def _written(hidden: Tensor, cells: Sequence[Found], first: int) -> Tensor:
    if not cells:
        return hidden
    hidden = hidden.clone()
    rows = [row for row, _, _ in cells]
    positions = [cell.position - first for _, cell, _ in cells]
    hidden[rows, positions] = torch.stack([source.activation(cell.site, cell.position, 1) for _, cell, source in cells])
    return hidden
