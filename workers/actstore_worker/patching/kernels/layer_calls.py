"""What transformers tells a layer beside its input: seen once for a whole prompt, and cut to the positions that run."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from actstore_worker.models.attention import using_attention
from actstore_worker.models.model import LanguageModel

# By transformers' names; a cache of keys and values has one of two.
CACHES = ("past_key_values", "layer_past")


class Unresumable(Exception):
    """Layers of this model want to be told what we do not know for the middle of a prompt."""


class Enough(Exception):  # no error: it leaves a layer once its keys and values are there
    pass


def watch_layers(model: LanguageModel, length: int) -> list[dict[str, Any]]:
    """What transformers tells each layer beside its input, for prompts of this length: masks, which eager attention
    gets in full, and rotary embeddings. The layers compute nothing.
    """
    seen: list[dict[str, Any]] = []

    def see(module: Any, hidden: Tensor, *inputs: Any, **keywords: Any) -> Tensor:
        bound = signature(type(module).forward).bind(module, hidden, *inputs, **keywords).arguments
        bound |= bound.pop("kwargs", {})
        seen.append({name: value for name, value in bound.items() if name not in ("self", "hidden_states")})
        return hidden

    with ExitStack() as stack:
        for layer in model.layers:
            stack.enter_context(_calling(layer, partial(see, layer)))
        stack.enter_context(using_attention(model, "eager"))
        ids = torch.zeros(1, length, dtype=torch.long, device=model.device)
        model.family.decoder(model.module)(input_ids=ids, use_cache=False)
    return seen


@contextmanager
def _calling(layer: nn.Module, instead: Callable[..., Tensor]) -> Iterator[None]:
    """While it lasts, the layer computes so. What was set on it before (a device's hooks are) comes back."""
    before = vars(layer).get("forward")
    vars(layer)["forward"] = instead
    try:
        yield
    finally:
        vars(layer).pop("forward")
        if before is not None:
            vars(layer)["forward"] = before


def check_call(call: dict[str, Any]) -> None:
    """Raises Unresumable for a layer that is told what is not known for the middle of a prompt."""
    if not set(CACHES) & set(call):
        raise Unresumable("a layer's forward takes no cache of keys and values")
    for name, value in call.items():
        if isinstance(value, Tensor) and name not in ("attention_mask", "position_ids"):
            raise Unresumable(f"a layer's forward takes {name}, which a partial forward pass cannot supply")


def told(call: Mapping[str, Any], cache: object, positions: slice | Int[Tensor, " token"]) -> dict[str, Any]:
    """What a layer is told for some positions of the prompts that `call` is of, with this cache of keys and values."""
    found: dict[str, Any] = {}
    for name, value in call.items():
        if name in CACHES:
            found[name] = cache
        elif name == "attention_mask":
            found[name] = value[..., positions, :]
        elif name == "position_ids" and value is not None:
            found[name] = value[..., positions]
        elif name == "position_embeddings":
            found[name] = tuple(part[..., positions, :] for part in value)
        else:
            found[name] = value
    return found
