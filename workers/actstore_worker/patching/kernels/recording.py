"""Records unpatched runs of prompts, with everything that patched runs need from them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from actstore_storage.format.sites import Site
from actstore_worker.models.attention import Queries, attending, using_attention
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.taps import Edit, changing, writing


class Source(Protocol):
    """Where replacement activations come from."""

    @property
    def logits(self) -> Float[Tensor, " vocabulary"]:
        """The logits of the unpatched run with which effects are compared."""

    def activation(self, site: Site, position: int, heads: int) -> Float[Tensor, " width"]:
        """Returns the activation for a position of the base run; for one head if the site names one of `heads`."""


@dataclass(frozen=True)
class Recording:
    """One prompt's run. `logits` are those of the last position. `residuals` are each layer's input and, last, the last
    layer's output. `queries`, `keys` and `values` are of each layer, as attention uses them (after rotary embedding);
    queries are missing if attention cannot be hooked. `activations` has sites with concatenated heads; pattern is
    [query, head * key].
    """

    tokens: Int[Tensor, " position"]
    logits: Float[Tensor, " vocabulary"]
    residuals: Sequence[Float[Tensor, "position d_model"]]
    keys: Sequence[Float[Tensor, "kv_head position d_head"]]
    values: Sequence[Float[Tensor, "kv_head position d_head"]]
    activations: Mapping[Site, Float[Tensor, "position width"]]
    queries: Sequence[Float[Tensor, "head position d_head"]] = ()

    def activation(self, site: Site, position: int, heads: int) -> Float[Tensor, " width"]:
        """Returns the activation; for one head if the site names one of `heads`."""
        found = self.activations[site.whole][position]
        return found if site.head is None else found.view(heads, -1)[site.head]


def zeroed(recording: Recording) -> Recording:
    """Returns the same run with zeros as its activations."""
    zeros = {site: torch.zeros_like(found) for site, found in recording.activations.items()}
    return replace(recording, activations=zeros)


@torch.inference_mode()
def record(model: LanguageModel, tokens: Sequence[int], sites: Iterable[Site]) -> Recording:
    """Records a run: one forward pass keeps the activations of `sites` and the outputs of each layer's parts. If
    attention weights are needed, a second pass with eager attention records them.
    """
    ids = torch.tensor(tokens, device=model.device)
    written = (Site(layer, kind) for layer in range(model.layer_count) for kind in model.written_kinds)
    wanted = {*(site.whole for site in sites), *written}
    patterns = {site for site in wanted if site.kind == "pattern"}
    residual_sites = [Site(layer, "resid_pre") for layer in range(model.layer_count)]
    last = Site(model.layer_count - 1, "resid_post")
    kept: dict[Site, Tensor] = {}
    cache, queries = DynamicCache(), Queries()
    seen = {*wanted - patterns, *residual_sites, last}
    with attending(model, queries), changing(model, writing(model, _keepers(seen, kept)), (1, len(tokens))):
        answer = model.module(input_ids=ids[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
    if patterns:
        keepers = writing(model, _keepers(patterns, kept))
        with using_attention(model, "eager"), changing(model, keepers, (1, len(tokens))):
            model.module(input_ids=ids[None], use_cache=False, logits_to_keep=1)
    return Recording(
        tokens=ids,
        logits=answer.logits[0, -1],
        residuals=[kept[site] for site in (*residual_sites, last)],
        keys=[layer.keys[0] for layer in cache.layers],
        values=[layer.values[0] for layer in cache.layers],
        activations={site: kept[site] for site in wanted},
        queries=queries.kept,
    )


def _keepers(sites: Iterable[Site], kept: dict[Site, Tensor]) -> dict[Site, Edit]:
    def keeper(site: Site) -> Edit:
        def keep(by_head: Tensor) -> None:
            kept[site] = by_head[0].flatten(1).clone()

        return keep

    return {site: keeper(site) for site in sites}
