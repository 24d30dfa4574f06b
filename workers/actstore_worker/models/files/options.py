"""Options of config.json with which a model is refused, although its family is supported.

With every other value that its family's class accepts, the numbers are right:
tests/worker/models/test_family_options.py has what was tested. Keys that the class does not know are handled elsewhere.
"""

from collections.abc import Mapping
from typing import Any

from transformers.activations import ACT2FN

from actstore_worker.models.families import find_family
from actstore_worker.models.families.family import LONGROPE, Refusal


def _turns_part_of_a_head(config: Any, rope: Mapping[str, Any] | None) -> bool:
    """True for families whose layers cannot do that. "proportional" rotates all dimensions, some of them by 0."""
    rope = rope or {}
    if find_family(config.model_type).turns_part_of_a_head or rope.get("rope_type") == "proportional":
        return False
    return rope.get("partial_rotary_factor") not in (None, 1)


def _has_odd_heads(config: Any, stated: int | None) -> bool:
    if find_family(config.model_type).turns_part_of_a_head or not getattr(config, "rope_parameters", None):
        return False
    return (stated or config.hidden_size // config.num_attention_heads) % 2 == 1


def _lacks_a_window(config: Any, window: int | None) -> bool:
    layers = getattr(config, "layer_types", None) or ()
    return "sliding_attention" in layers and window is None


def _is_unknown_function(_config: Any, name: object) -> bool:
    return name is not None and name not in ACT2FN


_LAYER_TYPES = ("full_attention", "sliding_attention")
# The rope types that were tested: their frequencies depend only on the position, within `context_length`.
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", LONGROPE, "llama3", "proportional")
# For all families; each may have additional ones.
_REFUSALS = (
    Refusal("per_layer_config", lambda config, _: getattr(config, "is_heterogeneous", False), "its layers differ"),
    Refusal(
        "is_causal",
        lambda config, causal: causal not in (None, find_family(config.model_type).causal),
        "attention would be causal where its family's is not, or the reverse",
    ),
    Refusal("use_bidirectional_attention", lambda _, both: bool(both), "a token would also attend to later tokens"),
    Refusal(
        "add_cross_attention",
        lambda _, crossed: bool(crossed),
        "cross-attention needs an encoder, and this model has none",
    ),
    Refusal(
        "do_layer_norm_before",
        lambda _, before: before is False,
        "norms after attention and MLP (as in opt-350m) are not supported",
    ),
    Refusal(
        "word_embed_proj_dim",
        lambda config, width: width not in (None, config.hidden_size),
        "projected embeddings are not supported",
    ),
    Refusal(
        "rope_parameters",
        lambda _, rope: any(isinstance(part, dict) for part in (rope or {}).values()),
        "parameters per layer type are not supported in this family",
    ),
    Refusal(
        "rope_parameters",
        lambda _, rope: bool(rope) and rope.get("rope_type") not in ROPE_TYPES,
        f"its rope_type must be one of {', '.join(ROPE_TYPES)}",
    ),
    Refusal(
        "rope_parameters",
        _turns_part_of_a_head,
        "partial_rotary_factor would rotate a part of each head, but this family rotates whole heads",
    ),
    Refusal("head_dim", _has_odd_heads, "rotary embeddings rotate pairs of dimensions, so it must be even"),
    Refusal(
        "sliding_window", lambda _, window: window is not None and window < 1, "a window must have at least one token"
    ),
    Refusal("sliding_window", _lacks_a_window, "some layers in layer_types use sliding_attention and need a window"),
    Refusal(
        "layer_types",
        lambda _, found: any(kind not in _LAYER_TYPES for kind in found or ()),
        f"only {' and '.join(_LAYER_TYPES)} are supported",
    ),
    *(
        Refusal(name, lambda _, cap: cap is not None and cap <= 0, "a cap must be above 0; null means no cap")
        for name in ("attn_logit_softcapping", "final_logit_softcapping")
    ),
    *(
        Refusal(name, _is_unknown_function, "transformers has no function of this name")
        for name in ("hidden_act", "hidden_activation", "activation_function")
    ),
)
# The number of characters of a value that an error shows.
_SHOWN = 80
# Options that affect what a call returns, but no numbers. Our calls set them explicitly, so config.json may not.
_OF_CALLS: Mapping[str, Any] = {
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "chunk_size_feed_forward": 0,
}


def unsupported_option(config: Any) -> str | None:
    """Returns why such a model is refused, with the option's name; None if it is not."""
    for refusal in (*_REFUSALS, *find_family(config.model_type).refusals):
        value = getattr(config, refusal.option, None)
        if refusal.is_refused(config, value):
            return f"its config.json says {refusal.option} = {str(value)[:_SHOWN]}: {refusal.why}"
    return None


def unset_call_options(config: Any) -> None:
    """Removes options about calls, so that calls return what they would without them in config.json."""
    for option, usual in _OF_CALLS.items():
        setattr(config, option, usual)
