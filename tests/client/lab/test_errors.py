"""One class for each kind of reason, and a next step for each reason."""

import inspect

import pytest

from actstore import ActstoreError, MissingLibrary, StackFailed, _errors, _optional
from actstore_api.reasons import REASONS, Kind
from actstore_api.records.terms import Failure

CLASSES = {found for _, found in inspect.getmembers(_errors, inspect.isclass) if issubclass(found, ActstoreError)} - {
    ActstoreError
}


def test_each_kind_has_a_class_of_its_own() -> None:
    assert set(_errors.CLASS_OF_KIND) == set(Kind)
    assert set(_errors.CLASS_OF_KIND.values()) == CLASSES - {MissingLibrary, StackFailed}


def test_each_reason_has_a_next_step() -> None:
    assert [name for name, reason in REASONS.items() if not reason.next_step] == []


def test_the_docstring_draws_every_class() -> None:
    drawn = _errors.__doc__ or ""
    assert [found.__name__ for found in CLASSES if f"── {found.__name__} " not in drawn] == []


@pytest.mark.parametrize("reason", REASONS)
def test_a_failure_becomes_an_error_that_says_everything(reason: str) -> None:
    error = _errors.error_of(Failure(reason, "it went wrong", {"field": "k", "value": "7", "allowed": "1, 2"}))
    assert type(error) is _errors.CLASS_OF_KIND[REASONS[reason].kind]
    assert (error.reason, error.field, error.value, error.allowed) == (reason, "k", "7", "1, 2")
    assert str(error).splitlines() == [
        "it went wrong",
        "  k: '7'",
        "  allowed: 1, 2",
        f"  next step: {REASONS[reason].next_step} [{reason}]",
    ]


def test_what_the_message_says_already_is_not_said_twice() -> None:
    failure = Failure(
        "MODEL_NOT_FOUND", "no model 'x'; there are: a, b", {"field": "model", "value": "x", "allowed": "a, b"}
    )
    assert [line for line in str(_errors.error_of(failure)).splitlines() if "a, b" in line] == [failure.message]


def test_a_failure_without_details_says_what_it_can() -> None:
    error = _errors.error_of(Failure("INTERNAL", "unknown"))
    assert (error.field, error.value, error.allowed) == (None, None, None)
    assert str(error) == "unknown\n  next step: report it, with the service's log [INTERNAL]"


def test_a_missing_library_is_an_import_error_with_the_command(monkeypatch: pytest.MonkeyPatch, direct) -> None:
    monkeypatch.setitem(__import__("sys").modules, "polars", None)
    with pytest.raises(ImportError, match="pip install polars") as caught:
        direct.runs().to_polars()
    assert isinstance(caught.value, MissingLibrary)


def test_a_missing_extra_is_an_import_error_that_names_it() -> None:
    with pytest.raises(ImportError, match="this needs the library ray") as caught:
        _optional.check_installed("ray", "worker", spec=lambda _: None)
    assert caught.value.reason == _errors.MISSING_LIBRARY
    assert "pip install '.[worker]'" in caught.value.next_step
    _optional.check_installed("grpc", "worker")
