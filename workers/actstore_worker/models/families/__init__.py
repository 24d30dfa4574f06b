"""The model families that actstore can look into: a file each, or one for those that are alike.

To add one, write its `Family`, name it here, and give each option of its configuration to
tests/worker/models/test_family_options.py.
"""

from collections.abc import Mapping

from actstore_storage.errors import BadRequest
from actstore_worker.models.families.attention_only import ATTENTION_ONLY
from actstore_worker.models.families.bert import BERT
from actstore_worker.models.families.family import Family
from actstore_worker.models.families.gemma import GEMMA, GEMMA2
from actstore_worker.models.families.gpt2 import GPT2
from actstore_worker.models.families.gpt_neox import GPT_NEOX
from actstore_worker.models.families.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from actstore_worker.models.families.opt import OPT

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (GPT_NEOX, GPT2, LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA, GEMMA2, OPT, ATTENTION_ONLY, BERT)
}


def find_family(model_type: str) -> Family:
    """The family of transformers' `model_type`. Errors: BadRequest MODEL_UNSUPPORTED with those that there are."""
    if model_type not in FAMILIES:
        raise BadRequest(
            f"models of type {model_type!r} are not supported; supported are {', '.join(FAMILIES)}",
            reason="MODEL_UNSUPPORTED",
            field="model",
            value=model_type,
            allowed=FAMILIES,
        )
    return FAMILIES[model_type]
