"""A service of its own process over a run that is wider than a connection, and clients that behave badly."""

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from actstore_api.v1 import catalog_pb2, norm_pb2
from actstore_storage.bucket.opening import open_bucket
from tests.service.calls.wide_run import write_wide_run
from tests.service.conftest import TOKEN, Caller
from tests.service.process import running_service
from tests.stored_run import write_stored_run
from tests.waiting import PATIENCE_SECONDS

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def wide_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The runs `planted` and `wide`."""
    folder = str(tmp_path_factory.mktemp("wide"))
    bucket = open_bucket(folder)
    write_stored_run(bucket)
    write_wide_run(bucket)
    return folder


@dataclass
class Running:
    """A service process."""

    address: str
    metrics: str
    pid: int

    def caller(self, token: str | None = TOKEN) -> Caller:
        return Caller(self.address, token)

    def counts(self) -> dict[tuple[str, ...], float]:
        """By the metric's name and its label values in order of label name."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=PATIENCE_SECONDS) as answer:
            families = text_string_to_metric_families(answer.read().decode())
            return {
                (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
                for family in families
                for sample in family.samples
            }

    def in_flight(self) -> float:
        return self.counts()[("actstore_calls_in_flight",)]

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.metrics}/readyz", timeout=PATIENCE_SECONDS):
                return True
        except urllib.error.HTTPError as error:
            error.close()
            return False

    def refused(self, kind: str, reason: str) -> float:
        return self.counts().get(("actstore_refused_total", kind, reason), 0)

    def resident_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return 4096 * pages

    def open_files(self) -> int:
        """Connections are among them."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


@contextmanager
def service_over(
    store: str,
    *,
    log: Path | None = None,
    listen: str = "127.0.0.1:0",
    certificate: tuple[str, str] | None = None,
    **limits: object,
) -> Iterator[Running]:
    """With these limits, by their names. With the files of a certificate and its key it speaks TLS."""
    variables = {f"ACTSTORE_LIMITS_{name.upper()}": str(value) for name, value in limits.items()}
    own = {"ACTSTORE_STORE": store, "ACTSTORE_TOKEN": TOKEN, "ACTSTORE_LISTEN": listen}
    if certificate is not None:
        own |= {"ACTSTORE_TLS_CERTIFICATE": certificate[0], "ACTSTORE_TLS_KEY": certificate[1]}
    with running_service(signal.SIGTERM, log, **own, **variables) as ready:
        yield Running(ready["address"], ready["metrics"], ready["pid"])


@contextmanager
def attack(service: Running, stalled: int = 0, half_open: int = 0) -> Iterator["Attack"]:
    """Streams that nobody reads and calls without a message, all open."""
    command = [
        sys.executable,
        "-m",
        "tests.service.calls.attacker",
        service.address,
        TOKEN,
        str(stalled),
        str(half_open),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        begun = Attack(process)
        assert begun.line()["open"] == stalled + half_open
        yield begun
    finally:
        process.kill()
        process.communicate()


@dataclass
class Attack:
    process: "subprocess.Popen[str]"

    def line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ends(self) -> dict[str, int]:
        """Reads what is there to read, and counts how the calls ended."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.line()


def ask_everything(call: Caller) -> None:
    """One small question of each class that needs threads, health included."""
    assert call("CatalogService", "ListRuns", catalog_pb2.ListRunsRequest()).runs
    assert call("NormService", "GetNormProfile", norm_pb2.GetNormProfileRequest(runs=["planted"])).ByteSize()
