"""Live questions, as far as who hands them on has to know them: which model each is about."""

from typing import Any, Protocol, runtime_checkable

from actstore_api.records.terms import ModelReference

# A record that `ANSWERS` of answering.py has.
Question = Any


@runtime_checkable
class NamesModel(Protocol):
    """A question that says which model it is about."""

    @property
    def model(self) -> ModelReference: ...


@runtime_checkable
class NamesRun(Protocol):
    """A question about the model of a run."""

    @property
    def run(self) -> str: ...
