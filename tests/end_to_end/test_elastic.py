"""Workers on a cluster whose GPU nodes come and go: no node at rest, one for what waits, and none once it is done.

One cluster for all of this file, with nodes that only say that they have a GPU. The tests are its autoscaler: they see
what Ray tells an autoscaler, bring a node for what is wanted, and take one away that is idle or in the middle of work.
"""

import json
import os
import random
import signal
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray._raylet import GcsClient
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import NodeStatus

import actstore
from actstore._stack.seaweed import free_ports
from actstore_api.codec import encode
from actstore_api.records.capture import CaptureSpecification
from actstore_api.v1 import capture_pb2
from actstore_service.server import Service
from actstore_service.settings import Settings
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.format.products import NORM_SKETCHES
from actstore_storage.runs.opening import open_run
from tests.capture_requests import capture_request
from tests.coordinating import ThreadWorker, coordinator, watch
from tests.coordinating import run as run_here
from tests.made_models.random_models import WORDS, save_model
from tests.ray_head import added_node, agent_ports_to_wait_for, ray_cluster
from tests.topology.caller import Caller, swept_cells
from tests.waiting import wait_until
from tests.worker_process import READY_SECONDS, TOKEN, WorkerProcess, command_line, descendants, running_workers

pytestmark = pytest.mark.stack

GPUS_MAX, SHARDS, TRIES = 2, 24, 5
# What a capture worker and a model replica take of a GPU.
CAPTURE, REPLICA = 0.75, 0.25
IDLE_SECONDS = "1.5"


@dataclass
class ElasticCluster:
    """A Ray whose head takes no work. `nodes` are those with a GPU that are there."""

    cluster: Cluster
    nodes: list[Any] = field(default_factory=list)

    def wanted(self) -> dict[float, int]:
        """The demand that no node has room for, as an autoscaler sees it: how often which share of a GPU."""
        state = get_cluster_resource_state(GcsClient(address=self.cluster.address))
        found: dict[float, int] = {}
        for one in state.pending_resource_requests:
            share = one.request.resources_bundle.get("GPU", 0.0)
            found[share] = found.get(share, 0) + one.count
        return found

    def idle(self, node: Any) -> bool:
        """Whether Ray tells an autoscaler that the node may go."""
        state = get_cluster_resource_state(GcsClient(address=self.cluster.address))
        (found,) = (one for one in state.node_states if one.node_id.hex() == node.node_id)
        return bool(found.status == NodeStatus.Value("IDLE"))

    def add(self) -> Any:
        node = added_node(self.cluster, cpus=2, gpus=1)
        self.nodes.append(node)
        return node

    def take_idle(self) -> None:
        """Takes all nodes away, each once Ray says that it is idle."""
        for node in list(self.nodes):
            wait_until(lambda node=node: self.idle(node), "a node that nothing keeps")  # type: ignore[misc]
            assert processes(node, "ray::ServeReplica") == processes(node, "ray::_CaptureActor") == []
            self.nodes.remove(node)
            self.cluster.remove_node(node)

    def kill(self, node: Any) -> None:
        """As when a machine loses its power."""
        raylet = _raylet(node)
        for pid in [raylet, *descendants(raylet)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)


def processes(node: Any, title: str) -> list[int]:
    return [pid for pid in descendants(_raylet(node)) if command_line(pid).startswith(title)]


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elastic")
    save_model(folder / "models" / "tiny", "llama-grouped")
    chosen = random.Random(0)
    lines = (json.dumps({"text": " ".join(chosen.choices(WORDS, k=chosen.randint(1, 70)))}) for _ in range(40 * SHARDS))
    for name in ("data", "store"):
        (folder / name).mkdir()
    (folder / "data" / "words.jsonl").write_text("\n".join(lines))
    (folder / "token").write_text(f"{TOKEN}\n")
    return folder


@pytest.fixture(scope="module")
def bucket(folder: Path) -> Bucket:
    return open_bucket(str(folder / "store"))


@pytest.fixture(scope="module")
def gpus() -> Iterator[ElasticCluster]:
    with ray_cluster() as cluster:
        yield ElasticCluster(cluster)


@pytest.fixture(autouse=True)
def _no_node_is_left(gpus: ElasticCluster) -> Iterator[None]:
    """A test that fails leaves none to the next one."""
    yield
    for node in list(gpus.nodes):
        gpus.kill(node)


@pytest.fixture(scope="module")
def metrics_address() -> str:
    return f"127.0.0.1:{free_ports(1)[0]}"


@pytest.fixture(scope="module")
def workers(folder: Path, gpus: ElasticCluster, metrics_address: str) -> Iterator[WorkerProcess]:
    """They start without a node for work, so nothing of theirs may need one."""
    variables = {
        "ACTSTORE_RAY_ADDRESS": gpus.cluster.address,
        "ACTSTORE_RAY_ISOLATED_BY": "one machine, for a test",
        "ACTSTORE_GATEWAY_TOKEN_FILE": str(folder / "token"),
        "ACTSTORE_RAY_GPUS_MAX": str(GPUS_MAX),
        "ACTSTORE_RAY_MODEL_REPLICAS_MIN": "0",
        "ACTSTORE_RAY_REPLICA_IDLE_SECONDS": IDLE_SECONDS,
        "ACTSTORE_COORDINATOR_WORKER_IDLE_SECONDS": IDLE_SECONDS,
        "ACTSTORE_COORDINATOR_POOL_SECONDS": "0.5",
        "ACTSTORE_WORKER_METRICS_LISTEN": metrics_address,
    }
    with running_workers(
        folder / "store",
        model_folder=folder / "models",
        dataset_folder=folder / "data",
        log=folder / "workers.log",
        environment=variables,
    ) as workers:
        yield workers


@pytest.fixture(scope="module")
def caller(workers: WorkerProcess) -> Iterator[Caller]:
    with workers.channel() as channel:
        yield Caller(workers, channel)


@pytest.fixture(scope="module")
def lab(workers: WorkerProcess, bucket: Bucket) -> Iterator[actstore.Lab]:
    settings = Settings(
        listen="127.0.0.1:0",
        metrics_listen="127.0.0.1:0",
        gateway=workers.address,
        gateway_token=workers.token,
        anonymous=("reader", "writer", "admin"),
    )
    service = Service(bucket, settings)
    with actstore.connect(service.address) as lab:
        yield lab
    service.stop()


def request(run: str) -> CaptureSpecification:
    return capture_request(
        "tiny",
        "words.jsonl",
        run,
        dense_sites=("resid_post.1", "z.2"),
        packing=True,
        sequences_per_batch=4,
        sequences_per_shard=60,
    )


def contents(bucket: Bucket, run: str) -> dict[int, dict[str, tuple[int, int, str]]]:
    """By shard and product, the bytes, rows and SHA-256 of what was committed, but for sketches, drawn by chance."""
    snapshot = open_run(bucket, run)
    assert snapshot.complete
    return {
        commit.shard: {
            product: (item.bytes, item.rows, item.sha256)
            for product, item in commit.objects.items()
            if product != NORM_SKETCHES
        }
        for commit in snapshot.commits
    }


def gauge(address: str, name: str, label: str = "") -> float:
    with urllib.request.urlopen(f"http://{address}/metrics") as page:
        families = text_string_to_metric_families(page.read().decode())
    found = {(one.name, "/".join(one.labels.values())): one.value for family in families for one in family.samples}
    return found[name, label]


def waited_for(updates: list[Any]) -> set[str]:
    return {update.progress.waits_for for update in list(updates) if update.HasField("progress")}


def test_without_a_node_all_but_live_work_is_answered(
    lab: actstore.Lab, gpus: ElasticCluster, metrics_address: str
) -> None:
    estimate = lab.estimate_capture("tiny", dataset="words.jsonl", dense_sites=["resid_post.1"])
    assert (estimate.documents, estimate.seconds) == (40 * SHARDS, 0)
    assert [row["name"] for row in lab.datasets()] == ["words.jsonl"]
    assert (list(lab.runs()), gpus.wanted()) == ([], {})
    for name in ("capture_workers_wanted", "capture_workers_idle", "model_replicas_wanted"):
        assert gauge(metrics_address, f"actstore_{name}") == 0
    assert gauge(metrics_address, "actstore_model_replicas", "gpu") == 0


def test_a_question_brings_a_node_and_lets_it_go(caller: Caller, gpus: ElasticCluster, metrics_address: str) -> None:
    """A sweep says what it waits for."""
    updates: list[Any] = []
    with ThreadPoolExecutor(1) as thread:
        answered = thread.submit(lambda: [updates.append(update) for update in caller.sweeping()])
        wait_until(lambda: "a node with a GPU" in waited_for(updates), "a sweep that says that it waits for a node")
        wait_until(lambda: gpus.wanted() == {REPLICA: 1}, "a replica that wants a GPU")
        node = gpus.add()
        assert agent_ports_to_wait_for(_raylet(node)) == set()
        answered.result(READY_SECONDS)
    *before, last = updates
    assert swept_cells(before).num_rows
    assert last.HasField("result")
    assert waited_for(before) <= {"a node with a GPU", "a model replica", ""}
    wait_until(lambda: gauge(metrics_address, "actstore_model_replicas", "gpu") == 1, "the metric of a replica")
    assert len(processes(node, "ray::ServeReplica")) == 1
    gpus.take_idle()
    wait_until(lambda: gauge(metrics_address, "actstore_model_replicas_wanted") == 0, "no replica is wanted")
    assert gpus.wanted() == {}


def test_a_node_that_leaves_in_the_middle_of_shards_loses_nothing(
    caller: Caller, gpus: ElasticCluster, bucket: Bucket, folder: Path, metrics_address: str
) -> None:
    """Shards want as many GPUs as there may be; the shards of the node that left are captured by the next one."""
    undisturbed = _undisturbed(bucket, folder)
    for attempt in range(TRIES):
        run = caller.start(encode(request(f"killed-{attempt}")))
        wait_until(lambda: gpus.wanted() == {CAPTURE: GPUS_MAX}, "workers that want GPUs")
        news = caller.watch(run)
        assert next(news).waits_for == "a node for a capture worker"
        assert gauge(metrics_address, "actstore_capture_workers_wanted") == GPUS_MAX
        node = gpus.add()
        next(one for one in news if one.shards_committed)
        gpus.kill(node)
        in_time = not open_run(bucket, run).complete
        if in_time:
            wait_until(lambda: gpus.wanted() == {CAPTURE: GPUS_MAX}, "a worker that wants another GPU")
            gpus.add()
        *_, last = news
        assert last.state == capture_pb2.CAPTURE_STATE_COMPLETE
        assert contents(bucket, run) == undisturbed
        # The worker whose node has not come is not wanted any more.
        wait_until(lambda: gpus.wanted() == {}, "no demand that is left")
        assert {commit.device for commit in open_run(bucket, run).commits} == {"cpu"}  # No GPU is real.
        if in_time:
            break
        lost = gauge(metrics_address, "actstore_shard_attempts_total", "lost")
        assert lost == 0
    else:
        pytest.fail(f"each of {TRIES} kills came too late to matter")
    assert gauge(metrics_address, "actstore_shard_attempts_total", "lost") > 0
    gpus.take_idle()
    wait_until(lambda: gauge(metrics_address, "actstore_capture_workers", "cpu") == 0, "no capture worker")
    assert gpus.wanted() == {}


def _undisturbed(bucket: Bucket, folder: Path) -> dict[int, dict[str, tuple[int, int, str]]]:
    """The same run, captured in this process."""
    captures = coordinator(folder, bucket, ThreadWorker(bucket))

    async def work() -> None:
        assert (await watch(captures, await captures.submit(request("undisturbed"))))[-1].state == "complete"

    run_here(work())
    return contents(bucket, "undisturbed")
