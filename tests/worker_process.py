"""The workers as a real process with a real Ray, for tests that need them."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc

from tests.waiting import wait_until

# On a busy machine; on an idle one it is ready in twenty.
READY_SECONDS = 900
STOP_SECONDS = 180
TOKEN = "gateway-token"
OF_TESTS = {"RAY_worker_niceness", "RAY_raylet_start_wait_time_s"}


@dataclass(frozen=True)
class WorkerProcess:
    address: str
    token: str
    pid: int

    @contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        with grpc.insecure_channel(self.address) as channel:
            yield channel

    def metadata(self, token: str | None = None) -> tuple[tuple[str, str], ...]:
        """What every call to the gateway carries."""
        bearer = self.token if token is None else token
        return ("application", "actstore"), ("authorization", f"Bearer {bearer}")

    def processes(self, title: str) -> list[int]:
        """The ids of Ray's processes below this one whose title begins so, as `ray::_CaptureActor`."""
        return [pid for pid in descendants(self.pid) if command_line(pid).startswith(title)]

    def with_library(self, name: str) -> list[int]:
        """The ids of this process and those below it that have loaded a shared library whose file is named so."""
        return [pid for pid in (self.pid, *descendants(self.pid)) if f"/{name}" in _maps(pid)]


@contextmanager
def running_workers(
    store: str | Path,
    *,
    model_folder: str | Path,
    dataset_folder: Path,
    log: Path,
    token: str = TOKEN,
    environment: Mapping[str, str] | None = None,
) -> Iterator[WorkerProcess]:
    """Started, ready, and stopped by SIGTERM, unless a test kills it; no process of it is left. `environment` has more
    of their variables.
    """
    variables = {
        "ACTSTORE_STORE": str(store),
        "ACTSTORE_MODEL_FOLDERS": str(model_folder),
        "ACTSTORE_DATASET_FOLDERS": str(dataset_folder),
        "HOME": str(log.parent),
        **(environment or {}),
    }
    if "ACTSTORE_GATEWAY_TOKEN_FILE" not in variables:
        variables["ACTSTORE_GATEWAY_TOKEN"] = token
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "actstore_worker"],
            env=inherited() | variables,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    try:
        yield WorkerProcess(_ready_address(process, log), token, process.pid)
    finally:
        left = descendants(process.pid)
        killed = process.poll() == -signal.SIGKILL
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            for pid in (process.pid, *left):
                _kill(pid)
            raise
        assert process.stdout is not None
        process.stdout.close()
    assert killed or code == 0, log.read_text()
    # The kernel may still be at the end of some that were killed.
    wait_until(lambda: not [pid for pid in left if command_line(pid)], f"the end of every process of {process.pid}")


def inherited() -> dict[str, str]:
    """The variables of this process without those that steer workers, and Ray in what the tests leave to it."""
    steer = ("ACTSTORE_", "RAY_")
    return {name: value for name, value in os.environ.items() if name in OF_TESTS or not name.startswith(steer)}


def descendants(pid: int) -> list[int]:
    """Children, their children and so on, from /proc."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        parents[int(status.parent.name)] = int(after_name[1])
    found = [pid]
    for parent in found:
        found += [child for child, its_parent in parents.items() if its_parent == parent]
    return found[1:]


def _ready_address(process: subprocess.Popen[bytes], log: Path) -> str:
    assert process.stdout is not None
    watchdog = threading.Timer(READY_SECONDS, process.kill)
    watchdog.start()
    said = (json.loads(line) for line in process.stdout)
    ready = next((line for line in said if line.get("ready") == "workers"), None)
    watchdog.cancel()
    assert ready, f"the workers did not become ready:\n{log.read_text()}"
    return str(ready["address"])


def command_line(pid: int) -> str:
    """Empty where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _maps(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return ""


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
