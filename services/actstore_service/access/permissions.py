"""Decides whether a principal may ask a question, and what of an answer or an error it sees."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from actstore_api.records.terms import Failure
from actstore_service.access.methods import RULES, Rule
from actstore_service.access.principals import Principal
from actstore_storage.errors import ActstoreError

# Reasons whose `allowed` lists names of runs.
NAMES_RUNS = frozenset({"RUN_NOT_FOUND", "CAPTURE_NOT_FOUND"})
SEPARATOR = ", "


def permit(principal: Principal, method: str, question: object) -> None:
    """Errors: PERMISSION_DENIED for a method that is not in the table, needs another role, or names a run that the
    principal may not use. Whether such a run exists makes no difference.
    """
    rule = rule_of(principal, method)
    for path, run in named_runs(rule, question):
        if not principal.may_use(run):
            raise _denied_run(principal, path, run)


def rule_of(principal: Principal, method: str) -> Rule:
    """The rule of a method that the principal has the role for. Errors: PERMISSION_DENIED."""
    rule = RULES.get(method)
    if rule is None:
        raise denied(f"{method} is allowed to nobody: the service has no rule for it", "method", method, "none")
    if rule.role is not None and rule.role not in principal.roles:
        message = f"{method} needs the role {rule.role.value}, which {principal.name} does not have"
        held = SEPARATOR.join(sorted(role.value for role in principal.roles)) or "none"
        raise denied(message, "role", held, rule.role.value)
    return rule


def named_runs(rule: Rule, question: object) -> Iterator[tuple[str, str]]:
    """Yields each field of a question that names runs, with each name."""
    for path in rule.runs:
        yield from ((path, run) for run in _values(question, path))
    for path in rule.runs_if_given:
        yield from ((path, run) for run in _values(question, path) if run)


def visible(principal: Principal, method: str, answer: Any) -> Any:
    """An answer without the runs that the principal may not use."""
    rule = RULES.get(method)
    if rule is None or not rule.lists:
        return answer
    found = getattr(answer, rule.lists)
    return replace(answer, **{rule.lists: tuple(run for run in found if principal.may_use(run.name))})


def visible_failure(principal: Principal, failure: Failure) -> Failure:
    """An error without the names of runs that the principal may not use."""
    if failure.reason not in NAMES_RUNS or "allowed" not in failure.details or principal.may_use(""):
        return failure
    names = [name for name in failure.details["allowed"].split(SEPARATOR) if principal.may_use(name)]
    return replace(failure, details={**failure.details, "allowed": SEPARATOR.join(names) or "none that you may use"})


def denied(message: str, field: str, value: str, allowed: str) -> ActstoreError:
    return ActstoreError(message, reason="PERMISSION_DENIED", field=field, value=value, allowed=allowed)


def _denied_run(principal: Principal, path: str, run: str) -> ActstoreError:
    allowed = SEPARATOR.join(f"{prefix}*" for prefix in principal.run_prefixes) or "no run"
    if not run:
        return denied(f"{principal.name} has to name the run, as one of {allowed}", path, run, allowed)
    return denied(f"{principal.name} may not use a run named {run!r}", path, run, allowed)


def _values(question: object, path: str) -> tuple[str, ...]:
    """The names in a field; none if a record on the way to it is absent."""
    found: Any = question
    for part in path.split("."):
        if found is None:
            return ()
        found = getattr(found, part)
    return (found,) if isinstance(found, str) else tuple(found or ())
