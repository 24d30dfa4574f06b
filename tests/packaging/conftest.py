"""The wheel, which is built once."""

from pathlib import Path

import pytest

from tests.packaging.environments import built_wheel


@pytest.fixture(scope="package")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_wheel(tmp_path_factory.mktemp("wheel"))
