"""Which model each live question is about, for code that only forwards questions."""

from typing import Any, Protocol, runtime_checkable

from actstore_api.records.terms import ModelReference

# A record that is a key of `ANSWERS` in answering.py.
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
