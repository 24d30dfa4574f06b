"""Answers the contract's questions about a bucket, for a service or for a client without one.

A question and its answer are records of `actstore_api`. Each noun has a table of the questions that it answers.
"""

from collections.abc import Callable, Mapping
from typing import Any

from actstore_storage.answers import catalog, features, norms, stored_rows
from actstore_storage.answers.store import Store
from actstore_storage.answers.stored_rows import Rows

__all__ = ["ANSWERS", "ROWS", "Store", "answer", "is_stored", "rows"]

ANSWERS: Mapping[type, Callable[[Store, Any], Any]] = {**catalog.ANSWERS, **features.ANSWERS, **norms.ANSWERS}
ROWS: Mapping[type, Callable[[Store, Any], Rows]] = stored_rows.ROWS


def is_stored(question: object) -> bool:
    """Whether a bucket can answer the question; any other needs workers."""
    return type(question) in ANSWERS or type(question) in ROWS


def answer(store: Store, question: object) -> Any:
    """Returns the answer to a question that has a single one: for `X` an `XAnswer`. Errors: as those of the
    question.
    """
    return ANSWERS[type(question)](store, question)


def rows(store: Store, question: object) -> Rows:
    """Returns the answer to a question for rows: their provenance, and at least one batch of them."""
    return ROWS[type(question)](store, question)
