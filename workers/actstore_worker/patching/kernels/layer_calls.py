"""The arguments that transformers passes to a layer besides its input: recorded for a whole prompt, and cut to some
positions.
"""

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

# The cache of keys and values has one of two names in transformers.
CACHES = ("past_key_values", "layer_past")


class Unresumable(Exception):
    """Layers of this model need arguments that are unknown for a part of a prompt, so partial forward passes are
    impossible.
    """


class Enough(Exception):  # Not an error: it leaves a layer as soon as its keys and values are computed.
    pass


def watch_layers(model: LanguageModel, length: int) -> list[dict[str, Any]]:
    """Records the arguments that transformers passes to each layer for prompts of this length: masks, which eager
    attention gets in full, and rotary embeddings. The layers compute nothing.
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
    """Within this context, the layer computes this function. A forward that was set on it before, such as a device's
    hook, is restored.
    """
    before = vars(layer).get("forward")
    vars(layer)["forward"] = instead
    try:
        yield
    finally:
        vars(layer).pop("forward")
        if before is not None:
            vars(layer)["forward"] = before


def check_call(call: dict[str, Any]) -> None:
    """Raises Unresumable for a layer whose arguments are unknown for a part of a prompt."""
    if not set(CACHES) & set(call):
        raise Unresumable("a layer's forward takes no cache of keys and values")
    for name, value in call.items():
        if isinstance(value, Tensor) and name not in ("attention_mask", "position_ids"):
            raise Unresumable(f"a layer's forward takes {name}, which a partial forward pass cannot supply")


def told(call: Mapping[str, Any], cache: object, positions: slice | Int[Tensor, " token"]) -> dict[str, Any]:
    """Returns a layer's arguments for some positions of the prompts of `call`, with this cache of keys and values."""
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
