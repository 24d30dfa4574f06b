"""Which tensors of a checkpoint a model may leave unused: transformers drops what it has no place for, without a word.

A bias that is not added, or a layer that is not run, makes another model of the same name. So whatever is left over is
refused, but for what these patterns name.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from actstore_worker.model_files import DamagedFile

_NAMED_MAX = 5
# Whole names. Each is made of the configuration, or stands behind the last layer and is not asked for.
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
# BERT is read without its heads: of masked tokens and next sentences, and the pooled first token.
_BERT_LEFT_OVER = re.compile(r"cls\..+|(bert\.)?pooler\..+")


def check_tensors(module: nn.Module, report: Mapping[str, Any], in_files: Iterable[str]) -> None:
    """That each tensor of the files has its place in the module and each place its tensor, by transformers' report.

    Errors: DamagedFile with the names.
    """
    optional = _BERT_LEFT_OVER if module.config.model_type == "bert" else None  # type: ignore[union-attr]
    missing = {name for name in report["missing_keys"] if optional is None or not optional.fullmatch(name)}
    if missing:
        # transformers would go on with random numbers in their place.
        raise DamagedFile(f"its weight files lack {_some(missing)}")
    if report["mismatched_keys"]:
        shapes = (f"{name} of {tuple(found)} for {tuple(place)}" for name, found, place in report["mismatched_keys"])
        raise DamagedFile(f"its config.json and its weight files are of different sizes: {_some(shapes)}")
    unused = {*report["unexpected_keys"], *_hidden(module, in_files)}
    unused = {name for name in unused if not _may_be_left_over(name) and not (optional and optional.fullmatch(name))}
    if unused:
        raise DamagedFile(
            f"its weight files have {_some(unused)}, which a model of this config.json would not use: they are another "
            "architecture's, or config.json has too few layers or an option that is off"
        )


def _may_be_left_over(name: str) -> bool:
    return any(pattern.fullmatch(name) for pattern in _LEFT_OVER)


def _hidden(module: Any, in_files: Iterable[str]) -> set[str]:
    """What transformers leaves out of its report, by patterns that match anywhere in a name."""
    patterns = module._keys_to_ignore_on_load_unexpected or ()
    own, prefix = {name for name, _ in module.named_parameters()}, f"{module.base_model_prefix}."
    loaded = own | {name.removeprefix(prefix) for name in own} | {f"{prefix}{name}" for name in own}
    return {name for name in set(in_files) - loaded if any(re.search(pattern, name) for pattern in patterns)}


def _some(names: Iterable[str]) -> str:
    found = sorted(names)
    more = f" and {len(found) - _NAMED_MAX} more" if len(found) > _NAMED_MAX else ""
    return ", ".join(found[:_NAMED_MAX]) + more
