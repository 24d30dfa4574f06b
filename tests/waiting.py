"""Waiting in tests: for a state, and not for a time."""

import time
from collections.abc import Callable

# For what takes a moment on an idle machine, and on a busy one a hundred times as long. Only a test that fails waits so
# long.
PATIENCE_SECONDS = 120.0
_POLL_SECONDS = 0.02


def wait_until(holds: Callable[[], object], what: str, patience_seconds: float = PATIENCE_SECONDS) -> None:
    """`what` is in the message of the AssertionError where it does not hold in `patience_seconds`."""
    give_up = time.monotonic() + patience_seconds
    while not holds():
        assert time.monotonic() < give_up, f"not in {patience_seconds:.0f} seconds: {what}"
        time.sleep(_POLL_SECONDS)
