"""Code blocks of Markdown pages: which there are, which are marked as not run, and how one is run.

A page's Python blocks share one namespace and run in their order, as a reader types them. Two kinds of HTML comment,
which no reader sees, steer this:

    <!-- setup ... -->            Python that runs at this place
    <!-- not run: REASON -->      the next block is left out, for this reason
"""

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_BLOCK = re.compile(
    r"^<!-- not run: (?P<reason>[^\n]+?) -->\n+(?=```)|^<!-- setup\n(?P<setup>.*?)^-->$|"
    r"^```(?P<kind>\w*)[^\n]*\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
# Languages of blocks that are code. Everything else is output, or a file.
RUN_KINDS = ("python", "console")
# Those that are parsed; queries are in tests/monitoring, where they come from.
PARSED_KINDS = {"toml": tomllib.loads, "yaml": yaml.safe_load}
PLAIN_KINDS = ("text", "json", "promql", *PARSED_KINDS)


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, where it begins in the page, and why it is not run, if it is not."""

    kind: str
    body: str
    line: int
    reason: str = ""


def blocks_of(page: Path) -> Iterator[Block]:
    """Yields the blocks of a page in order, hidden setups among them."""
    text, reason = page.read_text(), ""
    for found in _BLOCK.finditer(text):
        if found["reason"]:
            reason = found["reason"]
            continue
        part = "body" if found["setup"] is None else "setup"
        line = text.count("\n", 0, found.start(part)) + 1
        yield Block(found["kind"] or ("text" if part == "body" else "python"), found[part], line, reason)
        reason = ""


def run_block(page: Path, block: Block, namespace: dict[str, Any], environment: Mapping[str, str]) -> None:
    """Runs a Python block in a namespace, or each command of a console block in a shell; raises what it raises."""
    if block.kind == "python":
        code = compile("\n" * (block.line - 1) + block.body, str(page), "exec")
        exec(code, namespace)  # noqa: S102 - the project's own pages
        return
    for command in commands_of(block.body):
        done = subprocess.run(
            [shutil.which("bash"), "-ec", command], env=dict(environment), capture_output=True, text=True
        )
        assert done.returncode == 0, f"{page}:{block.line}: {command}\n{done.stdout}{done.stderr}"


def commands_of(body: str) -> Iterator[str]:
    """Yields what follows each `$ `, with the lines that go on after a backslash or belong to a here-document."""
    command: list[str] = []
    for line in body.splitlines():
        if line.startswith("$ "):
            if command:
                yield "\n".join(command)
            command = [line.removeprefix("$ ")]
        elif command and _goes_on(command):
            command.append(line)
    if command:
        yield "\n".join(command)


def _goes_on(command: list[str]) -> bool:
    end = re.search(r"<<'?(\w+)'?", command[0])
    return command[-1].endswith("\\") or bool(end and end[1] not in command[1:])
