"""kill -9 of a process of the workers: its work goes on in another one."""

import os
import signal
from pathlib import Path

import pytest

from actstore_api.v1 import capture_pb2
from tests.topology.caller import (
    TRIES,
    Caller,
    check_tokens,
    midway,
    snapshot,
    start_once_available,
)
from tests.worker_process import WorkerProcess

pytestmark = pytest.mark.stack


def test_a_killed_worker_costs_nothing_but_time(caller: Caller, workers: WorkerProcess, folder: Path) -> None:
    """Kill -9 of one capture worker after the first commits; Ray restarts it and its shard is done again."""
    run = midway(caller, "killed").run
    os.kill(workers.processes("ray::_CaptureActor")[0], signal.SIGKILL)
    *_, last = caller.watch(run)
    assert last.state == capture_pb2.CAPTURE_STATE_COMPLETE
    check_tokens(snapshot(folder, run))


def test_a_capture_submitted_again_after_its_coordinator_was_killed_goes_on(
    caller: Caller, workers: WorkerProcess, folder: Path
) -> None:
    """Until Ray has restarted it, callers hear that the workers are unavailable; then the same request goes on."""
    for attempt in range(TRIES):
        wanted = midway(caller, f"orphan-{attempt}")
        (victim,) = workers.processes("ray::_CoordinatorActor")
        os.kill(victim, signal.SIGKILL)
        run = start_once_available(caller, wanted)
        updates = list(caller.watch(run))
        assert updates[0].shards_committed >= 2
        assert updates[-1].state == capture_pb2.CAPTURE_STATE_COMPLETE
        check_tokens(snapshot(folder, run))
        if updates[0].shards_committed < updates[0].shards_total:
            return
    pytest.fail(f"each of {TRIES} captures was over before it was submitted again")
