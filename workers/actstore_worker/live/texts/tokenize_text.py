"""Tokenizes a text as the model reads it."""

from actstore_api.records.model import TokenizeText, TokenizeTextAnswer
from actstore_storage.errors import BadRequest
from actstore_worker.live.passes.resources import Answers
from actstore_worker.live.passes.text import show_text
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.prompts import prompt_ids, token_of
from actstore_worker.provenance import live_provenance


def tokenize_text(model: LanguageModel, question: TokenizeText) -> TokenizeTextAnswer:
    """Show how the model would read a text, whatever its length.

    `one_token`: returns the single token that the text stands for.

    Errors: BadRequest as in `prompt_ids` and `token_of`.
    """
    if question.one_token:
        if not isinstance(question.text, str):
            message = "one_token needs a text to look up, but token ids were given"
            raise BadRequest(message, field="one_token", value="true", allowed="a text")
        ids: tuple[int, ...] = (token_of(model, question.text, "text"),)
    else:
        ids = prompt_ids(model, question.text, question.prepend_bos, "text")
    return TokenizeTextAnswer(show_text(model, ids).table(), live_provenance(model))


ANSWERS: Answers = {
    TokenizeText: lambda given, question: tokenize_text(given.passes.model, question),
}
