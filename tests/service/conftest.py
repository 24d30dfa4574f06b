"""A real service on a free port over a real bucket, and a client that is nothing but gRPC."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from actstore_api.reasons import from_status
from actstore_api.records.terms import Failure
from actstore_api.v1 import service_pb2_grpc
from actstore_service.server import Service
from actstore_service.settings import Settings
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from tests.service import stand_in
from tests.stored_run import StoredRun, write_stored_run
from tests.waiting import PATIENCE_SECONDS

TOKEN = "service-token"


@dataclass
class Caller:
    """Calls `actstore_api.v1.<service>/<method>`; a stream's messages come as a list."""

    address: str
    token: str | None = TOKEN
    channel: grpc.Channel = field(init=False)

    def __post_init__(self) -> None:
        self.channel = grpc.insecure_channel(self.address)

    def stub(self, service: str) -> Any:
        return getattr(service_pb2_grpc, f"{service}Stub")(self.channel)

    @property
    def metadata(self) -> list[tuple[str, str]]:
        return [] if self.token is None else [("authorization", f"Bearer {self.token}")]

    def __call__(
        self, service: str, method: str, request: Any, timeout_seconds: float | None = PATIENCE_SECONDS
    ) -> Any:
        answer = getattr(self.stub(service), method)(request, timeout=timeout_seconds, metadata=self.metadata)
        return list(answer) if isinstance(answer, grpc.Call) else answer

    def failure(self, service: str, method: str, request: Any) -> tuple[grpc.StatusCode, Failure | None]:
        """The status code and what actstore says about it; None where it says nothing."""
        with pytest.raises(grpc.RpcError) as caught:
            self(service, method, request)
        status = rpc_status.from_call(caught.value)
        return caught.value.code(), status and from_status(status)


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Bucket:
    """Holds the run `planted`; no test of this folder writes to it."""
    return open_bucket(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="session")
def stored(bucket: Bucket) -> StoredRun:
    return write_stored_run(bucket)


@pytest.fixture
def workers() -> Iterator[stand_in.StandIn]:
    started = stand_in.StandIn()
    yield started
    started.close()


Serve = Callable[..., Service]


@pytest.fixture
def serve(bucket: Bucket, stored: StoredRun) -> Iterator[Serve]:
    """Starts services with these settings, on free ports, and stops them after the test."""
    started = []

    def start(bucket: Bucket = bucket, **settings: Any) -> Service:
        free = {"listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0", "token": TOKEN}
        started.append(Service(bucket, Settings(**(free | settings))))
        return started[-1]

    yield start
    for service in started:
        service.stop()


@pytest.fixture
def connect() -> Iterator[Callable[..., Caller]]:
    callers = []

    def caller(service: Service, token: str | None = TOKEN) -> Caller:
        callers.append(Caller(service.address, token))
        return callers[-1]

    yield caller
    for opened in callers:
        opened.channel.close()


@pytest.fixture
def forwarding(serve: Serve, workers: stand_in.StandIn) -> Service:
    """A service in front of the stand-in workers."""
    return serve(gateway=workers.address, gateway_token=stand_in.TOKEN)


@pytest.fixture
def call(forwarding: Service, connect: Callable[..., Caller]) -> Caller:
    return connect(forwarding)


@pytest.fixture
def empty_bucket(tmp_path: Path) -> Bucket:
    (tmp_path / "empty").mkdir()
    return open_bucket(str(tmp_path / "empty"))


@pytest.fixture
def in_thread() -> Iterator[Callable[..., threading.Thread]]:
    """Runs something beside the test, which does not end before it."""
    threads = []

    def start(work: Callable[[], None]) -> threading.Thread:
        threads.append(threading.Thread(target=work))
        threads[-1].start()
        return threads[-1]

    yield start
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


@pytest.fixture
def until() -> Callable[..., None]:
    """Waits for what happens soon but not at once; a gRPC error means not yet."""

    def wait(succeeds: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
        end = time.monotonic() + seconds
        while True:
            try:
                if succeeds():
                    return
            except grpc.RpcError:
                pass
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.02)

    return wait
