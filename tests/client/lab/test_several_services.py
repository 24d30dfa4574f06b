"""Several services behind one name: questions are shared out, and none fails while the services are replaced."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

import actstore
from actstore import BadRequest, LimitExceeded, Unavailable
from actstore._transport.access import Connection
from actstore._transport.service import options
from actstore_api.reasons import to_status
from actstore_api.records.terms import Failure
from actstore_api.v1 import capture_pb2, catalog_pb2, service_pb2_grpc
from actstore_service.server import Service
from actstore_service.settings import Limits, Settings
from actstore_storage.bucket.opening import open_bucket
from tests.client.lab.doors import OPEN_TO_ALL
from tests.waiting import PATIENCE_SECONDS


class Replica(service_pb2_grpc.CatalogServiceServicer, service_pb2_grpc.CaptureServiceServicer):
    """Refuses the first calls, with `failure` and `pushback` as a service sends them."""

    def __init__(self, failure: Failure | None = None, pushback: str = "", refusals: int = 0) -> None:
        self._failure, self._pushback, self._refusals = failure, pushback, refusals
        self.calls = 0

    def ListRuns(self, request: Any, context: Any) -> Any:
        self._meet(context)
        return catalog_pb2.ListRunsResponse()

    def StartCapture(self, request: Any, context: Any) -> Any:
        self._meet(context)
        return capture_pb2.StartCaptureResponse(run="made")

    def _meet(self, context: Any) -> None:
        self.calls += 1
        if self._failure is not None and self.calls <= self._refusals:
            status = rpc_status.to_status(to_status(self._failure))
            context.set_trailing_metadata((*status.trailing_metadata, ("grpc-retry-pushback-ms", self._pushback)))
            context.abort(status.code, status.details)


@contextmanager
def running(*replicas: Replica) -> Iterator[str]:
    """The address of all these."""
    servers, ports = [], []
    for replica in replicas:
        servers.append(grpc.server(ThreadPoolExecutor(4)))
        service_pb2_grpc.add_CatalogServiceServicer_to_server(replica, servers[-1])
        service_pb2_grpc.add_CaptureServiceServicer_to_server(replica, servers[-1])
        ports.append(servers[-1].add_insecure_port("127.0.0.1:0"))
        servers[-1].start()
    yield f"ipv4:{','.join(f'127.0.0.1:{port}' for port in ports)}" if len(ports) > 1 else f"127.0.0.1:{ports[0]}"
    for server in servers:
        server.stop(None)


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_questions_go_to_all_addresses() -> None:
    one, two = Replica(), Replica()
    with running(one, two) as address, actstore.connect(address) as lab:
        lab.runs()
        until(lambda: not lab.runs() and min(one.calls, two.calls) >= 10)


@pytest.mark.parametrize("ask", [actstore.Lab.runs, lambda lab: lab.capture("m", dataset="d")])
def test_a_busy_service_is_asked_again_when_it_says(ask: Callable[[actstore.Lab], object]) -> None:
    """Also for a question that changes something: a busy service has not begun with it."""
    replica = Replica(Failure("BUSY", "all places are taken"), "30", refusals=2)
    with running(replica) as address, actstore.connect(address) as lab:
        ask(lab)
    assert replica.calls == 3


def test_a_service_that_stays_busy_is_unavailable() -> None:
    replica = Replica(Failure("BUSY", "all places are taken"), "10", refusals=100)
    with running(replica) as address, actstore.connect(address) as lab, pytest.raises(Unavailable) as caught:
        lab.runs()
    assert (replica.calls, caught.value.reason) == (actstore.Retries().attempts, "BUSY")


def test_what_is_too_large_is_not_asked_again() -> None:
    replica = Replica(Failure("LIMIT_EXCEEDED", "300 runs; the limit is 256"), "-1", refusals=100)
    with running(replica) as address, actstore.connect(address) as lab, pytest.raises(LimitExceeded):
        lab.runs()
    assert replica.calls == 1


def test_a_connection_is_tested_for_life() -> None:
    found = dict(options("lab:1", Connection(timeout=actstore.Timeout(keepalive_seconds=45))))
    assert found["grpc.keepalive_time_ms"] == 45_000
    # gRPC waits for the longer one, which is a minute where it is not told.
    assert found["grpc.http2.ping_timeout_ms"] == found["grpc.keepalive_timeout_ms"] == 20_000
    assert dict(options("lab:1", Connection()))["grpc.keepalive_time_ms"] == 30_000


@pytest.mark.parametrize("address", ["ipv4:127.0.0.1:1,", "ipv4:a:1,b", "a:1,b:2", "ipv4:127.0.0.1:0,127.0.0.1:1"])
def test_what_are_no_addresses(address: str) -> None:
    with pytest.raises(BadRequest):
        actstore.connect(address)


class Rolled:
    """A service that is replaced by another on the same port, as an orchestrator does it."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self.service = self._started("127.0.0.1:0")
        self.address = self.service.address

    def roll(self) -> None:
        self.service.drain()
        self.service.stop()
        self.service = self._started(self.address)

    def _started(self, listen: str) -> Service:
        limits = Limits(drain_seconds=0.2, grace_seconds=5.0)
        return Service(open_bucket(str(self._store)), Settings(**(OPEN_TO_ALL | {"listen": listen, "limits": limits})))


def test_two_services_are_replaced_under_load_and_no_question_fails(store: Path) -> None:
    """One after the other, while four threads ask single questions and streams."""
    pair = [Rolled(store), Rolled(store)]
    over, failures, answered = threading.Event(), [], Counter[str]()

    def ask(lab: actstore.Lab, number: int) -> None:
        run = lab.run("planted")
        while not over.is_set():
            try:
                _ = lab.runs() if number % 2 else run.tokens()
                answered["question" if number % 2 else "stream"] += 1
            except actstore.ActstoreError as error:
                failures.append(error)

    with actstore.connect(f"ipv4:{','.join(one.address for one in pair)}") as lab, ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, lab, number) for number in range(4)]
        try:
            for one in pair:
                before = answered.copy()
                one.roll()
                until(lambda before=before: all(answered[kind] > before[kind] for kind in ("question", "stream")))
        finally:
            over.set()
        for one in asking:
            one.result(PATIENCE_SECONDS)
    assert failures == []
    for one in pair:
        one.service.stop()
