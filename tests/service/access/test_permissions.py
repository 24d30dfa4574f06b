"""The table of methods: complete over the contract, and what each kind of caller gets for each method."""

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from actstore_api.records import capture, patching
from actstore_api.records.activation import ReadTokens
from actstore_api.records.catalog import ListRunsAnswer
from actstore_api.records.norm import GetNormProfile
from actstore_api.records.terms import Failure, ModelReference, StoredSample
from actstore_api.v1 import service_pb2
from actstore_api.verbs import VERBS, Verb
from actstore_service.access import Access, Principal, Role
from actstore_service.access.methods import RULES
from actstore_storage.errors import ActstoreError
from tests.service.access.questions import RUN_FIELDS, question_about

ACCESS = Access()
ADA = Principal("ada", frozenset({Role.READER, Role.WRITER}), ("ada-", "shared-"))
EVERYTHING = Principal("shared", frozenset(Role), ("",))


def test_the_table_has_each_method_of_the_contract_and_no_other() -> None:
    services = service_pb2.DESCRIPTOR.services_by_name.values()
    assert set(RULES) == {method.name for service in services for method in service.methods}


@pytest.mark.parametrize("verb", VERBS.values(), ids=lambda verb: verb.name)
def test_the_table_has_each_field_that_names_a_run(verb: Verb) -> None:
    rule = RULES[verb.name]
    assert {path for path in _paths(verb.question) if path.rpartition(".")[2] in RUN_FIELDS} == {
        *rule.runs,
        *rule.runs_if_given,
    }


def _paths(record: type[Any], before: str = "") -> Iterator[str]:
    """Each field of a record, and of the records in it, as a path."""
    for name, kind in typing.get_type_hints(record).items():
        yield f"{before}{name}"
        for inner in (kind, *typing.get_args(kind)):
            if dataclasses.is_dataclass(inner):
                yield from _paths(typing.cast(type[Any], inner), f"{before}{name}.")


def allowed(principal: Principal, verb: Verb, question: object) -> bool:
    try:
        ACCESS.permit(principal, verb, question)
    except ActstoreError as error:
        return {"PERMISSION_DENIED": False}[error.reason]
    return True


@pytest.mark.parametrize("role", [*Role, None])
@pytest.mark.parametrize("verb", VERBS.values(), ids=lambda verb: verb.name)
def test_each_role_gets_its_methods_and_no_others(verb: Verb, role: Role | None) -> None:
    principal = Principal("p", frozenset({role} if role else ()), ("",))
    assert allowed(principal, verb, question_about(verb, "run")) == (RULES[verb.name].role in (role, None))


@pytest.mark.parametrize("verb", VERBS.values(), ids=lambda verb: verb.name)
def test_prefixes_bound_each_method_that_names_a_run(verb: Verb) -> None:
    principal = Principal("ada", frozenset(Role), ("ada-", "shared-"))
    names_runs = bool(RULES[verb.name].runs or RULES[verb.name].runs_if_given)
    assert allowed(principal, verb, question_about(verb, "ada-1"))
    assert allowed(principal, verb, question_about(verb, "shared-1"))
    for other in ("bob-1", "ad", "Ada-1", "x-ada-1"):
        assert allowed(principal, verb, question_about(verb, other)) == (not names_runs)


def test_a_method_that_is_not_in_the_table_is_denied_to_everybody() -> None:
    new = dataclasses.replace(VERBS["GetRun"], name="DeleteRun")
    assert not allowed(EVERYTHING, new, question_about(VERBS["GetRun"], "run"))


def test_a_question_about_several_runs_checks_each() -> None:
    verb = VERBS["GetNormProfile"]
    assert allowed(ADA, verb, GetNormProfile(("ada-1", "shared-2")))
    assert not allowed(ADA, verb, GetNormProfile(("ada-1", "bob-2")))


def test_a_capture_over_another_run_checks_both() -> None:
    verb = VERBS["StartCapture"]

    def starts(run: str, rows_of: str = "") -> bool:
        return allowed(ADA, verb, capture.StartCapture(capture.CaptureSpecification(run=run, rows_of=rows_of)))

    assert starts("ada-1")
    assert starts("ada-1", "shared-2")
    assert not starts("ada-1", "bob-2")
    assert not starts("bob-1", "ada-2")


def test_a_name_that_workers_would_make_up_is_for_those_with_every_run() -> None:
    question = capture.StartCapture(capture.CaptureSpecification())
    assert allowed(EVERYTHING, VERBS["StartCapture"], question)
    with pytest.raises(ActstoreError, match="has to name the run, as one of ada-\\*, shared-\\*"):
        ACCESS.permit(ADA, VERBS["StartCapture"], question)
    assert allowed(ADA, VERBS["EstimateCapture"], capture.EstimateCapture(capture.CaptureSpecification()))


def test_a_kept_sweep_over_a_stored_run_is_checked_like_a_new_one() -> None:
    for run, expected in (("ada-1", True), ("bob-1", False)):
        sweep = patching.RunSweep(ModelReference("m"), (), stored=patching.StoredSource(run))
        assert allowed(ADA, VERBS["RunSweep"], sweep) == expected
        assert allowed(ADA, VERBS["EstimateSweep"], patching.EstimateSweep(sweep)) == expected
    assert allowed(ADA, VERBS["RunSweep"], patching.RunSweep(ModelReference("m"), ()))


def test_a_refusal_names_the_role_or_the_run() -> None:
    with pytest.raises(ActstoreError) as caught:
        ACCESS.permit(
            Principal("eve", frozenset({Role.READER}), ("",)), VERBS["CancelCapture"], capture.CancelCapture("r")
        )
    assert caught.value.details == {"field": "role", "value": "reader", "allowed": "writer"}
    with pytest.raises(ActstoreError) as caught:
        ACCESS.permit(ADA, VERBS["ReadTokens"], ReadTokens("bob-1"))
    assert caught.value.details == {"field": "run", "value": "bob-1", "allowed": "ada-*, shared-*"}


def test_a_list_shows_what_one_may_see() -> None:
    verb, listed = VERBS["ListRuns"], ListRunsAnswer((_Run("ada-1"), _Run("bob-1"), _Run("shared-1")))  # type: ignore[arg-type]
    shown = ACCESS.visible(ADA, verb, listed)
    assert [run.name for run in shown.runs] == ["ada-1", "shared-1"]
    assert ACCESS.visible(EVERYTHING, verb, listed) == listed
    assert ACCESS.visible(Principal("eve", frozenset({Role.READER}), ()), verb, listed).runs == ()


@dataclasses.dataclass(frozen=True)
class _Run:
    name: str


@pytest.mark.parametrize("reason", ["RUN_NOT_FOUND", "CAPTURE_NOT_FOUND"])
def test_no_error_names_runs_of_others(reason: str) -> None:
    failure = Failure(reason, "there is no run 'ada-2'", {"field": "run", "allowed": "ada-1, bob-1, bob-2 ..."})
    assert ACCESS.visible_failure(ADA, failure).details["allowed"] == "ada-1"
    assert ACCESS.visible_failure(EVERYTHING, failure) == failure
    nothing = Principal("eve", frozenset({Role.READER}), ("eve-",))
    assert ACCESS.visible_failure(nothing, failure).details["allowed"] == "none that you may use"
    other = Failure("SAE_NOT_FOUND", "no", {"allowed": "bob-1"})
    assert ACCESS.visible_failure(ADA, other) == other


def test_a_question_that_samples_a_stored_run_is_checked() -> None:
    verb = VERBS["AblateSites"]
    question = dataclasses.replace(question_about(verb, "x"), stored=StoredSample("bob-1"))
    assert not allowed(ADA, verb, question)
    assert allowed(ADA, verb, dataclasses.replace(question, stored=None))
