"""A caller's text as a model's tokens: what sweeps and questions about a text have in common."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from actstore_storage.errors import BadRequest
from actstore_worker.model import ModelDescription, check_ids, tokenised


def prepends_bos(model: ModelDescription, asked: bool | None) -> bool:
    """None: where the tokenizer has a BOS token. Errors: BadRequest where one is asked for that does not exist."""
    if asked and model.bos_id is None:
        raise BadRequest(
            f"the tokenizer of {model.name!r} has no BOS token to prepend",
            field="bos",
            value="prepend",
            allowed="none",
        )
    return model.bos_id is not None if asked is None else asked


def text_ids(model: ModelDescription, text: str) -> tuple[int, ...]:
    """The text's own tokens alone. Errors: BadRequest MODEL_UNSUPPORTED for an id that has no embedding."""
    (ids,) = tokenised(model, [text])
    check_ids(model, ids, "its tokenizer gives for this text")
    return tuple(ids)


def with_bos(model: ModelDescription, ids: Sequence[int], prepend_bos: bool) -> tuple[int, ...]:
    """BOS in front; and an encoder's SEP behind, which it was trained to see where it sees a CLS token."""
    if not prepend_bos or model.bos_id is None:
        return tuple(ids)
    return (model.bos_id, *ids) if model.end_id is None else (model.bos_id, *ids, model.end_id)


def token_texts(model: ModelDescription, tokens: Iterable[int]) -> list[str]:
    """The text of each token alone, as the registry of models stores it."""
    ids = [[token] for token in tokens]
    return list(model.tokenizer.batch_decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def plain_ids(model: ModelDescription) -> Int[NDArray[np.int64], " plain"]:
    """Those that the tokenizer can give and that mean nothing special."""
    vocabulary = model.tokenizer.get_vocab().values()
    return np.array(sorted({each for each in vocabulary if each < model.vocabulary_size} - model.special_ids), np.int64)


def check_length(model: ModelDescription, field: str, tokens: int, subject: str = "the text has") -> None:
    """Errors: BadRequest LIMIT_EXCEEDED past the model's context."""
    if tokens > model.context_length:
        raise BadRequest(
            f"{subject} {tokens} tokens; {model.name!r} reads at most {model.context_length}{model.context_reason}",
            reason="LIMIT_EXCEEDED",
            field=field,
            value=f"{tokens} tokens",
            allowed=f"at most {model.context_length} tokens",
        )


def check_causal(model: ModelDescription, because: str) -> None:
    """Errors: BadRequest MODEL_UNSUPPORTED for an encoder; `because` says what it lacks."""
    if not model.family.causal:
        raise BadRequest(
            f"{model.name!r} is a {model.family.name} model, an encoder: {because}",
            reason="MODEL_UNSUPPORTED",
            field="model",
            value=model.name,
            allowed="a causal language model",
        )
