"""Turns errors into what callers may know of them."""

from dataclasses import fields
from typing import Any, TypeVar, cast

import grpc

from actstore_api.bounds import check_bounds
from actstore_api.codec import decode
from actstore_api.records.terms import Failure
from actstore_api.shape import Unreadable
from actstore_storage.errors import ActstoreError, BadRequest
from actstore_worker.errors import LOG_HAS_DETAILS

# The trailer with google.rpc.Status.
DETAILS_KEY = "grpc-status-details-bin"
STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}

Question = TypeVar("Question")


def read_question(kind: type[Question], message: Any) -> Question:
    """Decode the question in a message, once its size is checked.

    Errors: BadRequest if the contract does not allow it, or not that much of it.
    """
    try:
        check_bounds(message)
        return decode(kind, message)
    except Unreadable as error:
        field, reason = _spoken_of(kind, error.field), error.reason
        what = f"{field}: {error.why}"
        raise BadRequest(what, reason=reason, field=field, value=error.value, allowed=error.allowed) from None


def _spoken_of(kind: type, field: str) -> str:
    """Errors of a question that consists only of a specification or a sweep name fields of that, as its planning code
    does.
    """
    first, *others = (item.name for item in fields(cast(Any, kind)))
    return field if others else field.removeprefix(f"{first}.")


def failure_of(error: Exception) -> Failure:
    """Return what a caller may know of an error: for one that is not actstore's own, only that it happened."""
    if not isinstance(error, ActstoreError):
        return Failure("INTERNAL", LOG_HAS_DETAILS)
    return Failure(error.reason, error.message, error.details)
