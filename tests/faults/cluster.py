"""A lab of real processes that can be killed: a Ray cluster of several nodes, workers, a service, a SeaweedFS."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

import actstore
from actstore._stack.seaweed import free_ports
from tests.ray_head import added_node, ray_cluster
from tests.servers import SeaweedServer
from tests.service.process import COMMAND, environment
from tests.waiting import wait_until
from tests.worker_process import TOKEN, WorkerProcess, command_line, descendants, running_workers

NODE_CPUS = 1
LINES_SAID = 60
NODES = 2  # beside the head, on which nothing captures


class KillableLab:
    """`kill(target)` sends SIGKILL to one of TARGETS, and brings back what does not come back by itself."""

    def __init__(
        self,
        seaweed: SeaweedServer,
        cluster: Cluster,
        service_port: int,
        workers: WorkerProcess,
        variables: dict[str, str],
        log: Path,
    ) -> None:
        """`variables`: of workers over its store, on its cluster. `log`: the workers'."""
        self.seaweed, self.workers, self.variables, self._log = seaweed, workers, variables, log
        self._cluster, self._service_port = cluster, service_port
        self._service: subprocess.Popen[bytes] | None = None
        self.targets = {
            "worker": lambda: self._kill_process("ray::_CaptureActor"),
            "coordinator": lambda: self._kill_process("ray::_CoordinatorActor"),
            "node": self._kill_node,
            "service": self._kill_service,
            "store": self._kill_store,
        }

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._service_port}"

    def connect(self) -> actstore.Lab:
        return actstore.connect(self.address, token=TOKEN)

    def kill(self, target: str) -> None:
        self.targets[target]()

    def said(self) -> str:
        """What it says of its captures, and the end of the workers' log, for a test that fails."""
        with self.connect() as lab:
            try:
                captures = str(lab.captures().to_dict()["rows"])
            except actstore.ActstoreError as error:
                captures = str(error)
        return "\n".join([captures, *self._log.read_text().splitlines()[-LINES_SAID:]])

    def start_service(self) -> None:
        variables = environment(
            ACTSTORE_LISTEN=self.address, ACTSTORE_GATEWAY=self.workers.address, ACTSTORE_TOKEN=TOKEN,
            ACTSTORE_GATEWAY_TOKEN=self.workers.token, **store_variables(self.seaweed),
            ACTSTORE_S3_ACCESS_KEY=self.seaweed.access_key, ACTSTORE_S3_SECRET_KEY=self.seaweed.secret_key,
        )  # fmt: skip
        self._service = subprocess.Popen(COMMAND, env=variables, stdout=subprocess.PIPE)
        assert self._service.stdout is not None
        assert self._service.stdout.readline()

    def stop_service(self) -> None:
        if self._service is not None:
            self._service.kill()
            self._service.communicate()

    def _kill_process(self, title: str) -> None:
        """One of those so named, in any node; Ray starts another."""
        found: list[int] = []
        wait_until(lambda: found.extend(self._processes(title)) or found, f"a process {title}")
        with suppress(ProcessLookupError):
            os.kill(found[0], signal.SIGKILL)

    def on_head(self, title: str) -> list[int]:
        """The processes so named of the node that the workers' starter belongs to, and that is never killed."""
        return _below(self._cluster.head_node, title)

    def _processes(self, title: str) -> list[int]:
        nodes = [self._cluster.head_node, *self._cluster.worker_nodes]
        return [pid for node in nodes for pid in _below(node, title)]

    def _kill_node(self) -> None:
        """The raylet and all its workers, at once, as when a machine loses power; another machine joins."""
        node = next(iter(self._cluster.worker_nodes))
        doomed = [_raylet(node), *descendants(_raylet(node))]
        for pid in doomed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)
        added_node(self._cluster, NODE_CPUS)

    def _kill_service(self) -> None:
        self.stop_service()
        self.start_service()

    def _kill_store(self) -> None:
        self.seaweed.kill()
        self.seaweed.restart()


def store_variables(seaweed: SeaweedServer) -> dict[str, str]:
    return {
        "ACTSTORE_STORE": f"s3://{seaweed.bucket}/faults",
        "ACTSTORE_S3_ENDPOINT": seaweed.endpoint,
        "ACTSTORE_S3_SECURE": "0",
    }


def secret_files(folder: Path, seaweed: SeaweedServer) -> dict[str, str]:
    """Keys and token in files, as every node of a cluster has them; the variables that name these."""
    keys, token = folder / "credentials", folder / "token"
    keys.write_text(f"[default]\naws_access_key_id={seaweed.access_key}\naws_secret_access_key={seaweed.secret_key}\n")
    token.write_text(f"{TOKEN}\n")
    return {"ACTSTORE_S3_CREDENTIALS_FILE": str(keys), "ACTSTORE_GATEWAY_TOKEN_FILE": str(token)}


@contextmanager
def killable_lab(folder: Path) -> Iterator[KillableLab]:
    """`folder` has `models` and `data`. Several seconds, several processes; none of them is left."""
    with ExitStack() as stack:
        seaweed = stack.enter_context(SeaweedServer())
        cluster = stack.enter_context(ray_cluster())
        for _ in range(NODES):
            added_node(cluster, NODE_CPUS)
        variables = store_variables(seaweed) | secret_files(folder, seaweed)
        log = folder / "workers.log"
        variables |= {"ACTSTORE_RAY_ADDRESS": cluster.address, "ACTSTORE_RAY_ISOLATED_BY": "one machine, for a test"}
        workers = stack.enter_context(
            running_workers(
                variables["ACTSTORE_STORE"],
                model_folder=folder / "models",
                dataset_folder=folder / "data",
                log=log,
                environment=variables,
            )
        )
        (service_port,) = free_ports(1)
        lab = KillableLab(seaweed, cluster, service_port, workers, variables, log)
        stack.callback(lab.stop_service)
        lab.start_service()
        yield lab


def _below(node: Any, title: str) -> list[int]:
    return [pid for pid in descendants(_raylet(node)) if command_line(pid).startswith(title)]


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)
