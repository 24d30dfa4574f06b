"""Checks a loaded model on one short input: does it compute what its family says?

A fork of a known architecture may scale a residual, norm an output, or move a LayerNorm, and every number read from it
would be plausible and wrong. So the activations at its sites must add up: to each other, and to the logits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import Site
from actstore_worker.models.attention import using_attention
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.taps import observe

_TOKENS = 8
# As a fraction of the norm of the compared values. The order of summation here differs from the model's, and each sum
# is rounded to the dtype.
_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}
# The dtype that may overflow where the others do not.
_NARROW = "float16"
# PyTorch has the last one since 2.8.
_OF_DEVICES = (MemoryError, torch.OutOfMemoryError, getattr(torch, "AcceleratorError", MemoryError))
_Seen = dict[Site, Float[Tensor, "1 position width"]]


def check_weights(model: LanguageModel) -> None:
    """Refuses weights that are infinite or NaN: BadRequest MODEL_UNSUPPORTED. Any token that uses them would have no
    valid activations.
    """
    for name, weight in model.module.named_parameters():
        if weight.is_meta or not weight.numel():  # If a model is spread over devices, some parts may be on a disk.
            continue
        ends = torch.stack(torch.aminmax(weight))  # One pass over the values without a copy; NaN propagates.
        if model.dtype == _NARROW and not bool(ends.isnan().any()):
            _check_finite(model, name, ends)
        elif not bool(ends.isfinite().all()):
            raise _unsupported(
                model,
                f"its weight {name} has values that are infinite or NaN: it is damaged, or it diverged in training",
                allowed="finite weights",
            )


def check_wiring(model: LanguageModel) -> None:
    """Runs the model once, and refuses it if its sites do not add up: BadRequest MODEL_UNSUPPORTED with the site, or
    the output, that differs from what is computed from the others, or that is not finite; in float16 with the dtypes
    that could hold it.
    """
    with _refusing_what_fails(model):
        ids = _some_tokens(model)
        seen = _see_all(model, ids)
        for layer in range(model.layer_count):
            _check_block(model, seen, layer)
        out = model.family.layer_output
        for layer, following in pairwise(range(model.layer_count)):
            _compare(model, f"resid_pre.{following}", seen[Site(following, "resid_pre")], seen[Site(layer, out)])
        _check_logits(model, ids, seen[Site(model.layer_count - 1, out)])


def _see_all(model: LanguageModel, ids: Int[Tensor, "1 position"]) -> _Seen:
    sites = [Site(layer, kind) for layer in range(model.layer_count) for kind in _compared(model)]
    with using_attention(model, "eager"):
        return observe(model, ids, None, sites)


def _compared(model: LanguageModel) -> tuple[str, ...]:
    return (*model.kinds, "v", "pattern", "z")


def _check_block(model: LanguageModel, seen: _Seen, layer: int) -> None:
    at = {kind: seen[Site(layer, kind)] for kind in _compared(model)}
    middle = at["resid_pre"] + at["attn_out"]
    if "resid_mid" in at:
        _compare(model, f"resid_mid.{layer}", at["resid_mid"], middle)
    if path := model.family.middle_norm:
        middle = model.layers[layer].get_submodule(path)(middle)
    _compare(model, f"resid_post.{layer}", at["resid_post"], middle + at["mlp_out"] if "mlp_out" in at else middle)
    weights = at["pattern"].unflatten(-1, (model.head_count, -1))  # [1, query, head, key]
    rows = weights.sum(-1)
    _compare(model, f"pattern.{layer}", rows, torch.ones_like(rows))
    values = at["v"].unflatten(-1, (model.head_counts["v"], -1))
    values = values.repeat_interleave(model.head_count // model.head_counts["v"], dim=2)  # [1, key, head, d_head]
    mixed = torch.einsum("bqhk,bkhd->bqhd", weights, values)
    _compare(model, f"z.{layer}", at["z"], mixed.flatten(2))


def _check_logits(model: LanguageModel, ids: Int[Tensor, "1 position"], last: Tensor) -> None:
    """Compares the last residual, through final norm and unembedding, with the model's logits."""
    if not model.family.causal:
        return
    module: Any = model.module
    with torch.inference_mode():
        logits = module(input_ids=ids, use_cache=False).logits
        found = model.unembed(model.final_norm(last))
    _compare(model, "logits", logits, found.to(logits.device))


def _compare(model: LanguageModel, what: str, found: Tensor, expected: Tensor) -> None:
    found, expected = found.float(), expected.to(found.device).float()
    _check_finite(model, what, found)
    _check_finite(model, what, expected)
    distance = torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected).clamp_min(1e-30)
    if not distance <= _TOLERANCE[model.dtype]:  # Also if a norm overflows float32.
        raise _unsupported(
            model,
            f"it does not compute what {model.family.name} models do: {what} differs from the value computed from "
            f"earlier sites by {float(distance):.2g} of its norm",
            allowed=f"a difference of at most {_TOLERANCE[model.dtype]} in {model.dtype}",
        )


def _check_finite(model: LanguageModel, what: str, found: Tensor) -> None:
    if bool(found.isfinite().all()):
        return
    if model.dtype == _NARROW:
        raise BadRequest(
            f"model {model.name!r} overflows float16: {what} has values above {torch.finfo(torch.float16).max:g}, its "
            "largest number; run the model in bfloat16, or in float32",
            reason="MODEL_UNSUPPORTED",
            field="dtype",
            value=model.dtype,
            allowed="bfloat16 or float32",
        )
    raise _unsupported(
        model, f"{what} is not finite in {model.dtype}, although all weights are", allowed="finite activations"
    )


@contextmanager
def _refusing_what_fails(model: LanguageModel) -> Iterator[None]:
    """Turns errors of transformers' code with this configuration, such as sizes that do not fit, into BadRequest
    MODEL_UNSUPPORTED. Errors of the device, such as running out of memory, are not the model's fault.
    """
    try:
        yield
    except (BadRequest, *_OF_DEVICES):
        raise
    except Exception as error:
        why = f"transformers cannot run it with its config.json: {type(error).__name__}: {error}"
        raise _unsupported(model, why) from error


def _unsupported(model: LanguageModel, why: str, **details: str) -> BadRequest:
    message = f"model {model.name!r} cannot be used: {why}"
    return BadRequest(message, reason="MODEL_UNSUPPORTED", field="model", value=model.name, **details)


def _some_tokens(model: LanguageModel) -> Int[Tensor, "1 position"]:
    """Tokens spread over the vocabulary, all different, so that no two positions are alike."""
    count = min(_TOKENS, model.context_length, model.vocabulary_size)
    return (torch.arange(count, device=model.device) * (model.vocabulary_size // count))[None]
