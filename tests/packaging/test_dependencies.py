"""What each package imports is declared where it is installed: pyproject.toml's dependencies and extras."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest

from tests.house_rules.python_files import ROOT, parsed, wheel_packages, written

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# The extras with which a package is used, or one room of it; and those of what only some calls import.
EXTRAS = {
    "actstore_api": [],
    "actstore": [],
    "actstore_storage": ["bucket"],
    "actstore_service": ["service"],
    "actstore_worker": ["worker"],
}
EXTRAS_OF_ROOMS = {
    "workers/actstore_worker/training": ["train"],
    "proto/actstore_api/exporting.py": ["monitor"],
    "proto/actstore_api/logs/traces.py": ["trace"],
    "proto/actstore_api/logs": ["monitor"],
}
EXTRAS_OF_CALLS = {"actstore": ["plot"]}
# Libraries that a call asks for by name where they are missing, and that no extra brings.
ASKED_FOR = {"actstore_worker": {"datasets"}}
# Declared and not imported: transformers uses it.
USED_BY_OTHERS = {"accelerate"}
# Distributions that share the namespace of their first name.
NAMESPACES = ("google",)

LIGHT = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
import actstore
actstore.connect("127.0.0.1:1").close()
assert len(actstore.simulate_depth()) > 0
for address in (".", "s3://bucket/prefix"):
    try:
        actstore.connect(address, s3=actstore.S3Access("127.0.0.1:1", "key", "secret"))
    except actstore.MissingLibrary as error:
        print(error.next_step)
"""


def declared(extras: list[str]) -> set[str]:
    """The distributions that are installed with some extras, those of extras that they name among them."""
    asked = list(PROJECT["dependencies"])
    for extra in extras:
        asked += PROJECT["optional-dependencies"][extra]
    found = {_canonical(requirement) for requirement in asked if not requirement.startswith("actstore[")}
    inner = [name for one in asked if one.startswith("actstore[") for name in one[len("actstore[") : -1].split(",")]
    return found | declared(inner) if inner else found


def _canonical(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=~! ]", requirement)[0]).lower()


_imported_as = cache(packages_distributions)  # it reads the metadata of all that is installed


@cache
def _files(name: str) -> frozenset[str]:
    return frozenset(str(file) for file in distribution(name).files or ())


def owners(module: str, among: set[str]) -> set[str]:
    """The distributions that may bring a module; in a namespace, those of `among` that have it."""
    first = module.partition(".")[0]
    if first not in NAMESPACES:
        return {_canonical(name) for name in _imported_as().get(first, ())}
    folder = "/".join(module.split(".")[:2]) + "/"
    return {name for name in among if any(file.startswith(folder) for file in _files(name))}


def imports(tree: ast.AST, lazily: bool = False) -> Iterator[tuple[str, bool]]:
    """Each module that a file imports, and whether only a call imports it. What only types need is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, lazily) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((f"{node.module}.{alias.name}", lazily) for alias in node.names)
        yield from imports(node, lazily or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def imported(package: Path) -> Iterator[tuple[Path, str, bool]]:
    """What a package imports that is neither its own, nor another package's of the house, nor Python's."""
    for path in written(ROOT, [str(package)]):
        for module, lazily in imports(parsed(ROOT / path)):
            first = module.partition(".")[0]
            if first not in sys.stdlib_module_names and first not in EXTRAS:
                yield path, module, lazily


@pytest.mark.parametrize("name", EXTRAS)
def test_every_import_is_declared(name: str) -> None:
    (package,) = [package for package in wheel_packages(ROOT) if package.name == name]
    undeclared = [
        f"{path}: {module}"
        for path, module, lazily in imported(package)
        if module.partition(".")[0] not in ASKED_FOR.get(name, set())
        and not owners(module, found := declared(_extras(name, path, lazily))) & found
    ]
    assert undeclared == []


def _extras(name: str, path: Path, lazily: bool) -> list[str]:
    of_room = (extras for room, extras in EXTRAS_OF_ROOMS.items() if path.is_relative_to(room))
    return next(of_room, EXTRAS[name] + (EXTRAS_OF_CALLS.get(name, []) if lazily else []))


def test_everything_declared_is_imported() -> None:
    wanted = declared(["all"])
    modules = {module for package in wheel_packages(ROOT) for _, module, _ in imported(package)}
    used = {owner for module in modules for owner in owners(module, wanted)}
    by_name = {"matplotlib", "pandas"}  # actstore._optional.library imports these
    assert wanted - used - by_name == USED_BY_OTHERS


def test_a_client_without_extras_asks_a_service_and_names_the_extra_of_a_bucket() -> None:
    base = declared([])
    absent = {
        name
        for name, brought in _imported_as().items()
        if {_canonical(one) for one in brought} & (declared(["all"]) - base)
    }
    assert {"minio", "datasketches", "msgspec", "urllib3", "torch"} <= absent
    code = LIGHT.format(names=absent)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(re.findall(r"pip install '\.\[bucket\]'", done.stdout)) == 2
