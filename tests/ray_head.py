"""Ray clusters: one whose nodes come and go, and one node, started as on the head pod of a cluster in Kubernetes."""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ray.cluster_utils import Cluster
from ray.util import get_node_ip_address

from actstore._stack.seaweed import free_ports
from actstore_worker.cluster.joining.agents import agent_ports_chosen
from actstore_worker.cluster.joining.process import PROXY_READY_SECONDS
from actstore_worker.cluster.joining.sockets import free_port
from tests.waiting import wait_until
from tests.worker_process import READY_SECONDS, command_line, descendants, inherited

PROGRAMS = Path(sys.executable).parent
# The command of the workers' image.
RAY = Path(__file__).parents[1] / "deploy" / "images" / "ray"
STOP_SECONDS = 60
HTTP_SECONDS = 5
AGENT_PORTS = {"metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port"}
# By the options of `ray start`.
_PORTS = {
    "port": "gcs",
    "dashboard-port": "dashboard",
    "ray-client-server-port": "client",
    "metrics-export-port": "metrics",
    "dashboard-agent-listen-port": "agent",
    "dashboard-agent-grpc-port": "agent-grpc",
    "runtime-env-agent-port": "runtime-env",
}


@contextmanager
def ray_cluster() -> Iterator[Cluster]:
    """A cluster of this process, to which `added_node` adds nodes. Its head runs what coordinates, and has no CPU for
    more.
    """
    with ExitStack() as stack:
        # A short path: Ray's socket names must fit into 107 bytes.
        scratch = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
        )
        # Ray notes the cluster's address below its usual folder, which is not there where nobody started a Ray before.
        (Path(scratch) / "ray").mkdir()
        ready = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": str(PROXY_READY_SECONDS)}
        stack.enter_context(patch.dict(os.environ, RAY_TMPDIR=scratch, **ready))
        stack.enter_context(agent_ports_chosen())
        head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": scratch}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        stack.callback(cluster.shutdown)
        yield cluster


def added_node(cluster: Cluster, cpus: int, gpus: int = 0) -> Any:
    """Returns a new node of `ray_cluster`. Its GPUs are only said to be there."""
    # Ray's Cluster takes this port away from every node but the head, unless it is told.
    return cluster.add_node(num_cpus=cpus, num_gpus=gpus, dashboard_agent_listen_port=free_port())


def agent_ports_to_wait_for(raylet: int) -> set[str]:
    """The ports of its agents that the process waits for, as it is not told them. It does not wait for long: on a busy
    machine the node would fail to start.
    """
    told = re.findall(r" --([\w-]+)=[1-9]\d* ", command_line(raylet).replace(" ", "  "))
    return AGENT_PORTS - {name.replace("-", "_") for name in told}


@dataclass(frozen=True)
class RayHead:
    """`ports` are those of its processes, by name; `token` is what they ask of each other and of everybody."""

    pid: int
    folder: Path
    ip: str
    ports: Mapping[str, int]
    token: str
    variables: Mapping[str, str]

    @property
    def gcs(self) -> str:
        return f"{self.ip}:{self.ports['gcs']}"

    def processes(self, title: str) -> list[int]:
        """The ids of its processes whose title begins so, as `ray::ServeReplica`."""
        return [pid for pid in descendants(self.pid) if command_line(pid).startswith(title)]

    def deploy(self, configuration: Path) -> None:
        """As `serve deploy` does it; KubeRay makes the same request."""
        command = [
            PROGRAMS / "serve",
            "deploy",
            configuration,
            "--address",
            f"http://127.0.0.1:{self.ports['dashboard']}",
        ]
        subprocess.run(command, env=self.variables, check=True, capture_output=True)

    def applications(self) -> dict[str, Any]:
        """The applications of Serve, as KubeRay asks for them: their states and messages."""
        headers = {"Authorization": f"Bearer {self.token}"}
        found = get(f"http://{self.ip}:{self.ports['dashboard']}/api/serve/applications/", headers)
        return dict(json.loads(found)["applications"])


@contextmanager
def ray_head(log: Path, cpus: int = 2, **environment: str) -> Iterator[RayHead]:
    """Several seconds, several processes; none of them is left. `environment` is that of all its processes."""
    token, ports = secrets.token_urlsafe(), dict(zip(_PORTS.values(), free_ports(len(_PORTS)), strict=True))
    # A short path: Ray's socket names must fit into 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as scratch:
        (Path(scratch) / "ray").mkdir()
        authentication = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        usual = {"RAY_TMPDIR": scratch, "HOME": scratch, "RAY_USAGE_STATS_ENABLED": "0"}
        usual["PATH"] = f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"
        variables = inherited() | usual | authentication | environment
        with log.open("wb") as said:
            process = subprocess.Popen(head_command(scratch, ports, cpus), env=variables, stdout=said, stderr=said)
        head = RayHead(process.pid, Path(scratch), get_node_ip_address(), ports, token, variables)
        try:
            health = f"http://localhost:{ports['dashboard']}/api/gcs_healthz"
            wait_until(
                lambda: process.poll() is not None or answers(health), "the head of a Ray cluster", READY_SECONDS
            )
            assert process.poll() is None, log.read_text()
            yield head
        finally:
            _end(process)


def answers(address: str) -> bool:
    """Whether a probe of this address succeeds, as KubeRay's do it: the answer has the word success."""
    with suppress(OSError):
        return "success" in get(address)
    return False


def get(address: str, headers: Mapping[str, str] | None = None) -> str:
    request = urllib.request.Request(address, headers=dict(headers or {}))  # noqa: S310
    with urllib.request.urlopen(request, timeout=HTTP_SECONDS) as answer:  # noqa: S310
        return str(answer.read().decode())


def head_command(folder: str, ports: Mapping[str, int], cpus: int) -> list[str]:
    """What starts the head, as Ray's operator makes it of the manifest: its options are those, with other ports."""
    named = {
        **{option: ports[name] for option, name in _PORTS.items()},
        "num-cpus": cpus,
        "object-store-memory": 100 * 2**20,
        "dashboard-host": "0.0.0.0",  # noqa: S104
        "temp-dir": f"{folder}/ray",
    }
    options = [f"--{name}={value}" for name, value in named.items()]
    return [str(RAY), "start", "--head", "--block", *options]


def _end(process: "subprocess.Popen[bytes]") -> None:
    """At once: an orderly end takes half a minute."""
    left = [process.pid, *descendants(process.pid)]
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(STOP_SECONDS)
    wait_until(lambda: not any(map(command_line, left)), "the end of a Ray cluster")
