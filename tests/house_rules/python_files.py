"""The Python files that people wrote: which there are, what they are called as modules, and how long they are."""

import ast
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("proto", "storage", "client", "services", "workers", "docs", "tests", "benchmarks", "models", "examples")


def written(root: Path, folders: Iterable[str] = FOLDERS, kinds: Iterable[str] = (".py",)) -> list[Path]:
    """Lists the files that a person wrote, relative to the root; generated code is left out."""
    found = (path for folder in folders for path in sorted((root / folder).rglob("*")))
    return [path.relative_to(root) for path in found if path.suffix in kinds and "_pb2" not in path.name]


def wheel_packages(root: Path) -> list[Path]:
    """Lists the packages that the wheel has, relative to the root."""
    project = tomllib.loads((root / "pyproject.toml").read_text())
    return [Path(package) for package in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]


def modules(root: Path, packages: Iterable[Path]) -> dict[str, Path]:
    """Maps the dotted name of each module of the packages to its file."""
    return {
        module_name(path.relative_to(package.parent)): root / path
        for package in packages
        for path in written(root, [str(package)])
    }


def module_name(path: Path) -> str:
    """Returns the dotted name of a file, given relative to a folder that is on Python's path."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def parsed(path: Path) -> ast.Module:
    """Returns the syntax tree of a file, which nobody may change: several rules read it."""
    return _parsed(path, path.stat().st_mtime_ns)


@cache
def _parsed(path: Path, _changed_ns: int) -> ast.Module:
    return ast.parse(path.read_text())


def files_by_folder(paths: Iterable[Path]) -> Counter[Path]:
    """Counts the files of each folder. An `__init__` is the folder's own face, and does not count."""
    return Counter(path.parent for path in paths if path.name != "__init__.py")


def file_lengths(root: Path, paths: Iterable[Path]) -> Mapping[Path, int]:
    """Counts the lines of each file, without the docstrings of functions and classes: they have a line an argument."""
    return {path: _lines(root / path) for path in paths}


def _lines(path: Path) -> int:
    documented = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    said = (_docstring_lines(node) for node in ast.walk(parsed(path)) if isinstance(node, documented))
    return len(path.read_text().splitlines()) - sum(said)


def functions(path: Path) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, int]]:
    """Yields each function of a file, methods and inner ones too, with its number of lines, but for its docstring."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node, (node.end_lineno or node.lineno) - node.lineno + 1 - _docstring_lines(node)


def _docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    """A line for each argument makes no function or file harder to follow."""
    if ast.get_docstring(node, clean=False) is None:
        return 0
    first = node.body[0]
    return (first.end_lineno or first.lineno) - first.lineno + 1
