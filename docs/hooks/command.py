"""The page of the command `actstore`, from the parsers that read its command line."""

import argparse
from collections.abc import Iterator

from actstore._cli.main import command_parser
from actstore._cli.train import TRAIN, client_parser
from actstore_worker.training.__main__ import trainer_parser
from docs.hooks.tables import code, table

_HEAD = """# The command

`actstore COMMAND` asks what the Python client asks, from a shell. This page lists every command with its options.

Each command prints a table, or one JSON object with `--json`. `ACTSTORE_ADDRESS`, and `ACTSTORE_TOKEN` or
`ACTSTORE_TOKEN_FILE`, name the service, as for `actstore.connect()`.

| exit status | meaning |
|---|---|
| 0 | done |
| 1 | refused or failed; stderr has the reason and the next step |
| 2 | the command line cannot be read |
| 3 | the answer is bad news: `check` found a damaged store, `check-sae` a wrong SAE, or `status` no running stack |
| 130 | interrupted by Ctrl-C |

"""


def page() -> str:
    """Writes a section for each command."""
    return _HEAD + "\n".join(_section(name, says, parsers) for name, says, parsers in commands())


def commands() -> Iterator[tuple[str, str, list[argparse.ArgumentParser]]]:
    """Yields each command: its name, what it does, and the parsers that read its options."""
    (verbs,) = (action for action in command_parser()._actions if isinstance(action, argparse._SubParsersAction))
    says = {choice.dest: choice.help or "" for choice in verbs._choices_actions}
    for name, parser in verbs.choices.items():
        yield name, says.get(name, ""), [trainer_parser(), client_parser()] if name == TRAIN else [parser]


def options(parsers: list[argparse.ArgumentParser]) -> Iterator[argparse.Action]:
    """Yields the arguments and options that users see, without `--help`."""
    for parser in parsers:
        for action in parser._actions:
            if action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction):
                yield action


def _section(name: str, says: str, parsers: list[argparse.ArgumentParser]) -> str:
    rows = [(_spelling(action), _allowed(action), _default(action), _help(action)) for action in options(parsers)]
    usage = parsers[0].format_usage().removeprefix("usage: ")
    head = f"## {name}\n\n{says[:1].upper()}{says[1:].rstrip('.')}.\n\n```text\n{usage}```\n\n"
    return head + table(("argument", "value", "default", "meaning"), rows)


def _spelling(action: argparse.Action) -> str:
    return ", ".join(map(code, action.option_strings or [str(action.metavar or action.dest)]))


def _allowed(action: argparse.Action) -> str:
    if action.choices is not None:
        return ", ".join(code(choice) for choice in action.choices if choice != "")
    if action.nargs == 0:
        return "no value"
    kind = getattr(action.type, "__name__", "str")
    return f"{kind}, several" if action.nargs in ("+", "*") else kind


def _default(action: argparse.Action) -> str:
    if action.required:
        return "required"
    unset = action.default in (None, "", [], argparse.SUPPRESS) or action.nargs == 0
    return "" if unset else code(action.default)


def _help(action: argparse.Action) -> str:
    formatter = argparse.HelpFormatter("")
    return formatter._expand_help(action) if action.help else ""
