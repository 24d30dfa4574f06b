"""Hooks into attention: reads the queries, keys and values that it uses, and can replace its computation.

In transformers, attention is a function that the configuration names. Our function calls the model's usual one, so all
options of a family (soft caps, windows) apply.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from actstore_worker.models.families.family import upcasts_attention
from actstore_worker.models.model import LanguageModel

# Mixed values [row, query, head, d_head], and attention weights if the function returns them.
Mixed = tuple[Float[Tensor, "row query head d_head"], Tensor | None]
Usual = Callable[..., Mixed]
# transformers' names of attention implementations, with which ours is combined.
_IMPLEMENTATIONS = ("sdpa", "eager")
_PREFIX = "actstore_"
# A family's file has these if its attention is called by name: the table of functions, and an eager function.
_EAGER = "eager_attention_forward"
_CALLED = {"ALL_ATTENTION_FUNCTIONS", _EAGER}


class Attend(Protocol):
    """Replaces a layer's attention function."""

    def __call__(
        self, usual: Usual, query: Float[Tensor, "row head query d_head"], key: Tensor, value: Tensor, mask: Any
    ) -> Mixed:
        """`key` and `value` are [row, kv_head, key, d_head]; `usual` takes the same four."""


_attend: ContextVar[Attend | None] = ContextVar("attend", default=None)


@contextmanager
def using_attention(model: LanguageModel, implementation: str) -> Iterator[None]:
    """Runs the model with another attention implementation. Only eager attention exposes its weights and its whole
    mask.
    """
    module: Any = model.module
    usual = model.attention
    try:
        if usual != implementation:
            module.set_attn_implementation(implementation)
        yield
    finally:
        if usual != implementation:
            module.set_attn_implementation(usual)


@contextmanager
def attending(model: LanguageModel, attend: Attend) -> Iterator[None]:
    """Within this context, the model's layers use this attention function, if attention can be hooked at all."""
    before = _attend.set(attend)
    try:
        with seeing(model):
            yield
    finally:
        _attend.reset(before)


@contextmanager
def seeing(model: LanguageModel) -> Iterator[None]:
    """Used around several `attending`, layer by layer: registers our function with the model once."""
    module: Any = model.module
    ours = _PREFIX + model.attention
    if not can_attend(model) or module.config._attn_implementation == ours:
        yield
        return
    with using_attention(model, ours):
        yield


class Queries:
    """Attends as usual, and keeps the queries of each layer in order, after rotary embedding."""

    def __init__(self) -> None:
        self.kept: list[Float[Tensor, "head position d_head"]] = []

    def __call__(self, usual: Usual, query: Tensor, key: Tensor, value: Tensor, mask: Any) -> Mixed:
        self.kept.append(query[0])
        return usual(query, key, value, mask)


def can_attend(model: LanguageModel) -> bool:
    """Whether attention is a function by name, as in transformers' own families."""
    if upcasts_attention(model.config):
        return False
    files = (vars(sys.modules[type(module).__module__]) for module in model.layers[0].modules())
    return model.attention in _IMPLEMENTATIONS and any(found.keys() >= _CALLED for found in files)


def _register(implementation: str) -> None:
    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **told: Any) -> Mixed:
        eager = getattr(sys.modules[type(module).__module__], _EAGER)
        usual: Usual = partial(ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager), module, **told)
        chosen = _attend.get()
        if chosen is None:  # Another thread's model.
            return usual(query, key, value, attention_mask)
        return chosen(usual, query, key, value, attention_mask)

    AttentionInterface.register(_PREFIX + implementation, attend)
    AttentionMaskInterface.register(_PREFIX + implementation, ALL_MASK_ATTENTION_FUNCTIONS[implementation])


for _implementation in _IMPLEMENTATIONS:
    _register(_implementation)
