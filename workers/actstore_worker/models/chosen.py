"""The layers and heads that a caller requested; none given means all."""

from collections.abc import Sequence

from actstore_storage.errors import BadRequest
from actstore_worker.models.model import ModelDescription


def chosen_layers(model: ModelDescription, asked: Sequence[int]) -> tuple[int, ...]:
    """Returns the requested layers in order, or all. Errors: BadRequest LAYER_OUT_OF_RANGE."""
    for layer in asked:
        if not 0 <= layer < model.layer_count:
            raise BadRequest(
                f"{model.name!r} has no layer {layer}; its layers are 0 to {model.layer_count - 1}",
                reason="LAYER_OUT_OF_RANGE",
                field="layers",
                value=layer,
                allowed=f"0..{model.layer_count - 1}",
            )
    return tuple(sorted(set(asked))) or tuple(range(model.layer_count))


def chosen_heads(model: ModelDescription, kind: str, asked: Sequence[int]) -> Sequence[int]:
    """Returns the requested heads of a kind in order, or all. If queries share k and v, these have fewer heads.

    Errors: BadRequest SITE_UNKNOWN.
    """
    there = model.head_counts[kind]
    for head in asked:
        if not 0 <= head < there:
            raise BadRequest(
                f"{model.name!r} has no head {head} of {kind}; it has {there}",
                reason="SITE_UNKNOWN",
                field="heads",
                value=head,
                allowed=f"0..{there - 1}",
            )
    return sorted(set(asked)) or range(there)
