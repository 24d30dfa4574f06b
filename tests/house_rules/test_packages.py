"""What lands in site-packages, how modules are named, and what an import costs."""

import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path
from typing import Any

VAGUE = {"utils", "util", "common", "helpers", "helper", "misc"}
HEAVY = ("torch", "ray", "transformers")
IMPORT = """
import json, sys, time
started = time.monotonic()
import actstore
loaded = [name for name in {heavy!r} if name in sys.modules]
print(json.dumps({{"loaded": loaded, "import_seconds": round(time.monotonic() - started, 2)}}))
"""


def test_only_prefixed_packages_are_installed(packages: list[Path], root: Path) -> None:
    assert all(package.name.split("_")[0] == "actstore" for package in packages)
    # An editable install puts the whole folder on the path.
    beside = {path.parent.relative_to(root) for package in packages for path in root.glob(f"{package.parts[0]}/*/*.py")}
    assert beside == set(packages)


def test_every_package_is_typed(packages: list[Path], root: Path) -> None:
    assert [package for package in packages if not (root / package / "py.typed").exists()] == []


def test_top_folders_are_no_packages(root: Path) -> None:
    assert [str(path) for path in root.glob("*/__init__.py")] == []


def test_no_module_has_a_name_that_says_nothing(sources: list[Path]) -> None:
    assert [str(path) for path in sources if _own_name(path) in VAGUE] == []


def test_no_module_is_named_like_another_library(sources: list[Path], project: dict[str, Any]) -> None:
    """In a sub-package the name has the noun before it, as in `norms.profile`, and nothing is mistaken for profile."""
    taken = set(sys.stdlib_module_names) | _imported_as(project)
    at_top = [path for path in sources if len(path.parts) <= len(Path("folder/package/module.py").parts)]
    assert [str(path) for path in at_top if _own_name(path) in taken - {"__main__"}] == []


def _own_name(path: Path) -> str:
    return path.parent.name if path.stem == "__init__" else path.stem


def _imported_as(project: dict[str, Any]) -> set[str]:
    """The top-level names under which the project's direct dependencies are imported."""
    wanted = _declared(project)
    return {
        name for name, owners in packages_distributions().items() if wanted & {_canonical(owner) for owner in owners}
    }


def _declared(project: dict[str, Any]) -> set[str]:
    """The distributions that pyproject.toml asks for, extras included."""
    asked = chain(project["project"]["dependencies"], *project["project"]["optional-dependencies"].values())
    return {_canonical(re.split(r"[\[<>=~! ]", requirement)[0]) for requirement in asked} - {"actstore"}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_everything_declared_is_constrained(project: dict[str, Any], root: Path) -> None:
    constrained = {line.partition("==")[0] for line in (root / "constraints.txt").read_text().splitlines()}
    assert _declared(project) - constrained == set()


def test_importing_the_client_is_light() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT.format(heavy=HEAVY)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    print(f"import actstore takes {found['import_seconds']} seconds")
    assert found["loaded"] == []
