"""The workers as Kubernetes runs them: no process starts them, but Ray Serve, from the text of the manifest.

One cluster for all of this file, with its token and keys in files, over a SeaweedFS; before it two services.
"""

import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import yaml
from google.protobuf.wrappers_pb2 import BytesValue

import actstore
from actstore._stack.seaweed import free_ports
from actstore_api.v1 import capture_pb2, model_pb2, service_pb2_grpc
from actstore_api.verbs import VERBS
from actstore_service.server import Service
from actstore_service.settings import Limits, Settings
from actstore_storage.bucket.access import S3Access
from actstore_storage.bucket.opening import open_bucket
from tests.deploy.manifests import KUBERNETES
from tests.made_models.random_models import WORDS, save_model
from tests.ray_head import RayHead, agent_ports_to_wait_for, answers, get, head_command, ray_head
from tests.servers import SeaweedServer
from tests.service.access.test_access_file import entry, written
from tests.waiting import wait_until
from tests.worker_process import READY_SECONDS, command_line, descendants

pytestmark = pytest.mark.stack

TOKEN, NEXT_TOKEN = "planted-gateway-token", "planted-next-token"
CALL_SECONDS = 120
# What the environment of the manifest sets as a limit, a little smaller here.
MESSAGE_BYTES = 2 * 2**20
# So little that a caller is beyond one of them after any work, and beyond both after a capture.
TOKENS_A_MINUTE, DEVICE_SECONDS_AN_HOUR = 100, 0.0001
TEXT = " ".join(WORDS[:5])
# Callers with a token that is their name, beside those without one.
PEOPLE = ("ann", "bob", "eve")


def manifest_text() -> str:
    """What the manifest hands to Serve."""
    (service,) = yaml.safe_load_all((KUBERNETES / "base" / "ray-service.yaml").read_text())
    return str(service["spec"]["serveConfigV2"])


@dataclass(frozen=True)
class Cluster:
    head: RayHead
    folder: Path
    serve_port: int
    grpc_port: int
    metrics: str
    services: tuple[Service, ...]

    def lab(self, service: int, token: str | None = None) -> actstore.Lab:
        """The public client, of one of the services."""
        return actstore.connect(self.services[service].address, token=token)

    def call(self, method: str, message: Any, token: str = TOKEN) -> Any:
        """Asks the gateway itself, as a service does."""
        metadata = (("application", "actstore"), ("authorization", f"Bearer {token}"))
        with grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}") as channel:
            stubs = service_pb2_grpc.CaptureServiceStub(channel), service_pb2_grpc.ModelServiceStub(channel)
            stub = next(stub for stub in stubs if hasattr(stub, method))
            return getattr(stub, method)(message, metadata=metadata, timeout=CALL_SECONDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster")
    save_model(folder / "models" / "tiny", "llama-grouped")
    (folder / "data").mkdir()
    lines = (json.dumps({"text": " ".join(WORDS[number % 7 :])}) for number in range(40))
    (folder / "data" / "words.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def cluster(folder: Path, seaweed: SeaweedServer) -> Iterator[Cluster]:
    keys, token = folder / "credentials", folder / "token"
    keys.write_text(f"[default]\naws_access_key_id={seaweed.access_key}\naws_secret_access_key={seaweed.secret_key}\n")
    token.write_text(f"{TOKEN}\n")
    serve_port, grpc_port, metrics_port = free_ports(3)
    variables = {
        "ACTSTORE_STORE": f"s3://{seaweed.bucket}/cluster",
        "ACTSTORE_S3_ENDPOINT": seaweed.endpoint,
        "ACTSTORE_S3_SECURE": "0",
        "ACTSTORE_S3_CREDENTIALS_FILE": str(keys),
        "ACTSTORE_GATEWAY_TOKEN_FILE": str(token),
        "ACTSTORE_MODEL_FOLDERS": str(folder / "models"),
        "ACTSTORE_DATASET_FOLDERS": str(folder / "data"),
        "ACTSTORE_SAE_CACHE": str(folder / "saes"),
        "ACTSTORE_WORKER_METRICS_LISTEN": f"127.0.0.1:{metrics_port}",
        "ACTSTORE_COORDINATOR_TOKENS_A_MINUTE": str(TOKENS_A_MINUTE),
        "ACTSTORE_COORDINATOR_DEVICE_SECONDS_AN_HOUR": str(DEVICE_SECONDS_AN_HOUR),
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(MESSAGE_BYTES),
    }
    configuration = folder / "serve.yaml"
    # The ports are fixed on a pod, and free ones here.
    text = manifest_text()
    for fixed, free in (("port: 8000", serve_port), ("port: 9000", grpc_port)):
        assert text.count(fixed) == 1
        text = text.replace(fixed, f"port: {free}")
    configuration.write_text(text)
    with ExitStack() as stack:
        head = stack.enter_context(ray_head(folder / "head.log", **variables))
        head.deploy(configuration)
        wait_until(lambda: runs(head), "the application of the manifest", READY_SECONDS)
        access = S3Access(seaweed.endpoint, credentials_file=str(keys), secure=False)
        people = [entry(name, name, roles=["reader", "writer"], run_prefixes=["*"]) for name in PEOPLE]
        settings = Settings(
            listen="127.0.0.1:0",
            metrics_listen="127.0.0.1:0",
            gateway=f"127.0.0.1:{grpc_port}",
            gateway_token=TOKEN,
            anonymous=("reader", "writer", "admin"),
            access_file=Path(written(folder / "access", *people)),
            limits=Limits(totals_seconds=float(CALL_SECONDS), drain_seconds=0.01),
        )
        services = tuple(Service(open_bucket(variables["ACTSTORE_STORE"], access), settings) for _ in range(2))
        for service in services:
            stack.callback(service.stop)
        yield Cluster(head, folder, serve_port, grpc_port, f"127.0.0.1:{metrics_port}", services)


def runs(head: RayHead) -> bool:
    found = head.applications().get("actstore", {"status": "not there", "message": ""})
    assert found["status"] not in ("DEPLOY_FAILED", "UNHEALTHY"), found["message"]
    return found["status"] == "RUNNING"


@pytest.fixture(scope="module")
def captured(cluster: Cluster) -> actstore.Run:
    """A capture through one of the services."""
    with cluster.lab(0) as lab:
        return capture(lab, "words")


def capture(lab: actstore.Lab, run: str) -> actstore.Run:
    return lab.capture("tiny", dataset="words.jsonl", dense_sites=["resid_post.1"], run=run).wait(progress=False)


def test_the_probes_of_kuberay_succeed(cluster: Cluster) -> None:
    """Of the head, of each pod with a proxy, and of the operator, which asks at the pod's address."""
    ports = cluster.head.ports
    for address in (
        f"http://localhost:{ports['agent']}/api/local_raylet_healthz",
        f"http://localhost:{ports['dashboard']}/api/gcs_healthz",
        f"http://localhost:{cluster.serve_port}/-/healthz",
        f"http://{cluster.head.ip}:{cluster.serve_port}/-/healthz",
    ):
        assert answers(address), address


def test_the_head_waits_for_no_port_of_its_agents(cluster: Cluster) -> None:
    """Its command has the options of the manifest, and the raylet is told each port that it would wait for else."""
    service = yaml.safe_load((KUBERNETES / "base" / "ray-service.yaml").read_text())
    given = {word[2:].partition("=")[0] for word in head_command("", cluster.head.ports, 0) if "=" in word}
    assert set(service["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]) <= given
    (raylet,) = (pid for pid in descendants(cluster.head.pid) if command_line(pid).split(" ")[0].endswith("/raylet"))
    assert agent_ports_to_wait_for(raylet) == set()


def test_a_capture_and_a_live_question_through_two_services(cluster: Cluster, captured: actstore.Run) -> None:
    assert captured.name == "words"
    with cluster.lab(1, "ann") as lab:
        assert lab.run("words").tokens_committed == captured.tokens_total
        assert lab.logit_lens("tiny", TEXT).layers


def test_two_services_and_the_workers_tell_each_total_once(cluster: Cluster, captured: actstore.Run) -> None:
    """As `sum` over everything that Prometheus scrapes has it."""
    scraped = [cluster.metrics, *(service.metrics_address for service in cluster.services)]
    texts = [get(f"http://{address}/metrics") for address in scraped]
    for name, total in (
        ("actstore_tokens_committed_total", captured.tokens_total),
        ("actstore_shards_committed_total", captured.provenance.shards_total),
        ('actstore_captures_ended_total{state="complete"}', 1),
    ):
        assert sum(value for text in texts for value in values(text, name)) == total, name
    assert [values(text, "actstore_workers_up") for text in texts] == [[], [1.0], [1.0]]


def values(text: str, series: str) -> list[float]:
    return [float(line.split()[-1]) for line in text.splitlines() if line.split(" ")[0] == series]


def test_who_is_beyond_a_quota_begins_nothing_more_and_others_do(cluster: Cluster, captured: actstore.Run) -> None:
    """The tokens of a minute after a capture, the seconds of a device after a question; whichever service is asked."""
    with cluster.lab(0, "bob") as lab, cluster.lab(1, "bob") as other:
        used = capture(lab, "of-bob").tokens_total
        for ask in (
            lambda: capture(lab, "again"),
            lambda: lab.logit_lens("tiny", TEXT),
            lambda: other.patch("tiny", clean=TEXT, corrupt=TEXT, answers=(WORDS[0], WORDS[1]), progress=False),
        ):
            quota, value, allowed = beyond(ask) or NOT
            assert quota == "tokens_a_minute"
            assert TOKENS_A_MINUTE < value <= used  # time has given some back
            assert allowed.startswith(f"at most {TOKENS_A_MINUTE}; again in ")
        assert {one["name"] for one in lab.runs()} >= {"words", "of-bob"}  # what is stored takes no model
        assert "again" not in lab.runs()
    with cluster.lab(0, "eve") as lab:
        assert lab.logit_lens("tiny", TEXT).layers
        counted = 'actstore_principal_device_seconds_total{principal="eve"}'
        wait_until(lambda: sum(values(get(f"http://{cluster.metrics}/metrics"), counted)), "what eve used is counted")
        for ask in (lambda: lab.logit_lens("tiny", TEXT), lambda: capture(lab, "again")):
            quota, value, allowed = beyond(ask) or NOT
            assert quota == "device_seconds_an_hour"
            assert value > DEVICE_SECONDS_AN_HOUR
            assert allowed.startswith(f"at most {DEVICE_SECONDS_AN_HOUR:g}; again in ")
    found = "actstore_quota_refusals_total"
    assert [values(get(f"http://{cluster.metrics}/metrics"), f'{found}{{quota="tokens_a_minute"}}')] == [[3.0]]


NOT = "", 0.0, ""


def beyond(ask: Callable[[], object]) -> tuple[str, float, str] | None:
    """The quota that the caller is beyond, what it has used of it, and what is allowed; None: it was answered."""
    try:
        ask()
    except actstore.LimitExceeded as error:
        return str(error.field), float(str(error.value)), str(error.allowed)
    return None


def test_no_secret_is_in_the_state_of_ray(cluster: Cluster, captured: actstore.Run, seaweed: SeaweedServer) -> None:
    """Serve keeps its checkpoint in GCS, and Ray the arguments of each actor; either may be kept outside of memory."""
    state = b"".join(state_of(cluster.head))
    assert b"gateway_token_file" in state  # the settings are there
    logs = b"".join(path.read_bytes() for path in (cluster.head.folder / "ray").rglob("*") if path.is_file())
    for secret in (TOKEN, seaweed.secret_key, cluster.head.token):
        assert secret.encode() not in state
        assert secret.encode() not in logs


# What GCS keeps for Serve, for functions and classes, for runtime environments, and for Ray itself.
NAMESPACES = (b"serve", b"fun", b"cluster", b"session", b"dashboard", b"job", None)
DUMP = """
import sys
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[1])
for namespace in %r:
    for key in client.internal_kv_keys(b"", namespace, 60):
        sys.stdout.buffer.write(key + (client.internal_kv_get(key, namespace, 60) or b""))
"""


def state_of(head: RayHead) -> Iterator[bytes]:
    """All keys and values of GCS, and its tables of actors, jobs and nodes."""
    command = [sys.executable, "-c", DUMP % (NAMESPACES,), head.gcs]
    yield subprocess.run(command, env=head.variables, check=True, stdout=subprocess.PIPE).stdout
    metadata = [("authorization", f"Bearer {head.token}")]
    with grpc.insecure_channel(head.gcs) as channel:

        def ask(method: str) -> bytes:
            return bytes(channel.unary_unary(f"/ray.rpc.{method}")(b"", metadata=metadata, timeout=CALL_SECONDS))

        yield ask("ActorInfoGcsService/GetAllActorInfo")
        yield ask("JobInfoGcsService/GetAllJobInfo")
        yield ask("NodeInfoGcsService/GetAllNodeInfo")


class Touching:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


@pytest.mark.parametrize("with_token", [False, True])
def test_a_strangers_pickle_runs_nowhere(cluster: Cluster, tmp_path: Path, with_token: bool) -> None:
    """At each port on which a replica listens for others. With the cluster's token it runs: the attack is one."""
    doors = [
        f"{cluster.head.ip}:{port}" for pid in cluster.head.processes("ray::ServeReplica") for port in listening(pid)
    ]
    assert len(doors) >= 4  # of each replica, one of Ray's and one of Serve's
    ran = []
    for number, door in enumerate(doors):
        made = tmp_path / str(number)
        attack(door, pickle.dumps(Touching(made)), cluster.head.token if with_token else None)
        ran.append(made.exists())
    assert any(ran) == with_token


def listening(pid: int) -> set[int]:
    found = psutil.Process(pid).net_connections("tcp")
    return {connection.laddr.port for connection in found if connection.status == psutil.CONN_LISTEN}


def attack(door: str, poison: bytes, token: str | None) -> None:
    """As another replica of Serve calls: the first field of its request is a pickle."""
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    request = BytesValue(value=poison).SerializeToString()
    with grpc.insecure_channel(door) as channel, pytest.raises(grpc.RpcError) as refusal:
        channel.unary_unary("/ray.serve.ASGIService/HandleRequest")(request, metadata=metadata, timeout=CALL_SECONDS)
    # Of Ray's own ports, none has this method.
    refusals = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED}
    assert token is not None or refusal.value.code() in refusals


@pytest.mark.parametrize(
    ("token", "code"), [(TOKEN, grpc.StatusCode.RESOURCE_EXHAUSTED), ("wrong", grpc.StatusCode.UNAUTHENTICATED)]
)
def test_the_proxy_reads_no_message_beyond_its_bound(cluster: Cluster, token: str, code: grpc.StatusCode) -> None:
    """And none at all of a caller without the token, who is told so and not that the message is large."""
    text = "w" * (MESSAGE_BYTES + 1)
    with pytest.raises(grpc.RpcError) as refusal:
        cluster.call("GetTextLens", model_pb2.GetTextLensRequest(text={"text": text}), token)
    assert refusal.value.code() is code


def test_a_stranger_who_sends_no_message_is_refused(cluster: Cluster) -> None:
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait(CALL_SECONDS)
        yield from ()

    with grpc.insecure_channel(f"127.0.0.1:{cluster.grpc_port}") as channel:
        call = channel.stream_stream(VERBS["GetTextLens"].path)(nothing(), timeout=CALL_SECONDS)
        assert call.code() is grpc.StatusCode.UNAUTHENTICATED
        over.set()


def test_a_token_is_replaced_while_the_gateway_runs(cluster: Cluster) -> None:
    question, file = capture_pb2.GetCaptureTotalsRequest(), cluster.folder / "token"
    with pytest.raises(grpc.RpcError) as refusal:
        cluster.call("GetCaptureTotals", question, NEXT_TOKEN)
    assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
    file.write_text(f"{NEXT_TOKEN}\n{TOKEN}\n")
    for token in (NEXT_TOKEN, TOKEN):
        assert cluster.call("GetCaptureTotals", question, token) is not None
    file.write_text(f"{TOKEN}\n")
