"""The layer at which a patched run joins, where its input differs from the base run's at one position alone.

Of all other positions the queries, keys and values are the base run's. So the layer itself runs at that one position,
and for those after it attention, with the base run's queries, and what its output goes through: its projection, and the
MLP too unless the block is parallel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from actstore_storage.sites import Site
from actstore_worker.model import LanguageModel
from actstore_worker.patching.attending import Mixed, Usual, attending
from actstore_worker.patching.recording import Recording

# What a layer is told beside its input, by transformers' names; a cache of keys and values has one of two.
CACHES = ("past_key_values", "layer_past")
# Of a layer's computing, where the MLP is four times as wide as the residual: the output projection, and both.
_OUTPUT, _OUTPUT_AND_MLP = 1 / 12, 9 / 12


@dataclass(frozen=True)
class Joining:
    """A run that goes into the layer as `base` does, but for `residual` at `position`."""

    base: Recording
    position: int
    residual: Float[Tensor, " d_model"]


def later_share(model: LanguageModel) -> float:
    """Token-layers of a later position of a run that joins; of the joining position it is one."""
    return _OUTPUT_AND_MLP if "resid_mid" in model.kinds else _OUTPUT


def join_layer(
    model: LanguageModel, layer: int, call: Mapping[str, Any], rows: Sequence[Joining], first: int, start: int
) -> Float[Tensor, "row position d_model"]:
    """What comes out of the layer from position `start` on. `call` is what the layer is told of whole prompts, and no
    row's position lies before `first`.
    """
    bases = [row.base for row in rows]
    positions = torch.tensor([row.position for row in rows], device=model.device)
    queries = stacked([base.queries[layer][:, first:] for base in bases]).clone()
    attend = _Attend(queries, positions - first, call["attention_mask"][..., first:, :])
    keys, values = stacked([base.keys[layer] for base in bases]), stacked([base.values[layer] for base in bases])
    residuals = torch.stack([row.residual for row in rows])
    with attending(model, attend):
        found = model.layers[layer](residuals[:, None], **_told(call, _Replaced(keys, values, positions), positions))
    out = stacked([base.residuals[layer + 1][start:] for base in bases]).clone()
    wanted = torch.arange(start, out.shape[1] + start, device=model.device)
    out[wanted == positions[:, None]] = (found[0] if isinstance(found, tuple) else found)[positions >= start, 0]
    later = wanted > positions[:, None]
    if later.any():
        out[later] = _after(model, layer, bases, attend.mixed[:, start - first :].flatten(2), later)
    return out


def stacked(of_rows: Sequence[Float[Tensor, "..."]]) -> Float[Tensor, "row ..."]:
    """A view where all rows have one base."""
    if all(found.data_ptr() == of_rows[0].data_ptr() for found in of_rows):
        return of_rows[0].expand(len(of_rows), *of_rows[0].shape)
    return torch.stack(list(of_rows))


@dataclass
class _Attend:
    """Attention of all positions that the queries are of; to the layer it gives what is its own position's."""

    queries: Float[Tensor, "row head query d_head"]
    places: Int[Tensor, " row"]
    mask: Tensor
    mixed: Float[Tensor, "row query head d_head"] = field(init=False)

    def __call__(self, usual: Usual, query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Mixed:  # noqa: ARG002
        rows = torch.arange(len(self.places), device=query.device)
        self.queries[rows, :, self.places] = query[:, :, 0]
        self.mixed, _ = usual(self.queries, key, value, self.mask)
        return self.mixed[rows, self.places][:, None], None


@dataclass
class _Replaced:
    """What a layer takes for its cache: the base runs' keys and values, but for those at one position of each row."""

    keys: Float[Tensor, "row kv_head position d_head"]
    values: Float[Tensor, "row kv_head position d_head"]
    positions: Int[Tensor, " row"]
    is_compileable: bool = False

    def update(self, keys: Tensor, values: Tensor, _layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return self._with(self.keys, keys), self._with(self.values, values)

    def _with(self, base: Tensor, at_position: Tensor) -> Tensor:
        found = base.clone()
        found[torch.arange(len(found), device=found.device), :, self.positions] = at_position[:, :, 0]
        return found

    def get_seq_length(self, _layer: int = 0) -> int:
        return int(self.keys.shape[2])


def _after(
    model: LanguageModel,
    layer: int,
    bases: Sequence[Recording],
    z: Float[Tensor, "row position width"],
    later: Bool[Tensor, "row position"],
) -> Float[Tensor, "later d_model"]:
    """What comes out of the layer where only attention saw the change."""
    start = len(bases[0].tokens) - z.shape[1]
    family, module = model.family, model.layers[layer]
    attn_out = through(module, family.from_z, z[later])
    if "resid_mid" not in model.kinds:
        was = stacked([base.activations[Site(layer, "attn_out")][start:] for base in bases])
        return stacked([base.residuals[layer + 1][start:] for base in bases])[later] + (attn_out - was[later])
    middle = stacked([base.residuals[layer][start:] for base in bases])[later] + attn_out
    return middle + through(module, family.from_middle, middle)


def through(layer: nn.Module, paths: Sequence[str], found: Tensor) -> Tensor:
    """What a layer's modules make of it, one after the other."""
    for path in paths:
        found = layer.get_submodule(path)(found)
    return found


def _told(call: Mapping[str, Any], cache: _Replaced, positions: Int[Tensor, " row"]) -> dict[str, Any]:
    """What the layer is told, at one position of each row."""
    found: dict[str, Any] = {}
    for name, value in call.items():
        if name in CACHES:
            found[name] = cache
        elif name == "attention_mask":
            found[name] = value[..., positions, :].transpose(0, 2)
        elif name == "position_ids" and value is not None:
            found[name] = value[0, positions, None]
        elif name == "position_embeddings":
            found[name] = tuple(part[0, positions, None] for part in value)
        else:
            found[name] = value
    return found
