"""`python -m actstore_worker` when it cannot start, or is stopped before it has."""

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from actstore_worker.__main__ import RAY_GONE
from tests.ray_head import agent_ports_to_wait_for
from tests.waiting import wait_until
from tests.worker_process import command_line, descendants, inherited

START_SECONDS = 180
WORKERS = [sys.executable, "-m", "actstore_worker"]


@contextmanager
def started(
    environment: dict[str, str], folder: Path, command: Sequence[str] = WORKERS
) -> Iterator[subprocess.Popen[str]]:
    """A process that a test which fails leaves nothing of: neither itself nor its pipes."""
    with subprocess.Popen(
        command,
        env=inherited() | environment | {"HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_serve(process: subprocess.Popen[str]) -> Path:
    """Waits until Serve is on its way, and returns the folder of Ray's session."""
    wait_until(lambda: process.poll() is not None or serve_controllers(process.pid), "the start of Serve")
    assert process.poll() is None, process.communicate(timeout=START_SECONDS)
    return ray_folder(serve_controllers(process.pid)[0])


def serve_controllers(pid: int) -> list[int]:
    return [child for child in descendants(pid) if command_line(child).startswith("ray::ServeController")]


def ray_folder(pid: int) -> Path:
    """Where Ray keeps its logs and sockets: the folder of the session that this process of it belongs to."""
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            path = descriptor.readlink()
            if path.parent.name == "logs":
                return path.parents[2]
    raise AssertionError(f"process {pid} has no log")


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "ACTSTORE_STORE is required"),
        ({"ACTSTORE_STORE": "/nowhere/at/all", "ACTSTORE_GATEWAY_TOKEN": "t"}, "/nowhere/at/all"),
    ],
)
def test_a_start_that_cannot_be_says_why_in_one_line(environment: dict[str, str], said: str, tmp_path: Path) -> None:
    with started(environment, tmp_path) as process:
        output, errors = process.communicate(timeout=START_SECONDS)
    assert process.returncode == 2
    assert "ready" not in output
    assert said in errors
    assert errors.startswith("actstore_worker: ")
    assert "Traceback" not in errors


STARTER = """
import sys
from actstore._stack.guard import Guarded
Guarded([sys.executable, "-m", "actstore_worker"], grace_seconds=180).wait()
"""


@pytest.mark.stack
def test_workers_end_with_who_started_them_and_leave_nothing(tmp_path: Path) -> None:
    """Who is killed once Ray runs and Serve is on its way: the workers' guard sends them SIGTERM, as others may."""
    (tmp_path / "store").mkdir()
    settings = {"ACTSTORE_STORE": str(tmp_path / "store"), "ACTSTORE_GATEWAY_TOKEN": "t"}
    with started(settings, tmp_path, [sys.executable, "-c", STARTER]) as process:
        folder = wait_for_serve(process)
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700  # Ray makes all below writable for everybody
        children = descendants(process.pid)
        process.kill()
        output, errors = process.communicate(timeout=START_SECONDS)  # which all of them hold
    assert not folder.parent.exists(), errors
    assert [json.loads(line)["starting"] for line in output.splitlines()][:3] == ["the store", "Ray", "the coordinator"]
    wait_until(lambda: not any(map(command_line, children)), "the end of all that was started")


@pytest.mark.stack
def test_workers_whose_ray_is_gone_say_so_and_end(tmp_path: Path) -> None:
    """While they start; it is watched from then on. Whoever started them sees it by their status."""
    (tmp_path / "store").mkdir()
    settings = {"ACTSTORE_STORE": str(tmp_path / "store"), "ACTSTORE_GATEWAY_TOKEN": "t"}
    with started(settings, tmp_path) as process:
        folder, children = wait_for_serve(process), descendants(process.pid)
        (doomed,) = (pid for pid in children if command_line(pid).split(" ")[0].endswith("/raylet"))
        assert agent_ports_to_wait_for(doomed) == set()
        os.kill(doomed, signal.SIGKILL)
        _, errors = process.communicate(timeout=START_SECONDS)
    assert process.returncode == RAY_GONE
    said = json.loads(errors.splitlines()[-1])
    assert said["message"].startswith("the Ray cluster of the workers is gone: "), errors
    assert not folder.parent.exists()
    wait_until(lambda: not any(map(command_line, children)), "the end of all that was started")
