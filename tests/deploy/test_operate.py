"""Every command of docs/operate.md, in their order, on a deployment that they start themselves."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.deploy.manifests import ROOT
from tests.docs.code_blocks import Block, blocks_of, run_block
from tests.monitoring.tools import tool
from tests.waiting import PATIENCE_SECONDS, wait_until

# It starts workers, which take more than a core.
pytestmark = pytest.mark.stack

PAGE = ROOT / "docs" / "operate.md"
# Ports of the page may be taken here.
START = "deploy/local/up.py lab"
PROMETHEUS = ".tools/prometheus/usr/bin/prometheus"
TARGETS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The reader's folder. Whatever happens, nothing that the page started is left."""
    made = tmp_path_factory.mktemp("operator")
    for name in ("models", "deploy"):
        (made / name).symlink_to(ROOT / name)
    yield made
    with suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int((made / "lab" / "run" / "up.pid").read_text()), signal.SIGKILL)


@pytest.fixture(scope="module")
def environment() -> Mapping[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ACTSTORE_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**inherited, "PATH": path, "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}


def _blocks() -> list[Block]:
    return [block for block in blocks_of(PAGE) if block.kind == "console" and not block.reason]


def test_the_page_leads_from_nothing_to_a_deployment(
    folder: Path, environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    prometheus = tool("prometheus")
    for block in _blocks():
        text = block.body.replace(START, f"{START} --free-ports").replace(PROMETHEUS, prometheus)
        try:
            run_block(PAGE, replace(block, body=text), {}, environment)
        except AssertionError as error:
            error.add_note(_logs(folder))
            raise
        if START in text:
            wait_until(lambda: _targets_up(folder) == TARGETS, "Prometheus scrapes both services and the workers")
    logs = _logs(folder)
    assert [name for name, secret in _secrets(folder / "lab").items() if secret in logs] == []


def _targets_up(folder: Path) -> int:
    """How many processes the Prometheus of the deployment has scraped."""
    (address,) = re.findall(r"^export PROMETHEUS=(.*)$", (folder / "lab" / "addresses").read_text(), re.MULTILINE)
    try:
        with urlopen(f"http://{address}/api/v1/query?query=sum(up)", timeout=PATIENCE_SECONDS) as answer:
            found = json.load(answer)["data"]["result"]
    except OSError:  # it starts
        return 0
    return int(found[0]["value"][1]) if found else 0


def _secrets(lab: Path) -> dict[str, str]:
    """The secrets of a deployment by their files."""
    found = {path.name: path.read_text().split()[0] for path in (lab / "tokens").iterdir() if path.name != "made"}
    keys = {path.name: path.read_text().split()[-1] for path in lab.glob("store-*")}
    return {**found, **keys, "gateway-tokens": (lab / "gateway-tokens").read_text().split()[0]}


def _logs(folder: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in (folder / "lab" / "logs").iterdir())


def test_the_folder_is_nobody_elses_and_is_not_made_twice(tmp_path: Path, environment: Mapping[str, str]) -> None:
    command = [ROOT / "deploy" / "local" / "setup", tmp_path / "lab"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    readable = [path for path in [tmp_path / "lab", *(tmp_path / "lab").rglob("*")] if path.stat().st_mode & 0o077]
    assert readable == []
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (again.returncode, "there is already a folder" in again.stderr) == (2, True)
