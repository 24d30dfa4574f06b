"""Hooks at a model's sites: activations are read, or changed, where modules pass tensors on.

`visit` and `observe` run the trunk only, compute no logits, and stop after the last requested site. Within `changing`,
the model computes with other activations. Sites are never read from `hidden_states`, whose last entry is after the
final norm.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from actstore_storage.format.sites import HEAD_KINDS, Site
from actstore_worker.models.families.family import Tap
from actstore_worker.models.model import LanguageModel

See = Callable[[Site, Float[Tensor, "batch position width"]], None]
# Takes a site's tensor, [row, position, width], and returns its replacement.
Change = Callable[[Tensor], Tensor]
# Takes a copy of a site's activation as [row, position, head, width of a head], one head for kinds without heads, and
# writes into it.
Edit = Callable[[Tensor], None]
# The common form of both: a change, or None to keep the tensor.
_Hook = Callable[[Tensor], Tensor | None]
# The name of the first argument of transformers' modules.
_FIRST = "hidden_states"


class _Enough(Exception):  # Not an error: it skips the layers that are not needed.
    pass


def visit(
    model: LanguageModel,
    token_ids: Int[Tensor, "batch position"],
    attention_mask: Bool[Tensor, "batch position"] | None,
    sites: Iterable[Site],
    see: See,
    position_ids: Int[Tensor, "batch position"] | None = None,
) -> None:
    """Call `see` with each site's tensor during the forward pass, so that nothing needs to be kept.

    Without a mask, padding on the right is harmless with causal attention: positions count from the left. With
    `position_ids` that start at 0 again, and without a mask, each such part of a row attends to itself only. A site may
    be one head. Attention weights [batch, head, query, key] are passed as [batch, query, head * key].
    """
    missing = set(sites)

    def meet(site: Site, tensor: Tensor) -> None:
        see(site, _shown(model, site, tensor))
        missing.discard(site)
        if not missing:
            raise _Enough

    with ExitStack() as hooks, torch.inference_mode():
        for site in list(missing):
            hooks.callback(_attach(model, site, token_ids.shape, partial(meet, site)).remove)
        if missing:
            _run_until_enough(model, token_ids, attention_mask, position_ids)


def observe(
    model: LanguageModel,
    token_ids: Int[Tensor, "batch position"],
    attention_mask: Bool[Tensor, "batch position"] | None,
    sites: Iterable[Site],
) -> dict[Site, Float[Tensor, "batch position width"]]:
    """Returns every site's tensor. resid_post of a layer and resid_pre of the next are the same object."""
    seen: dict[Site, Tensor] = {}
    visit(model, token_ids, attention_mask, sites, seen.__setitem__)
    return seen


@contextmanager
def changing(model: LanguageModel, changes: Mapping[Site, Change], shape: Sequence[int]) -> Iterator[None]:
    """Within this context, the model computes with those sites changed; for token ids of that shape [row, position]."""
    with ExitStack() as hooks:
        for site, change in changes.items():
            hooks.callback(_attach(model, site, shape, change).remove)
        yield


def writing(model: LanguageModel, edits: Mapping[Site, Edit]) -> dict[Site, Change]:
    """Returns the changes that edits make. `pattern` can only be read: attention has already used its weights."""

    def change(site: Site, edit: Edit) -> Change:
        def changed(found: Tensor) -> Tensor:
            copy = found.clone()
            edit(by_head(model, site.kind, copy))
            return copy

        return changed

    return {site: change(site, edit) for site, edit in edits.items()}


def by_head(model: LanguageModel, kind: str, found: Tensor) -> Tensor:
    """Returns a view [row, position, head, width] of a tap's tensor; for pattern, [row, query, head, key]."""
    tap = model.family.taps[kind]
    if kind == "pattern":
        return found.transpose(1, 2)
    if tap.select is not None:
        return tap.select(found, model.config)
    split: Tensor = found.unflatten(-1, (model.head_counts[kind] if kind in HEAD_KINDS else 1, -1))
    return split


def _shown(model: LanguageModel, site: Site, found: Tensor) -> Float[Tensor, "batch position width"]:
    if site.head is not None:
        return by_head(model, site.kind, found)[..., site.head, :]
    # Without heads it is the module's own tensor, so that identical tensors stay identical.
    return by_head(model, site.kind, found).flatten(2) if site.kind in HEAD_KINDS else found


def _run_until_enough(
    model: LanguageModel, token_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None
) -> None:
    options: dict[str, Any] = {"use_cache": False} if model.family.causal else {}
    if position_ids is not None:
        options["position_ids"] = position_ids
    with suppress(_Enough):
        model.family.decoder(model.module)(input_ids=token_ids, attention_mask=attention_mask, **options)


def _attach(model: LanguageModel, site: Site, shape: Sequence[int], hook: _Hook) -> RemovableHandle:
    """Calls `hook` with the site's tensor, [row, position, width], whenever the model computes it."""
    tap = model.family.taps[site.kind]
    module = model.layers[site.layer].get_submodule(tap.path)
    met = _on_rows(hook, tuple(shape))
    if tap.is_input:
        return module.register_forward_pre_hook(_on_input(met), with_kwargs=True)
    return module.register_forward_hook(_on_output(tap, met))


def _on_rows(hook: _Hook, shape: tuple[int, ...]) -> _Hook:
    """OPT's MLP gets the rows of all sequences as one list."""

    def met(found: Tensor) -> Tensor | None:
        if found.ndim > 2:
            return hook(found)
        changed = hook(found.unflatten(0, shape))
        return None if changed is None else changed.flatten(0, 1)

    return met


def _on_input(hook: _Hook) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]:
    """A module's first argument, which some callers pass by name."""

    def met(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        changed = hook(arguments[0] if arguments else named[_FIRST])
        if changed is None:
            return None
        return ((changed, *arguments[1:]), named) if arguments else ((), named | {_FIRST: changed})

    return met


def _on_output(tap: Tap, hook: _Hook) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
    def met(_module: nn.Module, _arguments: tuple[Any, ...], output: Any) -> Any:
        if not isinstance(output, tuple):
            return hook(output)
        changed = hook(output[tap.item])
        return None if changed is None else (*output[: tap.item], changed, *output[tap.item + 1 :])

    return met
