"""Answers the contract's questions about a bucket, for a service or for a client without one.

A question and its answer are records of `actstore_api`. Each noun has a table of the questions that it answers.
"""

from collections.abc import Callable, Mapping
from typing import Any

from actstore_api.records.catalog import GetRun
from actstore_api.records.feature import GetFeatureStatistics, SampleExamples
from actstore_api.records.norm import GetNormProfile
from actstore_storage.answers import catalog, features, norms, stored_rows
from actstore_storage.answers.store import Store
from actstore_storage.answers.stored_rows import Rows
from actstore_storage.errors import CorruptObject
from actstore_storage.norms.rows import KeptTokens
from actstore_storage.norms.sketches import LOST

__all__ = ["ANSWERS", "ROWS", "Store", "answer", "is_lasting", "is_quick", "is_stored", "only_run", "rows"]

ANSWERS: Mapping[type, Callable[[Store, Any], Any]] = {**catalog.ANSWERS, **features.ANSWERS, **norms.ANSWERS}
ROWS: Mapping[type, Callable[[Store, Any], Rows]] = stored_rows.ROWS
# Questions whose answers depend on a snapshot of a run and on nothing else. Growth also reads the registry of models.
_OF_SNAPSHOTS = frozenset((GetRun, GetNormProfile, *features.ANSWERS))
_BY_STATISTICS, _QUICK_EXAMPLES = ("layer", "site", "token_class"), 100


def is_stored(question: object) -> bool:
    """Whether a bucket can answer the question; any other needs workers."""
    return type(question) in ANSWERS or type(question) in ROWS


def only_run(question: object) -> str | None:
    """The run whose snapshot alone decides the answer; None if there is no such run."""
    if type(question) not in _OF_SNAPSHOTS:
        return None
    named = _runs(question)
    return named[0] if len(named) == 1 else None


def is_lasting(answer: object) -> bool:
    """Whether the same question to the same snapshot has this answer for good: what is missing may be written again."""
    return not any(LOST in warning for warning in getattr(answer, "warnings", ()))


def is_quick(question: object) -> bool:
    """Whether the answer takes milliseconds: it reads no more than it returns, and computes little."""
    if type(question) in catalog.ANSWERS or isinstance(question, GetFeatureStatistics):
        return True
    if isinstance(question, GetNormProfile):
        from_statistics = question.by in _BY_STATISTICS and KeptTokens.of(question).told_by_class
        return from_statistics and not question.exact and len(question.runs) == 1
    if isinstance(question, SampleExamples):
        few = len(question.features) * question.k <= _QUICK_EXAMPLES
        return few and question.where is None and question.method == "top"
    return False


def answer(store: Store, question: object) -> Any:
    """Returns the answer to a question that has a single one: for `X` an `XAnswer`. Errors: as those of the
    question.
    """
    find = ANSWERS[type(question)]
    try:
        return find(store, question)
    except CorruptObject:
        if not store.keeps_runs:
            raise
        # What was kept may name objects that are gone, as those of a run that has just been removed.
        return find(store.anew(_runs(question)), question)


def rows(store: Store, question: object) -> Rows:
    """Returns the answer to a question for rows: their provenance, and at least one batch of them."""
    return ROWS[type(question)](store, question)


def _runs(question: object) -> tuple[str, ...]:
    """The runs that a question names; none if it names none."""
    run: str | None = getattr(question, "run", None)
    found: tuple[str, ...] = getattr(question, "runs", ())
    return found if run is None else (run,)
