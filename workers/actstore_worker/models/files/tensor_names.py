"""Checks which tensors of a checkpoint a model leaves unused: transformers silently drops tensors without a place.

Without a bias or a layer, the model would be another one with the same name. So unused tensors are refused, except
those that match these patterns, and so are tensors with two names in the files.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from actstore_worker.files.damage import DamagedFile
from actstore_worker.models.families import find_family

_NAMED_MAX = 5
# Full names. These are computed from the configuration, or come after the last layer and are not used.
_LEFT_OVER = tuple(
    re.compile(pattern)
    for pattern in (
        r"(.+\.)?rotary_emb\.inv_freq",  # of RoPE, from its base
        r"(.+\.)?(attn|attention)\.(bias|masked_bias)",  # GPT-2's and GPT-NeoX's causal masks
        r"(.+\.)?embeddings\.position_ids",  # 0, 1, 2 and so on
        r"(.+\.)?decoder\.version",  # OPT's
        r"(score|classifier|qa_outputs|v_head|value_head|reward_head|multiple_choice_head)\..+",  # other tasks' heads
    )
)


def check_tensors(module: Any, report: Mapping[str, Any], in_files: Iterable[str]) -> None:
    """Checks that each tensor of the files has a place in the module and the reverse, by transformers' report.

    Errors: DamagedFile with the names.
    """
    optional = find_family(module.config.model_type).optional_tensors
    missing = {name for name in report["missing_keys"] if optional is None or not optional.fullmatch(name)}
    if missing:
        # transformers would continue with random values for these.
        raise DamagedFile(f"its weight files lack {_some(missing)}")
    if report["mismatched_keys"]:
        shapes = (
            f"{name} has shape {tuple(found)} instead of {tuple(place)}"
            for name, found, place in report["mismatched_keys"]
        )
        raise DamagedFile(f"its config.json and its weight files disagree on sizes: {_some(shapes)}")
    unused = {*report["unexpected_keys"], *_hidden(module, in_files)}
    unused = {name for name in unused if not may_be_left_over(name) and not (optional and optional.fullmatch(name))}
    if unused:
        raise DamagedFile(
            f"its weight files have {_some(unused)}, which a model of this config.json would not use: they belong to "
            "another architecture, or config.json has too few layers or an option switched off"
        )


def may_be_left_over(name: str) -> bool:
    """Whether the files of any family may have a tensor with this name that the model does not use."""
    return any(pattern.fullmatch(name) for pattern in _LEFT_OVER)


def places(module: nn.Module, in_files: Iterable[str]) -> dict[str, str]:
    """Maps tensors of the files to places in the module. Names with and without the trunk's prefix, and older names of
    a norm's gain and bias, are the same place.

    Errors: DamagedFile for two tensors with the same place, of which transformers silently uses the last.
    """
    found: dict[str, str] = {}
    for name in sorted(name for name in in_files if not may_be_left_over(name)):
        place = place_of(module, name)
        if place in found:
            raise DamagedFile(
                f"its weight files have {found[place]} and {name}, which are two names of the same weight, and it is "
                "unclear which one to load"
            )
        found[place] = name
    return found


def place_of(module: Any, name: str) -> str:
    """Returns the part that all names of a weight have in common."""
    prefix = f"{module.base_model_prefix}."
    while name.startswith(prefix):
        name = name.removeprefix(prefix)
    return re.sub(r"(?<=LayerNorm\.)(gamma|beta)$", lambda old: {"gamma": "weight", "beta": "bias"}[old[0]], name)


def _hidden(module: Any, in_files: Iterable[str]) -> set[str]:
    """Yields names that transformers omits from its report, by patterns that match anywhere in a name."""
    patterns = module._keys_to_ignore_on_load_unexpected or ()
    own, prefix = {name for name, _ in module.named_parameters()}, f"{module.base_model_prefix}."
    loaded = own | {name.removeprefix(prefix) for name in own} | {f"{prefix}{name}" for name in own}
    return {name for name in set(in_files) - loaded if any(re.search(pattern, name) for pattern in patterns)}


def _some(names: Iterable[str]) -> str:
    found = sorted(names)
    more = f" and {len(found) - _NAMED_MAX} more" if len(found) > _NAMED_MAX else ""
    return ", ".join(found[:_NAMED_MAX]) + more
