"""A question of each method, made from its record, that can be sent and names one run wherever it can name one."""

import dataclasses
import types
import typing
from typing import Any

from actstore_api.verbs import Verb

# Names of fields that name runs, wherever they are in a question.
RUN_FIELDS = frozenset({"run", "runs", "rows_of", "base_run", "source_run"})
# Records that a question has only if it is about a stored run.
STORED = frozenset({"stored"})


def question_about(verb: Verb, run: str) -> Any:
    """The smallest question that can be sent, about this run."""
    return _record(verb.question, run)


def _record(record: type[Any], run: str) -> Any:
    kinds = typing.get_type_hints(record, include_extras=True)
    named = {one.name for one in dataclasses.fields(record) if _is_required(one) or one.name in RUN_FIELDS | STORED}
    return record(**{name: _value(kinds[name], run) for name in named})


def _is_required(one: "dataclasses.Field[Any]") -> bool:
    return one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING


def _value(kind: Any, run: str) -> Any:
    """The run's name for texts, so that no field of its own is needed."""
    origin, arms = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated or origin in (typing.Union, types.UnionType):
        return _value(arms[0], run)
    if origin is typing.Literal:
        return arms[0]
    if origin is tuple:
        return (_value(arms[0], run),)
    if dataclasses.is_dataclass(kind):
        return _record(typing.cast(type[Any], kind), run)
    return {str: run, int: 1, float: 1.0, bool: False}[kind]
