"""`python -m actstore_worker`: the workers of one store, until SIGTERM or SIGINT. The environment is read here alone.

Prints one line of JSON on standard output once it is ready; everything else goes to standard error.
"""

import json
import os
import signal
import sys
import threading
from types import FrameType

from actstore_storage.errors import ActstoreError
from actstore_worker.settings import SettingsError, WorkerSettings, read_environment


def main() -> int:
    """Exit code 0 after a signal, 2 where a setting or the store forbids to start."""
    stopped = threading.Event()
    ready_line = _reserve_standard_output()
    _prepare_ray()
    try:
        _serve_until(stopped, read_environment(os.environ), ready_line)
    except (SettingsError, ActstoreError) as error:
        print(f"actstore_worker: {error}", file=sys.stderr)
        return 2
    return 0


def _serve_until(stopped: threading.Event, settings: WorkerSettings, ready_line: int) -> None:
    from actstore_worker.topology import running

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopped.set()

    with running(settings) as address:
        # Ray has put handlers of its own there, which would end the process in the middle of things.
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        with os.fdopen(ready_line, "w") as output:
            print(json.dumps({"ready": "workers", "address": address}), file=output)
        stopped.wait()


def _reserve_standard_output() -> int:
    """Ray prints what its processes print; that goes to standard error, so that the ready line stands alone."""
    ready_line = os.dup(1)
    os.dup2(2, 1)
    return ready_line


def _prepare_ray() -> None:
    """An operator's own choice stands; without one, Ray would report home and write a token into the home directory."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


if __name__ == "__main__":
    sys.exit(main())
