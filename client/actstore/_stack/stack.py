"""The same processes that a lab runs, on this machine: workers, service, and a folder or a SeaweedFS as the store."""

import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from actstore import _checks
from actstore._errors import STACK_FAILED, StackFailed, refused
from actstore._lab import Lab
from actstore._optional import check_installed
from actstore._stack.folder import STATE_FOLDER, StackFile, StackFolder, StackProcesses
from actstore._stack.guard import LEFTOVER_SECONDS, Guarded
from actstore._stack.seaweed import LOG, SeaweedFS
from actstore._transport.access import S3Access

SERVICE_PORT = 7433
# Ray takes its time on a cold machine, and its processes are nice to all others: on two cores, a start of 40 seconds
# takes minutes beside other programs that compute.
START_SECONDS = 300.0
# Ray Serve drains before it ends; what is left is killed afterwards.
STOP_SECONDS = 30.0
POLL_SECONDS = 0.05
LOG_TAIL_LINES = 25
STORE = "SeaweedFS"
# The status of workers whose Ray died, as of `python -m actstore_worker`, which the client may not import.
RAY_GONE = 3
# A library of each process, and the extra that brings it.
BROUGHT_BY = {"prometheus_client": "service", "ray": "worker"}


class LocalStack:
    """Workers and service on this machine: `with LocalStack() as stack: stack.lab.capture(...)`.

    All its processes end with this one, however it ends. Logs and `stack.json`, which `actstore.connect()` finds, lie
    in the state folder.

    Args:
        store: Folder of the store, made if it does not exist; with `s3` a SeaweedFS keeps its files there. None:
            `store`, or `store-s3`, in the state folder.
        model_folders: Folders of models and SAEs.
        dataset_folders: Folders of text.
        s3: Keep the store in a SeaweedFS, which is reached as S3 is.
        port: Port of the service. None: 7433 if it is free, else any free one. 0: any free one.
        allow_hub: Let captures name models and datasets of the Hugging Face hub.
        capture_workers: Number of capture workers. None: as the machine has GPUs, or one.
        config: TOML file with settings of service and workers, such as limits; its places, addresses and tokens do
            not count, because the stack has its own.
        state_folder: Folder for logs and `stack.json`, of one stack at a time.
        waits: Called again and again while the stack starts, with what is waited for, such as "Ray".
        is_command: Whether this process is nothing but the stack, so that `actstore down` may end it.

    Attributes:
        state_folder: The state folder.
        store: Address of the store.
        store_folder: Folder of the store.
        s3_access: Keys of the store, if it is in a SeaweedFS; else None.
        address: `host:port` of the service, once it is started.
        metrics_address: `host:port` of its metrics, once it is started.
        token: What the service knows its callers by.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | None = None,
        *,
        model_folders: Iterable[str | os.PathLike[str]] = (),
        dataset_folders: Iterable[str | os.PathLike[str]] = (),
        s3: bool = False,
        port: int | None = None,
        allow_hub: bool = False,
        capture_workers: int | None = None,
        config: str | os.PathLike[str] | None = None,
        state_folder: str | os.PathLike[str] = STATE_FOLDER,
        waits: Callable[[str], object] = lambda _: None,
        is_command: bool = False,
    ) -> None:
        _checks.switch(s3, "s3")
        _checks.switch(allow_hub, "allow_hub")
        self.state_folder = _absolute(state_folder)
        # The files of a SeaweedFS are no directory store, so the two do not share a folder.
        default_store = self.state_folder / ("store-s3" if s3 else "store")
        self.store_folder = default_store if store is None else _absolute(store)
        self.s3_access: S3Access | None = None
        self.store = str(self.store_folder)
        self.address = self.metrics_address = ""
        self.token = secrets.token_urlsafe(32)
        self._found_in = {"MODEL": _joined(model_folders), "DATASET": _joined(dataset_folders)}
        self._with_s3 = s3
        self._port = port
        self._allow_hub = allow_hub
        self._capture_workers = capture_workers
        self._config = "" if config is None else str(_absolute(config))
        self._waits, self._is_command = waits, is_command
        self._lab: Lab | None = None
        self._processes: dict[str, Guarded] = {}
        self._folder = StackFolder(self.state_folder)
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def lab(self) -> Lab:
        """A lab that asks this stack, closed with it. It is the same each time, unless the caller has closed it."""
        if self._lab is None or self._lab.closed:
            self._lab = self._cleanup.enter_context(self._connected())
        return self._lab

    def _connected(self) -> Lab:
        from actstore._transport.service import GrpcBackend

        if not self.address:
            raise StackFailed("the stack was not started", reason=STACK_FAILED, next_step="with LocalStack() as stack")
        return Lab(GrpcBackend(self.address, self.token, tls=None))

    def start(self) -> None:
        """Start workers and service, and return when both answer. If one does not start, the others are stopped again.

        Raises:
            StackFailed: A process did not start; the message has the end of its log.
        """
        for library, extra in BROUGHT_BY.items():
            check_installed(library, extra)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all processes, and return once none is left. One that does not end within 30 seconds is killed."""
        # The service first, so that it does not see its workers go.
        self._cleanup.close()
        self._processes.clear()

    def check(self) -> None:
        """Look whether all processes are alive.

        Raises:
            StackFailed: A process has died, or was stopped by another program.
        """
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise self._died(name, _end_of(name, process.returncode))

    def _start(self) -> None:
        # Of a stack that was killed, all processes end within the time that each is given.
        self._lock = self._cleanup.enter_context(self._folder.claimed(STOP_SECONDS + LEFTOVER_SECONDS))
        self._folder.forget()
        self._since = time.time()
        self._note_processes()
        self._folder.logs.mkdir(parents=True, exist_ok=True)
        self.store_folder.mkdir(parents=True, exist_ok=True)
        if self._with_s3:
            self._start_s3()
        gateway_token = secrets.token_urlsafe(32)
        gateway = self._launch("workers", "actstore_worker", self._worker_environment(gateway_token))["address"]
        ready = self._launch("service", "actstore_service", self._service_environment(gateway, gateway_token))
        self.address, self.metrics_address = ready["address"], ready["metrics"]
        self._folder.write(StackFile(self.address, self.token, self.store, self.metrics_address))
        self._cleanup.callback(self._folder.forget, self.token)

    def _start_s3(self) -> None:
        self._waits(STORE)
        weed = self._cleanup.enter_context(SeaweedFS(self.store_folder, keep=[self._lock]))
        self._processes[STORE] = weed.process
        self._note_processes()
        self.store = f"s3://{weed.bucket}"
        self.s3_access = S3Access(weed.endpoint, weed.access_key, weed.secret_key, secure=False)

    def _note_processes(self) -> None:
        pids = {name: process.pid for name, process in self._processes.items()}
        self._folder.write_processes(StackProcesses(os.getpid(), self._since, self._is_command, pids))

    def _worker_environment(self, gateway_token: str) -> dict[str, str]:
        environment = {
            "ACTSTORE_MODEL_FOLDERS": self._found_in["MODEL"],
            "ACTSTORE_DATASET_FOLDERS": self._found_in["DATASET"],
            "ACTSTORE_ALLOW_HUB": "1" if self._allow_hub else "",
            "ACTSTORE_GATEWAY_TOKEN": gateway_token,
        }
        if self._capture_workers is not None:
            environment["ACTSTORE_CAPTURE_WORKERS"] = str(self._capture_workers)
        return environment

    def _service_environment(self, gateway: str, gateway_token: str) -> dict[str, str]:
        port = _preferred_port() if self._port is None else self._port
        return {
            "ACTSTORE_LISTEN": f"127.0.0.1:{port}",
            "ACTSTORE_METRICS_LISTEN": "127.0.0.1:0",
            "ACTSTORE_GATEWAY": gateway,
            "ACTSTORE_GATEWAY_TOKEN": gateway_token,
            "ACTSTORE_TOKEN": self.token,
            "ACTSTORE_LIMITS_DRAIN_SECONDS": "0",  # nobody balances calls over the services of this machine
        }

    def _store_environment(self) -> dict[str, str]:
        named = {"ACTSTORE_STORE": self.store, "ACTSTORE_CONFIG": self._config}
        if self.s3_access is None:
            return named
        return {
            **named,
            "ACTSTORE_S3_ENDPOINT": self.s3_access.endpoint,
            "ACTSTORE_S3_ACCESS_KEY": self.s3_access.access_key,
            "ACTSTORE_S3_SECRET_KEY": self.s3_access.secret_key,
            "ACTSTORE_S3_REGION": self.s3_access.region,
            "ACTSTORE_S3_SECURE": str(int(self.s3_access.secure)),
        }

    def _launch(self, name: str, module: str, environment: Mapping[str, str]) -> dict[str, str]:
        """Start a process, and wait for its ready line."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("ACTSTORE_")}
        said_file = self._folder.logs / f"{name}.ready"
        with said_file.open("wb") as said, self._log(name).open("wb") as log:
            self._processes[name] = Guarded(
                # -P: the user's folder may hold a random.py or a ray.py, which is not the one that is meant.
                [sys.executable, "-P", "-m", module],
                grace_seconds=STOP_SECONDS,
                keep=[self._lock],
                env={**inherited, **self._store_environment(), **environment},
                stdout=said,
                stderr=log,
            )
        self._cleanup.callback(self._end, name)
        self._note_processes()
        return self._ready(name, said_file)

    def _ready(self, name: str, said_file: Path) -> dict[str, str]:
        deadline_seconds = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline_seconds:
            said = _json_lines(said_file.read_text(errors="replace"))
            for ready in said:
                if ready.get("ready") == name:
                    return ready
            self._waits(next((line["starting"] for line in reversed(said) if "starting" in line), name))
            status = self._processes[name].poll()
            if status is not None:
                raise self._died(name, f"{_end_of(name, status)} before it was ready")
            time.sleep(POLL_SECONDS)
        raise self._died(name, f"the {name} process was not ready within {START_SECONDS:.0f} seconds")

    def _end(self, name: str) -> None:
        self._processes.pop(name).end()

    def _died(self, name: str, message: str) -> StackFailed:
        log = self._log(name)
        tail = log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        said = "".join(f"\n  | {line}" for line in tail)
        return StackFailed(f"{message}; the end of its log:{said}", reason=STACK_FAILED, next_step=f"read {log}")

    def _log(self, name: str) -> Path:
        return self.store_folder / LOG if name == STORE else self._folder.logs / f"{name}.log"


def _end_of(name: str, status: int) -> str:
    if (name, status) == ("workers", RAY_GONE):
        return f"the Ray of the {name} has gone, and they ended with status {status}"
    return f"the {name} process ended with status {status}"


def _joined(folders: Iterable[str | os.PathLike[str]]) -> str:
    """The folders as one setting. Paths are absolute, because a stack outlives a change of the working directory."""
    named = [str(_absolute(folder)) for folder in folders]
    for folder in named:
        if os.pathsep in folder:
            message = f"{folder} has {os.pathsep!r} in its path, which separates folders in the workers' settings"
            raise refused(message, "folder", folder, f"a folder without {os.pathsep!r} in its path, or a link to it")
    return os.pathsep.join(named)


def _absolute(folder: str | os.PathLike[str]) -> Path:
    return Path(folder).expanduser().absolute()


def _json_lines(said: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in said.splitlines(keepends=True) if line[:1] == "{" and line[-1:] == "\n"]


def _preferred_port() -> int:
    try:
        with socket.create_server(("127.0.0.1", SERVICE_PORT)):
            return SERVICE_PORT
    except OSError:
        return 0
