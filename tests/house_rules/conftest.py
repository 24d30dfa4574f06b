"""The files that the rules are about."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.house_rules import python_files


@pytest.fixture(scope="session")
def root() -> Path:
    return python_files.ROOT


@pytest.fixture(scope="session")
def sources(root: Path) -> list[Path]:
    """Every Python file that a person wrote, relative to the root."""
    return python_files.written(root)


@pytest.fixture(scope="session")
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())


@pytest.fixture(scope="session")
def packages(root: Path) -> list[Path]:
    """The wheel's packages, relative to the root."""
    return python_files.wheel_packages(root)
