"""The model families that actstore supports: one file for each, or one for several similar ones.

To add one, write its `Family`, add it here, and add each option of its configuration to
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
    """Returns the family for transformers' `model_type`. Errors: BadRequest MODEL_UNSUPPORTED with the list of
    families.
    """
    if model_type not in FAMILIES:
        raise BadRequest(
            f"models of type {model_type!r} are not supported; supported are {', '.join(FAMILIES)}",
            reason="MODEL_UNSUPPORTED",
            field="model",
            value=model_type,
            allowed=FAMILIES,
        )
    return FAMILIES[model_type]
