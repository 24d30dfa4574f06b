"""What lands in site-packages, how modules are named, what an import costs, and that the readme shows it all."""

import json
import re
import subprocess
import sys
import tomllib
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


def test_module_names(sources: list[Path], project: dict[str, Any]) -> None:
    taken = VAGUE | set(sys.stdlib_module_names) | _imported_as(project)
    names = {path: path.parent.name if path.stem == "__init__" else path.stem for path in sources}
    assert {str(path) for path, name in names.items() if name in taken and name != "__main__"} == set()


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


def test_the_readme_shows_every_package(packages: list[Path], root: Path) -> None:
    readme = (root / "README.md").read_text()
    assert [str(package) for package in packages if package.name not in readme] == []


def test_the_architecture_page_draws_the_arrows_that_are_checked(project: dict[str, Any], root: Path) -> None:
    contracts = project["tool"]["importlinter"]["contracts"]
    (layers,) = [found["layers"] for found in contracts if found["name"] == "Arrows run one way"]
    assert " above ".join(f"`{layer}`" for layer in layers) in " ".join((root / "ARCHITECTURE.md").read_text().split())


def test_what_is_said_of_installing_is_true(root: Path) -> None:
    """Nothing is released, so that `pip install actstore` finds nothing; the extras that are named are there."""
    texts = [
        path.read_text()
        for folder in ("docs", "client", "workers", "services", "storage")
        for path in (root / folder).rglob("*")
        if path.suffix in (".md", ".py")
    ]
    texts += [path.read_text() for path in root.glob("*.md")]
    extras = set(tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    assert not [text for text in texts if re.search(r"pip install ['\"]?actstore", text)]
    named = {extra for text in texts for extra in re.findall(r"pip install '\.(?:/[^'\[]*)?\[(\w+)\]'", text)}
    assert {"all", "train"} <= named <= extras
