"""The generated reference is whole: everything that it lists has a text, and every public name has a page."""

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Unpack, get_args, get_origin

import griffe
import pytest

import actstore
from actstore_api.metrics import METRICS
from actstore_api.reasons import REASONS
from actstore_storage.settings.unknown import is_of_kubernetes
from docs.hooks import columns, command, contract, errors, metrics, python_pages, settings

NAMED = re.compile(r"\bACTSTORE_[A-Z0-9_]*[A-Z0-9]\b")
GLOSSARY = Path(__file__).parents[2] / "docs" / "reference" / "glossary.md"


def test_every_public_name_is_on_one_page_of_the_reference() -> None:
    listed = [line.removeprefix("::: actstore.") for page in python_pages.pages().values() for line in _entries(page)]
    assert sorted(listed) == sorted(actstore.__all__)


def _entries(page: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith(":::")]


@pytest.mark.parametrize("name", REASONS)
def test_every_reason_has_a_cause_and_a_remedy(name: str) -> None:
    reason = REASONS[name]
    assert reason.cause[0].isupper() or reason.cause.startswith("actstore"), reason
    assert reason.cause.endswith("."), reason
    assert reason.next_step, reason
    assert f"`{name}`" in errors.page()


def test_errors_that_pages_quote_have_the_remedy_of_the_table() -> None:
    quoted = [
        found
        for page in (GLOSSARY.parents[1]).rglob("*.md")
        for found in re.findall(r"^ +next step: (.*) \[([A-Z_]+)\]$", page.read_text(), flags=re.MULTILINE)
    ]
    assert quoted
    assert [found for found in quoted if found[0] != REASONS[found[1]].next_step] == []


def test_every_setting_has_a_text() -> None:
    assert [one.name for one in settings.variables() if not one.meaning or not one.type] == []


def test_every_limit_says_what_happens_beyond_it() -> None:
    """A time limit says that in one sentence; another one says first what is counted, and then what happens."""
    limits = [one for one in settings.variables() if settings.titled(one).startswith("Limits")]
    counted = [one for one in limits if not one.key.endswith("_seconds")]
    assert len(counted) > 40
    assert [one.key for one in counted if len(re.findall(r"[.;] ", one.meaning)) < 1] == []
    said = re.compile(r"\b([Hh]ow long|[Ss]econds|[Tt]ime|[Pp]ause)\b")
    assert [one.key for one in limits if one.key.endswith("_seconds") and not said.search(one.meaning)] == []


def test_variables_that_processes_read_are_listed() -> None:
    found = {one.name: one.readers for one in settings.variables()}
    assert found["ACTSTORE_STORE"] == ("service", "workers")
    assert found["ACTSTORE_TOKEN"] == ("service", "client")
    assert found["ACTSTORE_S3_ENDPOINT"] == ("service", "workers", "client")
    assert found["ACTSTORE_ADDRESS"] == ("client",)
    assert found["ACTSTORE_MERGE_PARTS"] == ("workers",)


def test_every_metric_is_on_the_page_with_its_labels() -> None:
    lines = metrics.page().splitlines()
    for metric in METRICS.values():
        (line,) = {line for line in lines if line.startswith(f"| `{metric.name}` |")}
        assert all(f"`{label.name}`: " in line for label in metric.labels)
        assert metric.help.replace("|", "\\|") in line


def test_every_command_and_option_has_a_text() -> None:
    missing = [name for name, says, _ in command.commands() if not says]
    missing += [
        f"{name} {action.option_strings or action.dest}"
        for name, _, parsers in command.commands()
        for action in command.options(parsers)
        if not action.help
    ]
    assert missing == []


def test_everything_of_the_contract_has_a_text() -> None:
    missing = [
        f"{file.name} {one.name} {row[0] if row else ''}"
        for file in contract.described()
        for one in contract.documented(file)
        for row in [(one.comment,), *one.rows]
        if not row[-1]
    ]
    assert missing == []


def test_a_comment_reaches_the_page_of_its_field() -> None:
    page = contract.pages()["capture"]
    assert "| `max_documents` | optional `uint64` |" in page
    assert "[`ModelReference`](common.md#modelreference)" in page


def test_the_glossary_defines_each_word_once_and_briefly() -> None:
    """What answers' columns mean stands in the client's glossary alone, of which the page of columns is made."""
    words = dict(
        re.findall(r"^\*\*(.+?)\*\*\n:   (.+?)(?=\n\n|\Z)", GLOSSARY.read_text(), flags=re.MULTILINE | re.DOTALL)
    )
    assert len(words) == GLOSSARY.read_text().count("\n:   ")
    assert [word for word, text in words.items() if len(re.findall(r"[.!?](?= |$|\n)", text)) > 2] == []
    shown = {column.replace("_", " ") for table in columns.tables().values() for column in table}
    assert {word.lower() for word in words} & shown <= NEEDED_BESIDES


# Words that are also a column's title: the glossary says what it is, and the column what its number is.
NEEDED_BESIDES = {"feature", "token"}


def test_every_column_that_the_client_explains_is_on_the_page_of_columns() -> None:
    page = columns.page()
    assert [name for name in columns.tables() if name not in columns.SECTIONS] == []
    assert [name for table in columns.tables().values() for name in table if f"| `{name}` |" not in page] == []


def test_every_public_argument_is_documented() -> None:
    missing = [
        f"{name}: {argument}"
        for name, call in _calls()
        for argument in _arguments(call) - _documented(call)
        if not _documents_options(call) or argument not in _options(call)
    ]
    assert missing == []


def test_no_argument_is_documented_that_a_call_does_not_take() -> None:
    assert [(name, found) for name, call in _calls() if (found := _documented(call) - _arguments(call))] == []


def _calls() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yields every public function and method of the client, those that a class inherits too."""
    for name in actstore.__all__:
        found = getattr(actstore, name)
        if inspect.isfunction(found):
            yield name, found
        elif inspect.isclass(found):
            members = inspect.getmembers(found, lambda one: inspect.isfunction(one) or inspect.ismethod(one))
            for member, call in members:
                if not member.startswith("_") and call.__module__.startswith("actstore"):
                    yield f"{name}.{member}", call


def _arguments(call: Callable[..., Any]) -> set[str]:
    """Names of arguments, with the keys of a TypedDict in the place of its `**options`."""
    kind = inspect.Parameter.VAR_KEYWORD
    named = {name for name, one in inspect.signature(call).parameters.items() if one.kind is not kind}
    return (named | _options(call)) - {"self", "cls"}


def _options(call: Callable[..., Any]) -> set[str]:
    """The keys of the TypedDict that types a call's `**options`."""
    hints = (hint for hint in inspect.unwrap(call).__annotations__.values() if get_origin(hint) is Unpack)
    return {key for hint in hints for key in get_args(hint)[0].__annotations__}


def _documented(call: Callable[..., Any]) -> set[str]:
    return {name for name in _entries_of(call) if not name.startswith("*")}


def _documents_options(call: Callable[..., Any]) -> bool:
    """Whether the docstring has one entry for all options, such as: `**options: As lab.capture has them.`"""
    return any(name.startswith("**") for name in _entries_of(call))


def _entries_of(call: Callable[..., Any]) -> set[str]:
    """Names in the sections `Args:` and `Keyword Args:` of a call's docstring."""
    kinds = (griffe.DocstringSectionKind.parameters, griffe.DocstringSectionKind.other_parameters)
    sections = griffe.Docstring(inspect.getdoc(call) or "").parse("google", warnings=False)
    return {one.name for section in sections if section.kind in kinds for one in section.value}


def test_every_variable_that_is_named_anywhere_exists() -> None:
    """Errors, pages and manifests name variables; one that is renamed or misspelt would be refused where it is set."""
    root = GLOSSARY.parents[2]
    known = {one.name for one in settings.variables()}
    files = [
        path
        for folder in ("client", "deploy", "docs", "proto", "services", "storage", "workers")
        for path in (root / folder).rglob("*")
        if path.suffix in {".md", ".py", ".yaml", ".env", ".sh", ""} and path.is_file()
    ]
    named = {(name, path.name) for path in files for name in NAMED.findall(path.read_text(errors="ignore"))}
    assert len(named) > 100
    # The beginning of a name, as `ACTSTORE_S3_`, stands for all that begin with it.
    found = {(name, file) for name, file in named if not any(each.startswith(name) for each in known)}
    assert {one for one in found if not is_of_kubernetes(one[0], "")} == set()
