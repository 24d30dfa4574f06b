"""Which files know of one field, or of one question, of the contract: those that the next one like it will touch, too.

A file knows of it where an identifier or a string is named after it. After `sink_ratio` are named `SINK_RATIO`,
`_check_sink_ratio` and "--sink-ratio"; after `TokenizeText`, `tokenize_text` and `TokenizeTextRequest`. What a comment
or a docstring says does not count.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
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
    Probe(
        "the question TokeniseText, lab.tokens",
        ("TokeniseText", "TokeniseQuestion", "TokenisedText"),
        ("TextTokens", "lab.tokens"),
    ),
    Probe("the question ListSources, lab.datasets", ("ListSources",), ("Sources", "lab.datasets")),
)


def touched(probe: Probe, root: Path) -> list[Path]:
    """Lists the hand-written files of the product that know of a probe's subject, relative to the root."""
    return [path for path in written(root, PRODUCT, (".py", ".proto")) if _knows(root / path, probe)]


def _knows(path: Path, probe: Probe) -> bool:
    spoken = set(_python_names(parsed(path)) if path.suffix == ".py" else _proto_names(path.read_text()))
    wanted = [_words(name) for name in probe.named_after]
    return not spoken.isdisjoint(probe.exactly) or any(
        _contains(_words(name), words) for name in spoken for words in wanted
    )


def _words(identifier: str) -> tuple[str, ...]:
    """Cuts `TokenizeTextRequest`, `_tokenize_text` or `--tokenize-text` into words in lower case."""
    return tuple(word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", identifier))


def _contains(words: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    starts = range(len(words) - len(wanted) + 1)
    return any(words[start : start + len(wanted)] == wanted for start in starts)


def _proto_names(text: str) -> Iterator[str]:
    yield from re.findall(r"\w+", re.sub(r"//.*|/\*(?s:.*?)\*/", "", text))


def _python_names(tree: ast.Module) -> Iterator[str]:
    docstrings = set(_docstrings(tree))
    for node in ast.walk(tree):
        if node not in docstrings:
            yield from _names(node)


def _docstrings(tree: ast.Module) -> Iterator[ast.expr]:
    """Yields every string that is a statement by itself, which is prose: a docstring, or the text below a field."""
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str()) as text):
                yield text


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
