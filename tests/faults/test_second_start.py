"""Workers that start on a Ray cluster on which workers ran before, or run."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from ray.cluster_utils import Cluster

from actstore_api.v1 import capture_pb2, service_pb2_grpc
from actstore_worker.cluster.process import PROXY_READY_SECONDS
from tests.worker_process import running_workers

pytestmark = pytest.mark.stack

COMMAND = [sys.executable, "-m", "actstore_worker"]


@pytest.fixture
def cluster() -> Iterator[str]:
    """Its address. A short path: Ray's socket names must fit into 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as scratch:
        (Path(scratch) / "ray").mkdir()
        ready = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": str(PROXY_READY_SECONDS)}
        with patch.dict(os.environ, RAY_TMPDIR=scratch, **ready):
            head = {"num_cpus": 2, "include_dashboard": False, "temp_dir": scratch}
            started = Cluster(initialize_head=True, head_node_args=head)
            yield str(started.address)
            started.shutdown()


def test_a_second_start_takes_the_serve_that_runs(cluster: str, tmp_path: Path) -> None:
    """Its port, which Serve keeps; and of the killed one nothing: neither its coordinator nor its settings. While that
    one lives, others are refused.
    """
    for name in ("store", "models", "data", "more"):
        (tmp_path / name).mkdir()
    for name in ("data", "more"):
        (tmp_path / name / f"{name}.jsonl").write_text('{"text": "a"}')
    store = tmp_path / "store"
    joined = {"ACTSTORE_RAY_ADDRESS": cluster}
    command = {"ACTSTORE_STORE": str(store), "ACTSTORE_GATEWAY_TOKEN": "t", **joined}
    first = subprocess.Popen(COMMAND, env=os.environ | command, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        address = next(told["address"] for told in map(json.loads, first.stdout) if "ready" in told)
        second = subprocess.run(COMMAND, env=os.environ | command, stderr=subprocess.PIPE, text=True, check=False)
        assert second.returncode == 2
        assert f"there are already workers over {store}, process {first.pid}" in second.stderr
    finally:
        first.kill()
        first.communicate()
    folders = {"model_folder": tmp_path / "models", "dataset_folder": tmp_path / "more", "log": tmp_path / "log"}
    with running_workers(store, **folders, environment=joined) as workers, workers.channel() as channel:
        assert workers.address == address
        captures = service_pb2_grpc.CaptureServiceStub(channel)
        found = captures.ListSources(capture_pb2.ListSourcesRequest(), metadata=workers.metadata())
        assert list(found.datasets) == ["more.jsonl"]
