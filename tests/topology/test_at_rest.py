"""What workers have loaded before anybody asks anything, and once somebody has."""

import pytest

from actstore import Lab
from tests.worker_process import WorkerProcess, command_line

pytestmark = pytest.mark.stack

# What makes shards and answers live questions; the coordinator plans.
MAY_LOAD = ("ray::_CaptureActor", "ray::ServeReplica:actstore:models", "ray::_CoordinatorActor")


def test_nothing_at_rest_has_loaded_torch(workers: WorkerProcess, with_torch_at_rest: list[str]) -> None:
    """It takes seconds and 300 MB a process. Capture workers are there because these workers are told to keep some."""
    assert workers.processes("ray::_CoordinatorActor")
    assert [title for title in with_torch_at_rest if not title.startswith("ray::_CaptureActor")] == []


def test_only_what_runs_models_loads_torch(workers: WorkerProcess, lab: Lab) -> None:
    """The starter, the gateway and Serve's own processes never do."""
    assert lab.tokens("tiny", "a word").ids
    titles = [command_line(pid) for pid in workers.with_library("libtorch")]
    assert any(title.startswith("ray::ServeReplica:actstore:models") for title in titles)
    assert [title for title in titles if not title.startswith(MAY_LOAD)] == []
