"""The files that the rules are about."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("proto", "storage", "client", "services", "workers", "tests", "benchmarks", "models", "examples")


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def sources() -> list[Path]:
    """Every Python file that a person wrote, relative to the root."""
    found = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))
    return [path.relative_to(ROOT) for path in found if "_pb2" not in path.name]


@pytest.fixture(scope="session")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="session")
def packages(project: dict[str, Any]) -> list[Path]:
    """The wheel's packages, relative to the root."""
    return [Path(package) for package in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
