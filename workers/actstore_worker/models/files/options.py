"""Options of config.json with which a model is refused, although its family is known.

With every other value that its family's class takes, the numbers are right: tests/worker/test_family_options.py has
what was tried. Keys that the class does not know are no matter of this file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers.activations import ACT2FN

from actstore_worker.models.attention_only import MODEL_TYPE as ATTENTION_ONLY
from actstore_worker.models.attention_only import SHORTFORMER, STANDARD
from actstore_worker.models.families import LONGROPE, find_family


@dataclass(frozen=True)
class _Refusal:
    """`families`: those that are refused (none: all). `is_refused` takes the configuration and the option's value."""

    option: str
    is_refused: Callable[[Any, Any], bool]
    why: str
    families: tuple[str, ...] = ()


def _turns_part_of_a_head(config: Any, rope: Mapping[str, Any] | None) -> bool:
    """Only GPT-NeoX's layers do. The others' ignore the option, or fail; "proportional" turns all, some of it by 0."""
    rope = rope or {}
    part = rope.get("partial_rotary_factor")
    return part not in (None, 1) and config.model_type != "gpt_neox" and rope.get("rope_type") != "proportional"


def _has_odd_heads(config: Any, stated: int | None) -> bool:
    width = stated or config.hidden_size // config.num_attention_heads
    return bool(getattr(config, "rope_parameters", None)) and config.model_type != "gpt_neox" and width % 2 == 1


def _lacks_a_window(config: Any, window: int | None) -> bool:
    layers = getattr(config, "layer_types", None) or ()
    return "sliding_attention" in layers and window is None


def _is_unknown_function(_config: Any, name: object) -> bool:
    return name is not None and name not in ACT2FN


_LAYER_TYPES = ("full_attention", "sliding_attention")
# Those of transformers that were tried: their frequencies depend on nothing but the position, within `context_length`.
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", LONGROPE, "llama3", "proportional")
_REFUSALS = (
    _Refusal("per_layer_config", lambda config, _: getattr(config, "is_heterogeneous", False), "its layers differ"),
    _Refusal(
        "is_causal",
        lambda config, causal: causal not in (None, find_family(config.model_type).causal),
        "attention would see other tokens than its family's does",
    ),
    _Refusal("use_bidirectional_attention", lambda _, both: bool(both), "a token would depend on those after it"),
    _Refusal("add_cross_attention", lambda _, crossed: bool(crossed), "it reads an encoder, and there is none"),
    _Refusal("is_decoder", lambda _, decoder: decoder, "of BERT, actstore reads encoders", ("bert",)),
    _Refusal(
        "do_layer_norm_before",
        lambda _, before: before is False,
        "it norms after attention and MLP (as opt-350m does), which actstore does not read",
    ),
    _Refusal(
        "word_embed_proj_dim",
        lambda config, width: width not in (None, config.hidden_size),
        "it projects its embeddings, so that its first residual is not what it reads",
    ),
    _Refusal(
        "position_embedding",
        lambda _, kind: kind not in (STANDARD, SHORTFORMER),
        f"only {STANDARD} and {SHORTFORMER} are known",
        (ATTENTION_ONLY,),
    ),
    _Refusal("tie_word_embeddings", lambda _, tied: bool(tied), "its unembedding is one of its own", (ATTENTION_ONLY,)),
    _Refusal(
        "rope_parameters",
        lambda _, rope: any(isinstance(part, dict) for part in (rope or {}).values()),
        "they are by type of layer, which its family does not read",
    ),
    _Refusal(
        "rope_parameters",
        lambda _, rope: bool(rope) and rope.get("rope_type") not in ROPE_TYPES,
        f"its rope_type is none of {', '.join(ROPE_TYPES)}",
    ),
    _Refusal(
        "rope_parameters",
        _turns_part_of_a_head,
        "by partial_rotary_factor a part of each head would be turned, and its family turns whole heads",
    ),
    _Refusal("head_dim", _has_odd_heads, "rotary embeddings turn pairs"),
    _Refusal("sliding_window", lambda _, window: window is not None and window < 1, "a window has a token or more"),
    _Refusal("sliding_window", _lacks_a_window, "some of layer_types are sliding_attention"),
    _Refusal(
        "sliding_window",
        lambda _, window: window is None,
        "its family makes a window's mask for any layer",
        ("gemma2",),
    ),
    _Refusal(
        "layer_types",
        lambda _, found: any(kind not in _LAYER_TYPES for kind in found or ()),
        f"only {' and '.join(_LAYER_TYPES)} are known",
    ),
    *(
        _Refusal(name, lambda _, cap: cap is not None and cap <= 0, "a cap is above 0; null is none")
        for name in ("attn_logit_softcapping", "final_logit_softcapping")
    ),
    *(
        _Refusal(name, _is_unknown_function, "transformers has no function of this name")
        for name in ("hidden_act", "hidden_activation", "activation_function")
    ),
)
# Characters of a value that a refusal shows.
_SHOWN = 80
# Options that decide what a call returns, and no numbers. Each call here says that itself, so config.json may not.
_OF_CALLS: Mapping[str, Any] = {
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "chunk_size_feed_forward": 0,
}


def unsupported_option(config: Any) -> str | None:
    """Why such a model is refused although its family is known, with the option's name; None where it is not."""
    for refusal in _REFUSALS:
        if refusal.families and config.model_type not in refusal.families:
            continue
        value = getattr(config, refusal.option, None)
        if refusal.is_refused(config, value):
            return f"its config.json says {refusal.option} = {str(value)[:_SHOWN]}: {refusal.why}"
    return None


def unset_call_options(config: Any) -> None:
    """Makes calls return what they would if config.json said nothing of it."""
    for option, usual in _OF_CALLS.items():
        setattr(config, option, usual)
