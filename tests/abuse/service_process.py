"""A service process over the store of a folder, asked with bytes."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_status import rpc_status

from actstore_api.reasons import from_status
from actstore_api.verbs import Verb
from tests.abuse.judging import SECONDS, Outcome, memory_bytes
from tests.service.process import COMMAND, environment

_OPTIONS = [("grpc.max_receive_message_length", 1 << 27)]


@dataclass(frozen=True)
class ServiceProcess:
    """A running process, and a channel to it. `log` is what it wrote."""

    pid: int
    channel: grpc.Channel
    folder: Path

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def memory_bytes(self) -> int:
        return memory_bytes(self.pid)

    def ask(self, verb: Verb, request: bytes) -> Outcome:
        call = self.channel.unary_stream if verb.streams else self.channel.unary_unary
        try:
            answer = call(verb.path)(request, timeout=SECONDS)
            for _ in answer if verb.streams else ():
                pass
        except grpc.RpcError as error:
            status = rpc_status.from_call(error)
            return Outcome(error.code(), error.details() or "", status and from_status(status))
        return Outcome(grpc.StatusCode.OK)


@contextmanager
def service_process(folder: Path, **variables: str) -> Iterator[ServiceProcess]:
    """Starts a service over `folder/store`, whose log is `folder/log`."""
    settings = environment(ACTSTORE_STORE=str(folder / "store"), ACTSTORE_ANONYMOUS="reader", **variables)
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(COMMAND, env=settings, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        assert process.stdout is not None
        try:
            address = json.loads(process.stdout.readline())["address"]
            with grpc.insecure_channel(address, _OPTIONS) as channel:
                yield ServiceProcess(process.pid, channel, folder)
        finally:
            process.terminate()
