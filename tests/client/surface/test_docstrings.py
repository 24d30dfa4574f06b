"""What a user can reach says what it is, and each call what each of its arguments means."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import actstore

# Answers that say in sentences what their fields are.
OTHERS = ("actstore._models", "actstore._patching")
# Modules whose exported names are looked at.
PARTS = ("actstore.", "actstore_api.records.patching")


def _exported() -> Iterator[tuple[str, Any]]:
    for name in actstore.__all__:
        found = getattr(actstore, name)
        if getattr(found, "__module__", "").startswith(PARTS):
            yield name, found


def _members(name: str, found: Any) -> Iterator[tuple[str, Any]]:
    """Itself; and of a class what it has of its own, and of bases that are no names of the package."""
    yield name, found
    for owner in found.__mro__ if inspect.isclass(found) else ():
        for own, value in vars(owner).items() if owner.__module__.startswith("actstore.") else ():
            if not own.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                yield f"{name}.{own}", value


def _untold(call: Any) -> set[str]:
    """The parameters that have no line of their own. `**options` stands for the keywords that `capture` tells of."""
    section = re.split(r"\n\n(?=\S)", (inspect.getdoc(call) or "").partition("Args:\n")[2])[0]
    told = set(re.findall(r"^    (\*{0,2}\w+): \S", section, re.MULTILINE))
    asked = set(inspect.signature(call).parameters) - {"self"}
    elsewhere = set(inspect.signature(actstore.Lab.capture).parameters) if "**options" in told else set()
    return asked - told - elsewhere


def test_everything_that_is_exported_says_what_it_is() -> None:
    members = [member for pair in _exported() for member in _members(*pair)]
    assert len(members) > 50
    assert [name for name, found in members if not inspect.getdoc(found)] == []


def test_every_argument_has_its_line() -> None:
    calls = [(name, found) for pair in _exported() for name, found in _members(*pair) if inspect.isfunction(found)]
    assert {name: untold for name, found in calls if (untold := _untold(found))} == {}


def test_every_field_of_a_value_has_its_line() -> None:
    """Of what is made to be handed to a call."""
    values = (
        actstore.Batching, actstore.Dataset, actstore.LocalStack, actstore.PatchedSae, actstore.Receivers,
        actstore.Retries, actstore.S3Access, actstore.Screen, actstore.StoredRows, actstore.StoredText,
        actstore.Timeout, actstore.Where,
    )  # fmt: skip
    assert {value.__name__: untold for value in values if (untold := _untold(value))} == {}


def test_every_field_of_an_answer_has_its_line() -> None:
    """But for what all answers have."""
    untold = {}
    for name, found in _exported():
        if inspect.isclass(found) and issubclass(found, actstore.Table) and not found.__module__.startswith(OTHERS):
            own = {field for field in found.__annotations__ if not field.startswith("_")}
            told = set(re.findall(r"^    (\w+): \S", inspect.getdoc(found) or "", re.MULTILINE))
            untold[name] = own - told
    assert {name: fields for name, fields in untold.items() if fields} == {}


def test_a_first_line_is_a_sentence_of_its_own() -> None:
    """Notebooks and references show it alone."""
    members = [member for pair in _exported() for member in _members(*pair)]
    first = {name: (inspect.getdoc(found) or "").partition("\n\n")[0] for name, found in members}
    assert {name: line for name, line in first.items() if not line.endswith(".") or "\n" in line} == {}
