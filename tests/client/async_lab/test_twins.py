"""What blocks has a twin that is awaited: each public name, with the same signature and the same docstring."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import actstore
from actstore import (
    AsyncCapture,
    AsyncCaptures,
    AsyncCheckpoints,
    AsyncFeature,
    AsyncLab,
    AsyncRun,
    AsyncSaeFeatures,
    Capture,
    Captures,
    Checkpoints,
    Feature,
    Lab,
    Run,
    SaeFeatures,
)
from actstore._transport.base import Backend
from tests.stored_run import FIRING, SAE

TWINS: dict[type, type] = {
    Lab: AsyncLab,
    Run: AsyncRun,
    Capture: AsyncCapture,
    Captures: AsyncCaptures,
    Checkpoints: AsyncCheckpoints,
    SaeFeatures: AsyncSaeFeatures,
    Feature: AsyncFeature,
}
# What asks nobody is no coroutine; a test below asks it of a backend that nobody may ask.
AT_ONCE = {"Lab.attach", "Run.features", "Run.feature"}
# For people, and for what Python itself asks of an object.
SPECIAL = ("__len__", "__iter__", "__getitem__", "__contains__", "__repr__", "_repr_html_")
# The connection itself. A twin has its blocking object instead.
NO_TWIN = {"backend"}


@pytest.fixture(scope="module")
def blocking(store: Path) -> dict[type, Any]:
    """An object of each class that has a twin."""
    lab = actstore.connect(store)
    run, backend = lab.run("planted"), lab._backend
    features = run.features(SAE)
    capture = lab.attach("planted")
    found = [lab, run, capture, Captures([capture], (1.0,), backend), Checkpoints([run], (1.0,), backend)]
    return {type(one): one for one in [*found, features, features[FIRING]]}


def twin_of(one: Any) -> Any:
    """The twin of an object, as an AsyncLab over the same store gives it."""
    lab = AsyncLab(one) if isinstance(one, Lab) else AsyncLab(Lab(getattr(one, "backend", None) or one._backend))
    return lab if isinstance(one, Lab) else TWINS[type(one)](one, lab._questions)


def public(one: Any) -> set[str]:
    """The names of a class and of what its instances have beside."""
    return {name for name in dir(one) if not name.startswith("_")} - NO_TWIN


def asking(kind: type) -> Iterator[str]:
    """The methods of a class that are not named AT_ONCE."""
    for name in sorted(public(kind)):
        if inspect.isfunction(getattr(kind, name)) and f"{kind.__name__}.{name}" not in AT_ONCE:
            yield name


def classes_that_ask() -> set[type]:
    """Every class of the client whose instances are made with a backend."""
    found = set()
    for module in pkgutil.walk_packages(actstore.__path__, "actstore."):
        if "__main__" not in module.name:
            for value in vars(importlib.import_module(module.name)).values():
                if isinstance(value, type) and Backend in get_type_hints(value.__init__).values():
                    found.add(value)
    return found


def test_every_class_that_asks_has_a_twin() -> None:
    """A base of one counts with it."""
    alone = {kind for kind in classes_that_ask() if not any(issubclass(known, kind) for known in TWINS)}
    assert alone == set()


@pytest.mark.parametrize("kind", TWINS)
def test_a_twin_has_every_public_name_and_no_other(kind: type, blocking: dict[type, Any]) -> None:
    one = blocking[kind]
    assert public(twin_of(one)) == public(one)
    special = {name for name in SPECIAL if getattr(kind, name, None) not in (None, getattr(object, name, None))}
    assert {name for name in special if not hasattr(TWINS[kind], name)} == set()


@pytest.mark.parametrize("kind", TWINS)
def test_what_asks_is_awaited(kind: type) -> None:
    for name in asking(kind):
        method, twin = getattr(kind, name), getattr(TWINS[kind], name)
        assert inspect.iscoroutinefunction(twin) or inspect.isgeneratorfunction(method), name
        assert inspect.isasyncgenfunction(twin) == inspect.isgeneratorfunction(method), name


@pytest.mark.parametrize("kind", TWINS)
def test_signatures_and_docstrings_are_the_same(kind: type) -> None:
    for name in {*asking(kind), *(name for name in AT_ONCE if hasattr(kind, name))} - {"close"}:
        method, twin = getattr(kind, name), getattr(TWINS[kind], name)
        assert inspect.signature(twin).parameters == inspect.signature(method).parameters, name
        assert inspect.getdoc(twin) == inspect.getdoc(method), name
    assert inspect.signature(AsyncLab.capture).return_annotation is AsyncCapture
    assert inspect.signature(AsyncLab.patch).return_annotation is actstore.Sweep
    assert inspect.signature(actstore.connect_async).parameters == inspect.signature(actstore.connect).parameters


@pytest.mark.parametrize("kind", TWINS)
def test_properties_and_attributes_are_the_same(kind: type, blocking: dict[type, Any]) -> None:
    one = blocking[kind]
    twin = twin_of(one)
    for name in public(one):
        value, other = getattr(one, name), getattr(twin, name)
        if not callable(value) and not isinstance(value, tuple):
            assert other == value, name
        if isinstance(value, tuple):
            assert [getattr(each, "_blocking", each) for each in other] == list(value), name
    assert repr(twin) == f"async {one!r}"


def test_what_is_at_once_asks_nobody(blocking: dict[type, Any]) -> None:
    run = twin_of(blocking[Run])
    run._questions.closed = True
    assert len(run.features(SAE)) == len(blocking[SaeFeatures]) == len(list(run.features(SAE)))
    assert run.features(SAE)[FIRING].index == run.feature(SAE, FIRING).index == FIRING
    lab = twin_of(blocking[Lab])
    lab._questions.closed = True
    assert lab.attach("planted").run == "planted"
