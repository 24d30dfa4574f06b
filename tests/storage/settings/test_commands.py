"""One file for service and workers, as an operator writes it and looks at what came of it."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.service.process import environment

FILE = """
gateway_token = "hidden-token"
gateway = "127.0.0.1:7434"
model_folders = []

[limits]
grace_seconds = 3

[coordinator]
captures = 4
"""


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("actstore_service", ("grace_seconds = 3.0  # limits.grace_seconds in ", 'gateway = "127.0.0.1:7434"')),
        ("actstore_worker", ("captures = 4  # coordinator.captures in ", "plans = 9  # ACTSTORE_COORDINATOR_PLANS")),
    ],
)
def test_one_file_for_both(module: str, expected: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "lab.toml").write_text(FILE)
    done = subprocess.run(
        [sys.executable, "-m", module, "--config", f"{tmp_path}/lab.toml", "--print-config"],
        env=environment(ACTSTORE_STORE=str(tmp_path), ACTSTORE_COORDINATOR_PLANS="9", ACTSTORE_TOKEN="hidden-token"),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in expected if line not in done.stdout] == []
    assert "hidden-token" not in done.stdout
    assert '# gateway_token = "***"' in done.stdout
    assert tomllib.loads(done.stdout)["store"] == str(tmp_path)


def test_what_is_wrong_is_said_in_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "actstore_worker"],
        env=environment(ACTSTORE_COORDINATOR_PLAN="1"),
        capture_output=True,
        text=True,
    )
    said = (
        "actstore_worker: ACTSTORE_COORDINATOR_PLAN in the environment is no setting of any process of actstore; "
        "the closest is ACTSTORE_COORDINATOR_PLANS\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)
