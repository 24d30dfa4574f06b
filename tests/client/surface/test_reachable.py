"""Whatever a call takes or gives is a name of the package, so that a script can annotate it."""

import inspect
import typing
from collections.abc import Iterator
from typing import Any

import matplotlib.axes
import matplotlib.figure
import pandas as pd
import polars as pl

import actstore

# What annotations name of libraries that are not imported with the package.
OPTIONAL = {"Axes": matplotlib.axes.Axes, "Figure": matplotlib.figure.Figure, "pd": pd, "pl": pl}


def _annotated(found: Any) -> Iterator[tuple[str, Any]]:
    """The public calls and properties of a class, or a function itself."""
    if inspect.isfunction(found):
        yield found.__name__, found
    if not inspect.isclass(found):
        return
    for owner in found.__mro__:
        for name, value in vars(owner).items() if owner.__module__.startswith("actstore") else ():
            if not name.startswith("_"):
                yield f"{found.__name__}.{name}", value.fget if isinstance(value, property) else value


def _classes(hint: Any) -> Iterator[type]:
    if inspect.isclass(hint) and hint.__module__.startswith("actstore"):
        yield hint
    for argument in typing.get_args(hint):
        yield from _classes(argument)


def test_every_class_in_a_signature_is_exported() -> None:
    exported = [getattr(actstore, name) for name in actstore.__all__]
    calls = [pair for found in exported for pair in _annotated(found) if callable(pair[1])]
    assert len(calls) > 150
    missing = {
        (name, found.__name__)
        for name, call in calls
        for hint in typing.get_type_hints(getattr(call, "__func__", call), localns=OPTIONAL).values()
        for found in _classes(hint)
        if found not in exported
    }
    assert missing == set()


def test_every_field_of_an_answer_is_of_an_exported_class() -> None:
    exported = [getattr(actstore, name) for name in actstore.__all__]
    answers = [found for found in exported if inspect.isclass(found) and issubclass(found, actstore.Table)]
    fields = [(answer, name, hint) for answer in answers for name, hint in typing.get_type_hints(answer).items()]
    assert [(*place, found) for *place, hint in fields for found in _classes(hint) if found not in exported] == []
