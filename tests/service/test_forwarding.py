"""Captures and sweeps go to the workers and come back unchanged: messages, errors, deadlines, cancellation."""

import threading
import time
from collections.abc import Callable

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from actstore import ActstoreError
from actstore._transport.access import Connection, Retries
from actstore._transport.service import GrpcBackend
from actstore_api.records.capture import CancelCapture
from actstore_api.v1 import capture_pb2, catalog_pb2, common_pb2, patching_pb2
from actstore_service.calls.failures import PUSHBACK
from actstore_service.server import Service
from actstore_service.settings import Limits
from tests.service import stand_in
from tests.service.conftest import TOKEN, Caller, Serve
from tests.waiting import PATIENCE_SECONDS

DEADLINE_SECONDS = 2.0


def _start(run: str = "new") -> capture_pb2.StartCaptureRequest:
    return capture_pb2.StartCaptureRequest(specification=capture_pb2.CaptureSpecification(run=run, saes=["a", "b"]))


def _sweep(model: str) -> patching_pb2.RunSweepRequest:
    return patching_pb2.RunSweepRequest(model=common_pb2.ModelReference(name=model))


def test_requests_and_answers_pass_unchanged(call: Caller, workers: stand_in.StandIn) -> None:
    assert call("CaptureService", "StartCapture", _start()).run == "new"
    assert workers.requests == [_start()]
    watched = call("CaptureService", "WatchCapture", capture_pb2.WatchCaptureRequest(run="new"))
    assert [message.progress.shards_committed for message in watched] == [0, 1, 2]
    cancelled = call("CaptureService", "CancelCapture", capture_pb2.CancelCaptureRequest(run="new"))
    assert cancelled.progress.state == capture_pb2.CAPTURE_STATE_CANCELLED
    assert call("CaptureService", "GetCaptureTotals", capture_pb2.GetCaptureTotalsRequest()) == stand_in.TOTALS
    progress, result = call("PatchingService", "RunSweep", _sweep("any"))
    assert (progress.progress.cells_total, result.result.clean_logit_difference) == (2, 1.5)


def test_workers_get_their_own_token_and_the_applications_name(call: Caller, workers: stand_in.StandIn) -> None:
    call("CaptureService", "StartCapture", _start())
    assert workers.metadata["application"] == "actstore"
    assert workers.metadata["authorization"] == f"Bearer {stand_in.TOKEN}"


@pytest.mark.parametrize(
    ("service", "method", "request_"),
    [
        ("CaptureService", "StartCapture", _start("refused")),
        ("CaptureService", "StartCapture", _start("refused-at-length")),
        ("CaptureService", "WatchCapture", capture_pb2.WatchCaptureRequest(run="refused")),
        ("CaptureService", "WatchCapture", capture_pb2.WatchCaptureRequest(run="refused-late")),
        ("CaptureService", "CancelCapture", capture_pb2.CancelCaptureRequest(run="refused")),
        (
            "PatchingService",
            "RunSweep",
            _sweep("refused"),
        ),
    ],
)
def test_rich_errors_pass_unchanged(call: Caller, service: str, method: str, request_: object) -> None:
    assert call.failure(service, method, request_) == (grpc.StatusCode.INVALID_ARGUMENT, stand_in.FAILURE)


@pytest.mark.parametrize(
    ("bare", "code", "reason"),
    [
        ("NOT_FOUND", grpc.StatusCode.UNAVAILABLE, "WORKERS_UNAVAILABLE"),  # Ray Serve without the application
        ("UNIMPLEMENTED", grpc.StatusCode.UNAVAILABLE, "WORKERS_UNAVAILABLE"),
        ("RESOURCE_EXHAUSTED", grpc.StatusCode.UNAVAILABLE, "WORKERS_UNAVAILABLE"),  # Ray Serve's back-pressure
        ("UNKNOWN", grpc.StatusCode.INTERNAL, "INTERNAL"),
        ("INTERNAL", grpc.StatusCode.INTERNAL, "INTERNAL"),
    ],
)
def test_a_bare_status_is_put_in_actstores_words(call: Caller, bare: str, code: grpc.StatusCode, reason: str) -> None:
    found, failure = call.failure("CaptureService", "StartCapture", _start(f"bare-{bare}"))
    assert failure is not None
    assert (found, failure.reason) == (code, reason)
    assert "secret" not in failure.message


def test_workers_that_say_when_to_come_back_are_believed(call: Caller, serve: Serve, workers: stand_in.StandIn) -> None:
    """As for BUSY. Whose time is over before is not told to wait for it, and sees the reason at once."""
    ask = call.stub("CaptureService").StartCapture
    for seconds, pushback in ((PATIENCE_SECONDS, range(60_000, 62_000)), (2 * DEADLINE_SECONDS, range(-1, 0))):
        with pytest.raises(grpc.RpcError) as caught:
            ask(_start("no-node"), metadata=call.metadata, timeout=seconds)
        status, retry = rpc_status.from_call(caught.value), error_details_pb2.RetryInfo()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert any(packed.Unpack(retry) for packed in status.details)
        assert retry.retry_delay.ToMilliseconds() in range(60_000, 62_000)
        assert int(dict(caught.value.trailing_metadata())[PUSHBACK]) in pushback
    service = serve(gateway=workers.address, gateway_token=stand_in.TOKEN)
    client = GrpcBackend(service.address, TOKEN, tls=None, how=Connection(retries=Retries(1)))
    for run, least in (("no-node", 60.0), ("refused", None)):
        with pytest.raises(ActstoreError) as told:
            client.ask(CancelCapture(run))
        assert told.value.retry_seconds is None if least is None else told.value.retry_seconds >= least
    client.close()


@pytest.mark.parametrize("method", ["StartCapture", "WatchCapture"])
def test_workers_away(serve: Serve, connect: Callable[..., Caller], method: str, workers: stand_in.StandIn) -> None:
    requests = {"StartCapture": _start(), "WatchCapture": capture_pb2.WatchCaptureRequest(run="new")}
    call = connect(serve(gateway=workers.address, gateway_token=stand_in.TOKEN))
    workers.close()
    code, failure = call.failure("CaptureService", method, requests[method])
    assert code is grpc.StatusCode.UNAVAILABLE
    assert failure is not None
    assert failure.reason == "WORKERS_UNAVAILABLE"


def test_workers_that_come_back_are_found_soon(
    serve: Serve, connect: Callable[..., Caller], free_port: int, until: Callable[..., None]
) -> None:
    workers = stand_in.StandIn(f"127.0.0.1:{free_port}")  # which nobody else takes in between
    call = connect(serve(gateway=workers.address, gateway_token=stand_in.TOKEN))
    workers.close()
    for _ in range(3):
        call.failure("CaptureService", "StartCapture", _start())
    back = stand_in.StandIn(workers.address)
    until(lambda: call("CaptureService", "StartCapture", _start()).run == "new", seconds=30)
    back.close()


def test_no_workers_configured(serve: Serve, connect: Callable[..., Caller]) -> None:
    call = connect(serve())
    sweep = _sweep("any")
    for service, method, request in (
        ("CaptureService", "StartCapture", _start()),
        ("PatchingService", "RunSweep", sweep),
    ):
        code, failure = call.failure(service, method, request)
        assert code is grpc.StatusCode.UNAVAILABLE
        assert failure is not None
        assert failure.reason == "WORKERS_UNAVAILABLE"


def test_workers_that_refuse_the_services_token_do_not_blame_the_caller(
    serve: Serve, connect: Callable[..., Caller], workers: stand_in.StandIn
) -> None:
    call = connect(serve(gateway=workers.address, gateway_token="another"))
    code, failure = call.failure("CaptureService", "StartCapture", _start())
    assert code is grpc.StatusCode.UNAVAILABLE
    assert failure is not None
    assert "ACTSTORE_GATEWAY_TOKEN" in failure.message


def test_cancelling_a_stream_reaches_the_workers(call: Caller, workers: stand_in.StandIn) -> None:
    stream = call.stub("CaptureService").WatchCapture(
        capture_pb2.WatchCaptureRequest(run="waiting"), metadata=call.metadata
    )
    assert workers.waiting.wait(PATIENCE_SECONDS)
    stream.cancel()
    assert workers.cancelled.wait(PATIENCE_SECONDS)


def test_cancelling_an_answer_reaches_the_workers(call: Caller, workers: stand_in.StandIn) -> None:
    answer = call.stub("CaptureService").StartCapture.future(_start("waiting"), metadata=call.metadata)
    assert workers.waiting.wait(PATIENCE_SECONDS)
    answer.cancel()
    assert workers.cancelled.wait(PATIENCE_SECONDS)


def test_the_deadline_reaches_the_workers(call: Caller, workers: stand_in.StandIn) -> None:
    call("CaptureService", "StartCapture", _start())  # to be connected, however long that takes
    with pytest.raises(grpc.RpcError) as caught:
        call("CaptureService", "StartCapture", _start("waiting"), timeout_seconds=DEADLINE_SECONDS)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert workers.cancelled.wait(PATIENCE_SECONDS)
    assert workers.seconds_left is not None
    assert workers.seconds_left < DEADLINE_SECONDS + 0.5  # gRPC rounds a deadline up on its way


def test_no_deadline_is_none_for_the_workers_either(call: Caller, workers: stand_in.StandIn) -> None:
    call("CaptureService", "StartCapture", _start(), timeout_seconds=None)
    assert workers.seconds_left is not None
    assert workers.seconds_left > 365 * 24 * 3600


def test_open_calls_to_the_workers_are_bounded(
    serve: Serve, connect: Callable[..., Caller], workers: stand_in.StandIn, until: Callable[..., None]
) -> None:
    limits = Limits(forwarded_calls=1)
    call = connect(serve(gateway=workers.address, gateway_token=stand_in.TOKEN, limits=limits))
    watch = capture_pb2.WatchCaptureRequest(run="waiting")
    stream = call.stub("CaptureService").WatchCapture(watch, metadata=call.metadata)
    assert workers.waiting.wait(PATIENCE_SECONDS)
    code, failure = call.failure("CaptureService", "WatchCapture", watch)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failure is not None
    assert (failure.details["value"], failure.details["allowed"]) == ("2", "1")
    code, failure = call.failure("CaptureService", "StartCapture", _start())
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failure is not None
    assert (failure.reason, failure.details["field"]) == ("BUSY", "forwarded calls")
    stream.cancel()
    assert workers.cancelled.wait(PATIENCE_SECONDS)
    until(lambda: len(call("CaptureService", "WatchCapture", capture_pb2.WatchCaptureRequest(run="new"))) == 3)
    for _ in range(3):  # each gives its place back, whether it is answered or refused
        assert call("CaptureService", "StartCapture", _start()).run == "new"
        call.failure("CaptureService", "StartCapture", _start("refused"))


def test_waiting_answers_hold_no_place_of_other_calls(
    serve: Serve, connect: Callable[..., Caller], workers: stand_in.StandIn
) -> None:
    limits = Limits(forwarded_calls=1, catalog_threads=1, waiting_calls=1)
    call = connect(serve(gateway=workers.address, gateway_token=stand_in.TOKEN, limits=limits))
    answer = call.stub("CaptureService").StartCapture.future(_start("waiting"), metadata=call.metadata)
    assert workers.waiting.wait(PATIENCE_SECONDS)
    code, _ = call.failure("CaptureService", "StartCapture", _start("waiting"))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert call("CatalogService", "ListRuns", catalog_pb2.ListRunsRequest()) is not None
    answer.cancel()


def test_a_running_call_is_finished_when_the_service_stops(
    forwarding: Service, call: Caller, workers: stand_in.StandIn, in_thread: Callable[..., threading.Thread]
) -> None:
    answer = call.stub("CaptureService").StartCapture.future(_start("waiting"), metadata=call.metadata)
    assert workers.waiting.wait(PATIENCE_SECONDS)
    stopping = in_thread(forwarding.stop)
    time.sleep(0.2)
    assert not answer.done()
    workers.cancelled.set()  # lets the waiting call go on
    assert answer.result(PATIENCE_SECONDS).run == "waiting"
    stopping.join(PATIENCE_SECONDS)
    assert not stopping.is_alive()
