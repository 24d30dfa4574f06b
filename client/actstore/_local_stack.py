"""The same processes that a lab runs, on this machine: workers, service, and a folder or a SeaweedFS as the store."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from actstore._connect import connect, read_stack_file
from actstore._errors import STACK_FAILED, ActstoreError, StackFailed, StoreFailed, Unavailable
from actstore._lab import Lab
from actstore._records import S3Access

SERVICE_PORT = 7433
# Ray takes its time on a cold machine, and its processes are nice to all others: on two cores, a start of 40 seconds
# takes minutes beside other programs that compute.
START_SECONDS = 300.0
# Ray Serve drains before it ends; what is left of the process group is killed afterwards.
STOP_SECONDS = 30.0
POLL_SECONDS = 0.05
LOG_TAIL_LINES = 25


class LocalStack:
    """`with LocalStack() as stack: stack.lab.capture(...)`.

    `store` is a folder, made if absent; with `s3` a SeaweedFS keeps its files there. None: `store`, or `store-s3`, in
    the state folder. Logs and `stack.json`, which `actstore.connect()` finds, lie in `state_folder`, which belongs to
    one stack at a time. `port` None takes 7433 where it is free, else any free one; 0 takes any free one.
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
        state_folder: str | os.PathLike[str] = ".actstore",
    ) -> None:
        self.state_folder = Path(state_folder).absolute()
        # The files of a SeaweedFS are no directory store, so the two do not share a folder.
        default_store = self.state_folder / ("store-s3" if s3 else "store")
        self.store_folder = default_store if store is None else Path(store).absolute()
        self.s3_access: S3Access | None = None
        self.store = str(self.store_folder)
        self.address = self.metrics_address = ""
        self.token = secrets.token_urlsafe(32)
        self._folders = {"MODEL": _joined(model_folders), "DATASET": _joined(dataset_folders)}
        self._with_s3 = s3
        self._port = port
        self._allow_hub = allow_hub
        self._capture_workers = capture_workers
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
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
        return connect(self.address, token=self.token)

    def start(self) -> None:
        """Returns when both processes answer. Whatever was started is stopped again if the rest does not start."""
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """SIGTERM, STOP_SECONDS of grace, SIGKILL; the service first, so that it does not see its workers go."""
        self._cleanup.close()

    def check(self) -> None:
        """StackFailed where a process has died."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise self._died(name, f"the {name} process ended with status {process.returncode}")

    def _start(self) -> None:
        self._refuse_a_second()
        self._log_folder.mkdir(parents=True, exist_ok=True)
        self.store_folder.mkdir(parents=True, exist_ok=True)
        if self._with_s3:
            from actstore._seaweed import SeaweedFS

            weed = self._cleanup.enter_context(SeaweedFS(self.store_folder))
            self.store = f"s3://{weed.bucket}"
            self.s3_access = S3Access(weed.endpoint, weed.access_key, weed.secret_key, secure=False)
        gateway_token = secrets.token_urlsafe(32)
        gateway = self._launch("workers", "actstore_worker", self._worker_environment(gateway_token))["address"]
        ready = self._launch("service", "actstore_service", self._service_environment(gateway, gateway_token))
        self.address, self.metrics_address = ready["address"], ready["metrics"]
        self._write_stack_file()

    def _worker_environment(self, gateway_token: str) -> dict[str, str]:
        environment = {
            "ACTSTORE_MODEL_FOLDERS": self._folders["MODEL"],
            "ACTSTORE_DATASET_FOLDERS": self._folders["DATASET"],
            "ACTSTORE_ALLOW_HUB": str(int(self._allow_hub)),
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
        }

    def _store_environment(self) -> dict[str, str]:
        if self.s3_access is None:
            return {"ACTSTORE_STORE": self.store}
        return {
            "ACTSTORE_STORE": self.store,
            "ACTSTORE_S3_ENDPOINT": self.s3_access.endpoint,
            "ACTSTORE_S3_ACCESS_KEY": self.s3_access.access_key,
            "ACTSTORE_S3_SECRET_KEY": self.s3_access.secret_key,
            "ACTSTORE_S3_REGION": self.s3_access.region,
            "ACTSTORE_S3_SECURE": str(int(self.s3_access.secure)),
        }

    def _launch(self, name: str, module: str, environment: Mapping[str, str]) -> dict[str, str]:
        """Start a process in a group of its own, and wait for its ready line."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("ACTSTORE_")}
        ready_file = self._log_folder / f"{name}.ready"
        with ready_file.open("wb") as said, self._log(name).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module],
                env={**inherited, **self._store_environment(), **environment},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=log,
                start_new_session=True,
            )
        self._processes[name] = process
        self._cleanup.callback(self._end, name)
        return self._ready(name, ready_file)

    def _ready(self, name: str, ready_file: Path) -> dict[str, str]:
        deadline_seconds = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline_seconds:
            ready = _ready_line(ready_file.read_text(errors="replace"), name)
            if ready is not None:
                return ready
            status = self._processes[name].poll()
            if status is not None:
                raise self._died(name, f"the {name} process ended with status {status} before it was ready")
            time.sleep(POLL_SECONDS)
        raise self._died(name, f"the {name} process was not ready within {START_SECONDS:.0f} seconds")

    def _end(self, name: str) -> None:
        process = self._processes.pop(name)
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        finally:
            _kill_group(process.pid)
            process.wait()

    def _died(self, name: str, message: str) -> StackFailed:
        log = self._log(name)
        tail = log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        said = "".join(f"\n  | {line}" for line in tail)
        return StackFailed(f"{message}; the end of its log:{said}", reason=STACK_FAILED, next_step=f"read {log}")

    @property
    def _stack_file(self) -> Path:
        return self.state_folder / "stack.json"

    @property
    def _log_folder(self) -> Path:
        return self.state_folder / "logs"

    def _log(self, name: str) -> Path:
        return self._log_folder / f"{name}.log"

    def _refuse_a_second(self) -> None:
        """A stack.json that nobody answers for was left by a stack that was killed, and is replaced."""
        try:
            stack = read_stack_file(self._stack_file)
        except (FileNotFoundError, Unavailable):
            return
        address = stack["address"]
        if not _answers(address, stack["token"]):
            return
        message = f"the stack at {address} already runs in {self.state_folder}"
        next_step = "ask it with actstore.connect(), stop it, or give this one another state_folder"
        raise StackFailed(
            message, reason=STACK_FAILED, field="state_folder", value=self.state_folder, next_step=next_step
        )

    def _write_stack_file(self) -> None:
        """Holds the token, so its owner alone may read it, from the first byte on; whole or not at all."""
        stack = {"address": self.address, "token": self.token, "metrics": self.metrics_address, "store": self.store}
        scratch = self._stack_file.with_name(f"stack.json.{secrets.token_hex(8)}")
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(stack, file)
        scratch.replace(self._stack_file)
        self._cleanup.callback(self._unlink_stack_file)

    def _unlink_stack_file(self) -> None:
        with suppress(FileNotFoundError, ActstoreError):
            if read_stack_file(self._stack_file)["token"] == self.token:
                self._stack_file.unlink()


def _joined(folders: Iterable[str | os.PathLike[str]]) -> str:
    """The processes run in this folder too, but a stack outlives a change of folder."""
    return os.pathsep.join(str(Path(folder).absolute()) for folder in folders)


def _ready_line(said: str, name: str) -> dict[str, str] | None:
    for line in said.splitlines():
        if line.startswith("{"):
            ready: dict[str, str] = json.loads(line)
            if ready.get("ready") == name:
                return ready
    return None


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def _answers(address: str, token: str) -> bool:
    """To this token: another program, or another folder's stack, may have the port by now."""
    try:
        with connect(address, token=token) as lab:
            lab.models()
    except StoreFailed:
        return True
    except ActstoreError:
        return False
    return True


def _preferred_port() -> int:
    try:
        with socket.create_server(("127.0.0.1", SERVICE_PORT)):
            return SERVICE_PORT
    except OSError:
        return 0
