"""Runs a model's trunk and shows what is at its sites. Computes no logits, and stops once the last site was seen.

Sites are read where transformers' modules hand tensors on; never from `hidden_states`, whose last entry has the final
norm applied.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from actstore_storage.format.sites import Site
from actstore_worker.models.model import LanguageModel

See = Callable[[Site, Float[Tensor, "batch position width"]], None]


class _Enough(Exception):  # no error: it leaves the layers that nobody asked for unrun
    pass


def visit(
    model: LanguageModel,
    token_ids: Int[Tensor, "batch position"],
    attention_mask: Bool[Tensor, "batch position"] | None,
    sites: Iterable[Site],
    see: See,
    position_ids: Int[Tensor, "batch position"] | None = None,
) -> None:
    """Call `see` with each site's tensor at the moment when the forward pass has it, so that nothing need be kept.

    Without a mask, padding on the right is harmless where attention is causal: positions count from the left. With
    `position_ids` that begin at 0 again, and without a mask, each such stretch of a row attends to itself alone.
    """
    missing = set(sites)

    def meet(site: Site, tensor: Tensor) -> None:
        see(site, tensor)
        missing.discard(site)
        if not missing:
            raise _Enough

    with ExitStack() as hooks, torch.inference_mode():
        for site in list(missing):
            hooks.callback(_attach(model, site, token_ids.shape, meet).remove)
        if missing:
            _run_until_enough(model, token_ids, attention_mask, position_ids)


def observe(
    model: LanguageModel,
    token_ids: Int[Tensor, "batch position"],
    attention_mask: Bool[Tensor, "batch position"] | None,
    sites: Iterable[Site],
) -> dict[Site, Float[Tensor, "batch position width"]]:
    """Every site's tensor. resid_post of a layer and resid_pre of the next are the same object."""
    seen: dict[Site, Tensor] = {}
    visit(model, token_ids, attention_mask, sites, seen.__setitem__)
    return seen


def _run_until_enough(
    model: LanguageModel, token_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None
) -> None:
    options: dict[str, Any] = {"use_cache": False} if model.family.causal else {}
    if position_ids is not None:
        options["position_ids"] = position_ids
    with suppress(_Enough):
        model.family.decoder(model.module)(input_ids=token_ids, attention_mask=attention_mask, **options)


def _attach(model: LanguageModel, site: Site, shape: torch.Size, meet: See) -> torch.utils.hooks.RemovableHandle:
    """`site` may be one head. Attention weights [batch, head, query, key] are shown as [batch, query, head * key]."""
    tap = model.family.taps[site.kind]
    module = model.layers[site.layer].get_submodule(tap.path)

    def show(tensor: Tensor) -> None:
        if tensor.ndim == 2:  # OPT's MLP sees the rows of all sequences as one list
            tensor = tensor.unflatten(0, shape)
        if tap.select is not None:
            tensor = tap.select(tensor, model.config).flatten(2)
        if site.kind == "pattern":
            tensor = tensor.transpose(1, 2).flatten(2)
        if site.head is not None:
            tensor = tensor.unflatten(-1, (model.head_counts[site.kind], -1))[..., site.head, :]
        meet(site, tensor)

    def on_input(_module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        show(arguments[0] if arguments else keywords["hidden_states"])

    def on_output(_module: nn.Module, _arguments: tuple[Any, ...], output: Any) -> None:
        show(output[tap.item] if isinstance(output, tuple) else output)

    if tap.is_input:
        return module.register_forward_pre_hook(on_input, with_kwargs=True)
    return module.register_forward_hook(on_output)
