"""Which files know of one field, or of one question, of the contract: those that the next one like it will touch, too.

A file knows of it where an identifier or a string is named after it. After `sink_ratio` are named `SINK_RATIO`,
`_check_sink_ratio` and "--sink-ratio"; after `TokenizeText`, `tokenize_text` and `TokenizeTextRequest`. What a comment
or a docstring says does not count.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.house_rules.python_files import parsed, written

PRODUCT = ("proto", "storage", "client", "services", "workers")


@dataclass(frozen=True)
class Probe:
    """Something of the contract, and what the code calls it."""

    subject: str
    named_after: tuple[str, ...]
    exactly: tuple[str, ...] = ()
    """Identifiers, or pairs like `lab.tokens`, whose words occur in too much else."""


# The last that were added, of those whose name no other record has: sink_ratio would count three fields as one.
FIELDS = (
    Probe("the field source_field of a capture", ("source_field",)),
    Probe("the field exclude_position_0 of a fit", ("exclude_position_0",)),
)
QUESTIONS = (
    Probe("the question TokenizeText, lab.tokens", ("TokenizeText",), ("TextTokens", "lab.tokens")),
    Probe("the question ListSources, lab.datasets", ("ListSources",), ("lab.datasets",)),
)


def touched(probe: Probe, root: Path) -> list[Path]:
    """Lists the hand-written files of the product that know of a probe's subject, relative to the root."""
    return [path for path in written(root, PRODUCT, (".py", ".proto")) if _knows(root / path, probe)]


def _knows(path: Path, probe: Probe) -> bool:
    spoken = _spoken(path)
    wanted = [_words(name) for name in probe.named_after]
    return not spoken.keys().isdisjoint(probe.exactly) or any(
        _contains(words, asked) for words in spoken.values() for asked in wanted
    )


@cache
def _spoken(path: Path) -> dict[str, tuple[str, ...]]:
    """Returns the names in a file, each with its words."""
    names = _python_names(parsed(path)) if path.suffix == ".py" else _proto_names(path.read_text())
    return {name: _words(name) for name in names}


def _words(identifier: str) -> tuple[str, ...]:
    """Cuts `TokenizeTextRequest`, `_tokenize_text` or `--tokenize-text` into words in lower case."""
    return tuple(word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", identifier))


def _contains(words: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    starts = range(len(words) - len(wanted) + 1)
    return any(words[start : start + len(wanted)] == wanted for start in starts)


def _proto_names(text: str) -> Iterator[str]:
    yield from re.findall(r"\w+", re.sub(r"//.*|/\*(?s:.*?)\*/", "", text))


def _python_names(tree: ast.Module) -> Iterator[str]:
    """Yields what the code names. A string that is a statement by itself is prose: a docstring, or a field's text."""
    prose: set[ast.expr] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str()) as text):
                prose.add(text)
        if node not in prose:
            yield from _names(node)


def _names(node: ast.AST) -> Iterator[str]:
    """Yields what one node names; of `lab.tokens` both `tokens` and the pair."""
    match node:
        case ast.Constant(value=str(text)):
            yield from re.findall(r"[\w-]+", text)
        case ast.Attribute(value=ast.Name(id=owner), attr=name):
            yield from (name, f"{owner}.{name}")
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
            yield name
        case (
            ast.FunctionDef(name=name)
            | ast.AsyncFunctionDef(name=name)
            | ast.ClassDef(name=name)
            | ast.alias(name=name)
        ):
            yield name
        case ast.MatchClass(kwd_attrs=names):
            yield from names
