"""Prometheus and promtool, as `make monitoring-tools` unpacks them, or as they are installed."""

import os
import shutil
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / ".tools" / "prometheus" / "usr" / "bin"


def tool(name: str) -> str:
    """The program's path. Skips the test where it is missing, except in CI."""
    found = shutil.which(name, path=os.pathsep.join([str(TOOLS), os.environ.get("PATH", "")]))
    if found is None:
        reason = f"{name} is missing: `make monitoring-tools` unpacks Debian's"
        assert not os.environ.get("CI"), reason
        pytest.skip(f"SKIPPED, {reason}")
    return found
