"""A service that is to end says so first, goes on serving, and only then refuses: a rollout fails no call."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from grpc_health.v1 import health_pb2, health_pb2_grpc

import actstore
from actstore_api.verbs import VERBS
from tests.service.calls.conftest import Running, service_over
from tests.service.conftest import TOKEN, Caller
from tests.service.process import COMMAND, STOP_SECONDS, environment
from tests.waiting import PATIENCE_SECONDS, wait_until

STATES = health_pb2.HealthCheckResponse
METADATA = [("authorization", f"Bearer {TOKEN}")]


def test_calls_are_answered_while_it_is_not_ready(wide_store: str) -> None:
    with _process(wide_store, drain_seconds=3) as (process, service):
        call = service.caller()
        watch = health_pb2_grpc.HealthStub(call.channel).Watch(health_pb2.HealthCheckRequest(), metadata=METADATA)
        assert next(watch).status == STATES.SERVING
        assert service.is_ready()
        process.send_signal(signal.SIGTERM)
        assert next(watch).status == STATES.NOT_SERVING
        answered = 0
        while not service.is_ready() and answered < 20:  # each over a connection of its own, as new clients come
            with Caller(service.address).channel as channel:
                channel.unary_unary(VERBS["ListRuns"].path)(b"", metadata=METADATA, timeout=PATIENCE_SECONDS)
            answered += 1
        assert answered == 20
        call.channel.close()
        assert process.wait(STOP_SECONDS) == 0


def test_a_second_signal_ends_it_at_once(wide_store: str) -> None:
    with _process(wide_store, drain_seconds=600) as (process, service):
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: not service.is_ready(), "it drains")
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_SECONDS) == 0


def test_two_replicas_rolled_under_load_fail_no_call(wide_store: str) -> None:
    with ExitStack() as stack:
        replicas = [stack.enter_context(ExitStack()) for _ in range(2)]
        addresses = [_begin(replica, wide_store, "127.0.0.1:0") for replica in replicas]
        load = stack.enter_context(_load(addresses))
        wait_until(lambda: load.answered > 20, "calls are answered")
        for replica, address in zip(replicas, addresses, strict=True):
            replica.close()  # SIGTERM, and its end
            assert _begin(replica, wide_store, address) == address
            seen = load.answered
            wait_until(lambda seen=seen: load.answered > seen + 20, "calls are answered after the change")
    assert load.failed == []


def _begin(replica: ExitStack, store: str, listen: str) -> str:
    return replica.enter_context(service_over(store, listen=listen, drain_seconds=0.5)).address


class _Load:
    """Asks by turns, as the client does: it alone says what is tried again."""

    def __init__(self, addresses: list[str]) -> None:
        self.answered, self.failed, self.over = 0, [], threading.Event()
        self._lab = actstore.connect(f"ipv4:{','.join(addresses)}", token=TOKEN, tls=False)

    def run(self) -> None:
        with self._lab:
            while not self.over.is_set():
                try:
                    self._lab.runs()
                    self.answered += 1
                except actstore.ActstoreError as error:
                    self.failed.append(error)


@contextmanager
def _load(addresses: list[str]) -> Iterator[_Load]:
    load = _Load(addresses)
    thread = threading.Thread(target=load.run)
    thread.start()
    try:
        yield load
    finally:
        load.over.set()
        thread.join(PATIENCE_SECONDS)


@contextmanager
def _process(store: str, drain_seconds: float) -> Iterator[tuple["subprocess.Popen[bytes]", Running]]:
    """For a test that ends the process itself."""
    told = {"ACTSTORE_STORE": store, "ACTSTORE_TOKEN": TOKEN, "ACTSTORE_LIMITS_DRAIN_SECONDS": str(drain_seconds)}
    process = subprocess.Popen(COMMAND, env=environment(**told), stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        yield process, Running(ready["address"], ready["metrics"], process.pid)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()
