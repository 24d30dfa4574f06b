"""What strangers send is not read, and what nobody can read costs nothing."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status

from actstore_api.reasons import from_status
from actstore_api.verbs import VERBS
from tests.service.calls.conftest import service_over
from tests.service.conftest import Caller, Serve
from tests.waiting import PATIENCE_SECONDS

MEBIBYTE = 1 << 20
UNREADABLE = 1000
METHODS = [
    VERBS["ListRuns"].path,
    VERBS["ReadActivations"].path,
    VERBS["StartCapture"].path,
    "/grpc.health.v1.Health/Check",
]


@pytest.mark.parametrize("path", METHODS)
def test_a_wrong_token_is_refused_before_any_message(serve: Serve, connect: Callable[..., Caller], path: str) -> None:
    call, asked = connect(serve(), "wrong"), threading.Event()

    def never() -> Iterator[bytes]:
        asked.wait(PATIENCE_SECONDS)
        yield from ()

    answer = call.channel.stream_stream(path)(never(), metadata=call.metadata, timeout=PATIENCE_SECONDS)
    with pytest.raises(grpc.RpcError) as caught:
        next(answer)
    asked.set()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_messages_that_nobody_can_read_leave_nothing_behind(wide_store: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with service_over(wide_store, log=log) as service:
        call = service.caller()
        ask = call.channel.unary_unary(VERBS["GetRun"].path)
        for _ in range(200):
            _refused(ask, call)
        before = service.resident_bytes()
        for _ in range(UNREADABLE):
            _refused(ask, call)
        grown = service.resident_bytes() - before
        call.channel.close()
    assert grown < UNREADABLE * 5_000  # gRPC's own deserializing leaks 19 kB of each
    assert "Traceback" not in log.read_text()


def _refused(ask: Callable[..., bytes], call: Caller) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        ask(b"\\xff\\xff", metadata=call.metadata, timeout=PATIENCE_SECONDS)
    failure = from_status(rpc_status.from_call(caught.value))
    assert failure is not None
    assert (caught.value.code(), failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "ARGUMENT_INVALID")


def test_health_too_refuses_what_it_cannot_read(serve: Serve, connect: Callable[..., Caller]) -> None:
    call = connect(serve())
    check = call.channel.unary_unary("/grpc.health.v1.Health/Check")
    _refused(check, call)
    with pytest.raises(grpc.RpcError) as caught:
        call.channel.stream_unary(VERBS["ListRuns"].path)(iter(()), metadata=call.metadata, timeout=PATIENCE_SECONDS)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # no message at all
    answer = check(health_pb2.HealthCheckRequest().SerializeToString(), metadata=call.metadata)
    assert health_pb2.HealthCheckResponse.FromString(answer).status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(("sent", "kept"), [("run-7.x_y", True), ("", False), ("a b", False), ("x" * 65, False)])
def test_a_request_id_comes_back(serve: Serve, connect: Callable[..., Caller], sent: str, kept: bool) -> None:
    call = connect(serve())
    ask = call.channel.unary_unary(VERBS["ListRuns"].path)
    metadata = [*call.metadata, ("x-request-id", sent)]
    _, ended = ask.with_call(b"", metadata=metadata, timeout=PATIENCE_SECONDS)
    told = dict(ended.trailing_metadata())["x-request-id"]
    assert told
    assert (told == sent) == kept
