"""Turns a caller's text into a model's tokens, with or without a BOS; shared by captures, sweeps and questions."""

from collections.abc import Collection, Iterable, Sequence

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from actstore_api.records.terms import Prompt, TokenReference
from actstore_storage.errors import BadRequest
from actstore_worker.models.model import ModelDescription
from actstore_worker.models.tokens.tokenizer_files import refusing_tokenizer

# A tokenizer may shorten a text before it cuts it: several spaces become one, for example.
_SHORTENED = 4
# A shorter answer is tokenized, so that its error can show the tokens.
_ANSWER_CHARACTERS = 256


def prompt_ids(model: ModelDescription, prompt: Prompt, asked_bos: bool | None, field: str) -> tuple[int, ...]:
    """Returns what the model reads. A text gets a BOS if the tokenizer has one, unless `asked_bos` says otherwise;
    token ids get one only if it is requested. A prompt that already begins with a BOS does not get a second one.

    Errors: BadRequest for no token, an id that has no embedding, and a requested BOS that does not exist.
    """
    own = text_ids(model, prompt) if isinstance(prompt, str) else _checked(model, prompt, field)
    if not own:
        raise BadRequest(f"{field} has no tokens", field=field, value=prompt, allowed="text of at least one token")
    asked = asked_bos if isinstance(prompt, str) else bool(asked_bos)
    return with_bos(model, own, prepends_bos(model, asked))


def prepends_bos(model: ModelDescription, asked: bool | None) -> bool:
    """None: true if the tokenizer has a BOS token. Errors: BadRequest if a requested BOS does not exist."""
    if asked and model.bos_id is None:
        raise BadRequest(
            f"the tokenizer of {model.name!r} has no BOS token to prepend",
            field="prepend_bos",
            value=True,
            allowed=False,
        )
    return model.bos_id is not None if asked is None else asked


def tokenised(described: ModelDescription, texts: list[str]) -> list[list[int]]:
    """Returns the ids of each text, without special tokens around it.

    Errors: BadRequest MODEL_UNSUPPORTED if the tokenizer fails.
    """
    with refusing_tokenizer(described.name):
        # verbose: its warning about long texts is unnecessary, because these are refused, or cut, elsewhere.
        found = described.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = found["input_ids"]
    return ids


def check_ids(described: ModelDescription, ids: Collection[int], whence: str) -> None:
    """Refuses ids that have no embedding: BadRequest MODEL_UNSUPPORTED. `whence` says where they come from."""
    strange = [token for token in ids if not 0 <= token < described.vocabulary_size]
    if strange:
        raise BadRequest(
            f"model {described.name!r} has {described.vocabulary_size} embeddings, but none for token id "
            f"{strange[0]}, which "
            f"{whence}: this tokenizer or dataset belongs to another model",
            reason="MODEL_UNSUPPORTED",
            field="model",
            value=described.name,
            allowed=f"ids from 0 to {described.vocabulary_size - 1}",
        )


def text_ids(model: ModelDescription, text: str) -> tuple[int, ...]:
    """Returns the text's own tokens only. Errors: BadRequest MODEL_UNSUPPORTED for an id that has no embedding."""
    (ids,) = tokenised(model, [text])
    check_ids(model, ids, "its tokenizer returns for this text")
    return tuple(ids)


def with_bos(model: ModelDescription, ids: Sequence[int], prepend_bos: bool) -> tuple[int, ...]:
    """Returns the ids with a BOS in front; for an encoder also with a SEP at the end, because it was trained with both.
    Neither is added if the ids already have it, for example from a chat template.
    """
    before, after = model.around if prepend_bos else ((), ())
    begun, ended = tuple(ids[: len(before)]) == before, tuple(ids[len(ids) - len(after) :]) == after
    return (*(() if begun else before), *ids, *(() if ended else after))


def token_of(model: ModelDescription, answer: TokenReference, field: str) -> int:
    """Returns the one token of an answer: its id, the token with exactly this text, or the one that the tokenizer
    encodes it as. If the latter two differ, as for `t` with a tokenizer that adds a space in front of a text, it is an
    error.

    Errors: BadRequest ANSWER_NOT_ONE_TOKEN.
    """
    if not isinstance(answer, str):
        return _checked(model, (answer,), field)[0]
    _check_one_token(model, answer, field)
    made = text_ids(model, answer)
    named = model.texts.ids.get(answer, ())
    found: set[int] = set(named if len(made) != 1 else [*made, *(() if made[0] in named else named)])
    if len(found) != 1 or max(found) >= model.vocabulary_size:
        raise _not_one_token(model, answer, field, made, named)
    return found.pop()


def _checked(model: ModelDescription, ids: tuple[int, ...], field: str) -> tuple[int, ...]:
    for token in ids:
        if not 0 <= token < model.vocabulary_size:
            raise BadRequest(
                f"{field} has token id {token}; {model.name!r} has ids from 0 to {model.vocabulary_size - 1}",
                field=field,
                value=token,
                allowed=f"0 to {model.vocabulary_size - 1}",
            )
    return ids


def _check_one_token(model: ModelDescription, answer: str, field: str) -> None:
    """Refuses what must be several tokens before it is tokenized."""
    if len(answer) > max(_ANSWER_CHARACTERS, _SHORTENED * model.longest_token):
        raise BadRequest(
            f"{field} has {len(answer)} characters, and the longest token of {model.name!r} has {model.longest_token}",
            reason="ANSWER_NOT_ONE_TOKEN",
            field=field,
            value=f"{len(answer)} characters",
            allowed="text of one token",
        )


def _not_one_token(
    model: ModelDescription, answer: str, field: str, made: Sequence[int], named: Sequence[int]
) -> BadRequest:
    texts = [model.texts.alone[token] for token in made]
    why = f"is {len(made)} tokens: {' | '.join(texts)}; an answer is one token, with its leading space if it has one"
    if len(made) == 1:
        ids = ", ".join(map(str, named))
        why = (
            f"is ambiguous: it is the text of token {ids}, but the tokenizer encodes it as {texts[0]!r}, token "
            f"{made[0]}"
        )
    return BadRequest(
        f"{field} {answer!r} {why}",
        reason="ANSWER_NOT_ONE_TOKEN",
        field=field,
        value=answer,
        allowed="text of one token" if len(made) != 1 else f"{texts[0]!r}, or a token id",
    )


def token_texts(model: ModelDescription, tokens: Iterable[int]) -> list[str]:
    """Returns the text of each token alone, as the registry of models stores it."""
    return [model.texts.alone[token] for token in tokens]


def plain_ids(model: ModelDescription) -> Int[NDArray[np.int64], " plain"]:
    """Returns the ids that the tokenizer can produce and that are not special."""
    vocabulary = model.tokenizer.get_vocab().values()
    return np.array(sorted({each for each in vocabulary if each < model.vocabulary_size} - model.special_ids), np.int64)


def check_length(model: ModelDescription, field: str, tokens: int, subject: str = "the text has") -> None:
    """Refuses texts longer than the model's context: BadRequest LIMIT_EXCEEDED."""
    if tokens > model.context_length:
        raise BadRequest(
            f"{subject} {tokens} tokens; {model.name!r} reads at most {model.context_length}{model.context_reason}",
            reason="LIMIT_EXCEEDED",
            field=field,
            value=f"{tokens} tokens",
            allowed=f"at most {model.context_length} tokens",
        )


def check_characters(model: ModelDescription, field: str, text: Prompt) -> None:
    """Refuses a text that must be longer than the model's context, whatever its tokens are, before it is tokenized:
    BadRequest LIMIT_EXCEEDED.
    """
    most = _SHORTENED * model.longest_token * model.context_length
    if isinstance(text, str) and len(text) > most:
        raise BadRequest(
            f"{field} has {len(text)} characters; {model.name!r} reads at most {model.context_length} tokens"
            f"{model.context_reason}, and its longest token has {model.longest_token} characters",
            reason="LIMIT_EXCEEDED",
            field=field,
            value=f"{len(text)} characters",
            allowed=f"at most {model.context_length} tokens, so at most {most} characters",
        )


def check_causal(model: ModelDescription, because: str) -> None:
    """Refuses an encoder: BadRequest MODEL_UNSUPPORTED. `because` says what it lacks."""
    if not model.family.causal:
        raise BadRequest(
            f"{model.name!r} is a {model.family.name} model, an encoder: {because}",
            reason="MODEL_UNSUPPORTED",
            field="model",
            value=model.name,
            allowed="a causal language model",
        )
