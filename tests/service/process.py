"""The service as an operator starts it: a process of its own, told by its environment."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-m", "actstore_service")
FREE_PORTS = {"ACTSTORE_LISTEN": "127.0.0.1:0", "ACTSTORE_METRICS_LISTEN": "127.0.0.1:0"}
AT_ONCE = {"ACTSTORE_LIMITS_DRAIN_SECONDS": "0"}
STOP_SECONDS = 180


def environment(**variables: str) -> dict[str, str]:
    """The tests' own environment with no ACTSTORE_ variables but these."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ACTSTORE_")}
    return inherited | FREE_PORTS | AT_ONCE | variables


@contextmanager
def running_service(
    ending: signal.Signals = signal.SIGTERM, log: Path | None = None, **variables: str
) -> Iterator[dict[str, Any]]:
    """Yields what the service prints once it is ready, and its pid; it has to end well by the signal."""
    with ExitStack() as stack:
        told = stack.enter_context(log.open("wb")) if log else subprocess.PIPE
        process = subprocess.Popen(COMMAND, env=environment(**variables), stdout=subprocess.PIPE, stderr=told)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"the service did not start: {process.communicate()[1]!r}"
        yield json.loads(line) | {"pid": process.pid}
        process.send_signal(ending)
        _, said = process.communicate(timeout=STOP_SECONDS)
        assert process.returncode == 0, said
    finally:
        process.kill()
        process.communicate()


def refused_start(**variables: str) -> str:
    """What a service that refuses to start says; one line, and no traceback."""
    done = subprocess.run(COMMAND, env=environment(**variables), capture_output=True, text=True, timeout=STOP_SECONDS)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr
