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

from actstore_storage.sites import Site
from actstore_worker.model import LanguageModel

See = Callable[[Site, Float[Tensor, "batch position d_model"]], None]


class _Enough(Exception):  # no error: it leaves the layers that nobody asked for unrun
    pass


def visit(
    model: LanguageModel,
    token_ids: Int[Tensor, "batch position"],
    attention_mask: Bool[Tensor, "batch position"] | None,
    sites: Iterable[Site],
    see: See,
) -> None:
    """Call `see` with each site's tensor at the moment when the forward pass has it, so that nothing need be kept.

    Without a mask, padding on the right is harmless: attention is causal and positions count from the left.
    """
    missing = set(sites)

    def meet(site: Site, tensor: Tensor) -> None:
        see(site, tensor)
        missing.discard(site)
        if not missing:
            raise _Enough

    with ExitStack() as hooks, torch.inference_mode():
        for site in list(missing):
            hooks.callback(_attach(model, site, meet).remove)
        if missing:
            _run_until_enough(model, token_ids, attention_mask)


def observe(
    model: LanguageModel,
    token_ids: Int[Tensor, "batch position"],
    attention_mask: Bool[Tensor, "batch position"] | None,
    sites: Iterable[Site],
) -> dict[Site, Float[Tensor, "batch position d_model"]]:
    """Every site's tensor. resid_post of a layer and resid_pre of the next are the same object."""
    seen: dict[Site, Tensor] = {}
    visit(model, token_ids, attention_mask, sites, seen.__setitem__)
    return seen


def _run_until_enough(model: LanguageModel, token_ids: Tensor, attention_mask: Tensor | None) -> None:
    with suppress(_Enough):
        model.family.decoder(model.module)(input_ids=token_ids, attention_mask=attention_mask, use_cache=False)


def _attach(model: LanguageModel, site: Site, meet: See) -> torch.utils.hooks.RemovableHandle:
    layer = model.family.layers(model.module)[site.layer]
    if site.kind == "resid_pre":
        return layer.register_forward_pre_hook(_on_input(site, meet))
    if site.kind == "resid_mid":
        return model.family.middle(layer).register_forward_pre_hook(_on_input(site, meet))
    if site.kind == "attn_out":
        return model.family.attention(layer).register_forward_hook(_on_output(site, meet))
    if site.kind == "mlp_out":
        return model.family.mlp(layer).register_forward_hook(_on_output(site, meet))
    return layer.register_forward_hook(_on_output(site, meet))


def _on_input(site: Site, meet: See) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
        meet(site, arguments[0])

    return hook


def _on_output(site: Site, meet: See) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(_module: nn.Module, _arguments: tuple[Any, ...], output: Any) -> None:
        meet(site, output[0] if isinstance(output, tuple) else output)

    return hook
