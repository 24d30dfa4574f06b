"""Retries, deadlines, tokens, and statuses that actstore did not write."""

import socket
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import grpc
import pyarrow as pa
import pytest
from grpc_status import rpc_status

import actstore
from actstore import (
    ActstoreError,
    BadRequest,
    Denied,
    Fault,
    Lab,
    LimitExceeded,
    SaeWarning,
    StoreFailed,
    Unavailable,
)
from actstore._transport import service as _grpc_backend
from actstore_api import verbs
from actstore_api.reasons import to_status
from actstore_api.records.activation import ReadTokens
from actstore_api.records.norm import GetNormProfile
from actstore_api.records.terms import Failure
from actstore_api.v1 import capture_pb2, catalog_pb2, common_pb2, norm_pb2, service_pb2_grpc
from actstore_api.verbs import VERBS
from actstore_service.server import Service
from tests.servers import answering
from tests.service.observed.scrapes import scrape
from tests.stored_run import SAE


class Moody(
    service_pb2_grpc.CatalogServiceServicer,
    service_pb2_grpc.CaptureServiceServicer,
    service_pb2_grpc.ActivationServiceServicer,
    service_pb2_grpc.NormServiceServicer,
):
    """Refuses as told: `refusals` is how many calls are answered with `code` before one succeeds."""

    def __init__(self) -> None:
        self.refusals, self.calls = 0, 0
        self.code, self.said = grpc.StatusCode.UNAVAILABLE, "not now"
        self.failure: Failure | None = None
        self.pause_seconds = 0.0
        self.runs: list[Any] = []

    def ListRuns(self, request: Any, context: Any) -> Any:
        self._meet(context)
        return catalog_pb2.ListRunsResponse(runs=self.runs)

    def StartCapture(self, request: Any, context: Any) -> Any:
        self._meet(context)
        return capture_pb2.StartCaptureResponse(run="made")

    def WatchCapture(self, request: Any, context: Any) -> Iterator[Any]:
        failure = common_pb2.Failure(reason="OF_ANOTHER_AGE", message="something new", details={"field": "x"})
        progress = capture_pb2.CaptureProgress(run="r", state=capture_pb2.CAPTURE_STATE_FAILED, failure=failure)
        yield capture_pb2.WatchCaptureResponse(progress=progress)

    def ReadTokens(self, request: Any, context: Any) -> Iterator[Any]:
        yield from ()

    def GetNormProfile(self, request: Any, context: Any) -> Any:
        table = pa.table({"site": ["x" * 2_000_000]})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return norm_pb2.GetNormProfileResponse(profile={"arrow_ipc_stream": sink.getvalue().to_pybytes()})

    def _meet(self, context: Any) -> None:
        self.calls += 1
        time.sleep(self.pause_seconds)
        if self.failure is not None:
            context.abort_with_status(rpc_status.to_status(to_status(self.failure)))
        if self.calls <= self.refusals:
            context.abort(self.code, self.said)


@pytest.fixture
def moody() -> Moody:
    return Moody()


@pytest.fixture
def lab(moody: Moody) -> Iterator[actstore.Lab]:
    server = grpc.server(ThreadPoolExecutor(4))
    for name in ("Catalog", "Capture", "Activation", "Norm"):
        getattr(service_pb2_grpc, f"add_{name}ServiceServicer_to_server")(moody, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with actstore.connect(f"127.0.0.1:{port}") as found:
        yield found
    server.stop(None).wait()


@pytest.mark.parametrize("code", ["UNAVAILABLE", "CANCELLED", "RESOURCE_EXHAUSTED"])
def test_reads_are_tried_again_while_the_service_is_unavailable(code: str, lab: actstore.Lab, moody: Moody) -> None:
    moody.refusals, moody.code = 3, grpc.StatusCode[code]
    assert len(lab.runs()) == 0
    assert moody.calls == 4


def test_reads_are_not_tried_for_ever(lab: actstore.Lab, moody: Moody) -> None:
    moody.refusals = 100
    with pytest.raises(Unavailable, match="UNAVAILABLE: not now"):
        lab.runs()
    assert moody.calls == actstore.Retries().attempts


def test_a_service_that_comes_back_is_found_at_once(moody: Moody, free_port: int) -> None:
    """By then the tries of gRPC itself are some three seconds apart."""

    def started() -> grpc.Server:
        server = grpc.server(ThreadPoolExecutor(4))
        service_pb2_grpc.add_CatalogServiceServicer_to_server(moody, server)
        server.add_insecure_port(f"127.0.0.1:{free_port}")
        server.start()
        return server

    with actstore.connect(f"127.0.0.1:{free_port}") as lab:
        for _ in range(2):
            with pytest.raises(Unavailable):
                lab.runs()
        server = started()
        assert len(lab.runs()) == 0
    server.stop(None).wait()


@pytest.mark.parametrize("code", ["UNAVAILABLE", "CANCELLED"])
def test_starting_a_capture_is_never_repeated(code: str, lab: actstore.Lab, moody: Moody) -> None:
    moody.refusals, moody.code = 1, grpc.StatusCode[code]
    with pytest.raises(ActstoreError, match=code):
        lab.capture("m", dataset="d")
    assert moody.calls == 1


TRIED_AGAIN = ("UNAVAILABLE", "CANCELLED", "RESOURCE_EXHAUSTED")


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.name not in ("OK", *TRIED_AGAIN)])
def test_no_other_status_is_tried_again_and_none_leaks(code: grpc.StatusCode, lab: actstore.Lab, moody: Moody) -> None:
    moody.refusals, moody.code = 1, code
    with pytest.raises(ActstoreError, match=code.name) as caught:
        lab.runs()
    assert moody.calls == 1
    assert caught.value.reason == _grpc_backend.FOREIGN.get(code, "INTERNAL")
    assert not isinstance(caught.value, grpc.RpcError)


def within(verb: str, seconds: float) -> Any:
    """The verbs of the contract, of which one is given up after so long."""
    return {**VERBS, verb: replace(VERBS[verb], deadline_seconds=seconds)}


def test_a_slow_service_is_given_up(lab: actstore.Lab, moody: Moody, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs, "VERBS", within("ListRuns", 0.2))
    moody.pause_seconds = 1.0
    with pytest.raises(Unavailable, match="DEADLINE_EXCEEDED"):
        lab.runs()


def test_each_verb_has_its_own_deadline(lab: actstore.Lab, moody: Moody, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers tokenize before they answer a capture that starts."""
    assert VERBS["StartCapture"].deadline_seconds > VERBS["ListRuns"].deadline_seconds
    monkeypatch.setattr(verbs, "VERBS", within("ListRuns", 0.1))
    moody.pause_seconds = 0.5
    assert lab.capture("m", dataset="d").run == "made"
    monkeypatch.setattr(verbs, "VERBS", within("StartCapture", 0.1))
    with pytest.raises(Unavailable, match="DEADLINE_EXCEEDED"):
        lab.capture("m", dataset="d")


def test_an_answer_that_the_contract_does_not_allow_is_a_fault(lab: actstore.Lab, moody: Moody) -> None:
    """As of a later version of it."""
    moody.runs = [catalog_pb2.Run(name="r")]
    with pytest.raises(Fault, match=r"what this client cannot read: runs\.specification"):
        lab.runs()


def test_a_word_that_the_contract_does_not_have_is_not_sent(lab: actstore.Lab) -> None:
    with pytest.raises(BadRequest) as caught:
        lab._backend.ask(GetNormProfile(("r",), by="head"))
    assert (caught.value.field, caught.value.value) == ("by", "head")
    assert "token_class" in caught.value.allowed


def test_a_failed_capture_with_a_newer_reason_is_a_fault(lab: actstore.Lab) -> None:
    with pytest.raises(Fault, match="something new") as caught:
        lab.attach("r").wait()
    assert (caught.value.reason, caught.value.field) == ("INTERNAL", "x")


def test_a_rich_status_keeps_its_reason(lab: actstore.Lab, moody: Moody) -> None:
    moody.failure = Failure("STORE_CREDENTIALS", "wrong secret", {"field": "store", "value": "s3://b"})
    with pytest.raises(StoreFailed, match="wrong secret") as caught:
        lab.runs()
    assert (caught.value.reason, caught.value.field) == ("STORE_CREDENTIALS", "store")


def test_a_message_past_the_limit_is_refused(lab: actstore.Lab) -> None:
    with actstore.connect(lab.address, max_message_bytes=1_000_000) as narrow, pytest.raises(LimitExceeded):
        narrow._backend.ask(GetNormProfile(("r",)))


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_caller_chooses_how_often_a_question_is_repeated(attempts: int, lab: actstore.Lab, moody: Moody) -> None:
    moody.refusals = 100
    retries = actstore.Retries(attempts, initial_backoff_seconds=0.01)
    with actstore.connect(lab.address, retries=retries) as other, pytest.raises(Unavailable):
        other.runs()
    assert moody.calls == attempts


def test_a_caller_chooses_how_long_an_answer_may_take(lab: actstore.Lab, moody: Moody) -> None:
    moody.pause_seconds = 1.0
    timeout = actstore.Timeout(answer_seconds=0.2)
    with actstore.connect(lab.address, timeout=timeout) as hasty, pytest.raises(Unavailable, match="DEADLINE_EXCEEDED"):
        hasty.runs()


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: actstore.Retries(0), "attempts"),
        (lambda: actstore.Retries(6), "attempts"),
        (lambda: actstore.Retries(backoff_multiplier=0), "backoff_multiplier"),
        (lambda: actstore.Timeout(answer_seconds=0), "answer_seconds"),
        (lambda: actstore.Timeout(connect_seconds=float("inf")), "connect_seconds"),
        (lambda: actstore.Timeout(connect_seconds=None), "connect_seconds"),
        (lambda: actstore.Timeout(reconnect_seconds=None), "reconnect_seconds"),
        (lambda: actstore.S3Access("host", "key", "secret", secure="no"), "secure"),  # type: ignore[arg-type]
        (lambda: actstore.connect("lab:1", timeout=3), "timeout"),  # type: ignore[arg-type]
        (lambda: actstore.connect("lab:1", retries=3), "retries"),  # type: ignore[arg-type]
        (lambda: actstore.connect("lab:1", tls="no"), "tls"),  # type: ignore[arg-type]
        (lambda: actstore.connect("lab:1", max_message_bytes=-1), "max_message_bytes"),
    ],
)
def test_what_no_connection_can_have_is_refused(make: Callable[[], object], field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        make()
    assert caught.value.field == field


def test_a_verb_that_is_not_there(lab: actstore.Lab) -> None:
    """Of another program's gRPC server, or of an older service."""
    with pytest.raises(Unavailable, match="UNIMPLEMENTED") as caught:
        lab.models()
    assert "no actstore service, or an older one" in caught.value.next_step


@pytest.mark.parametrize("said", ["Received RST_STREAM with error code 2", "Stream removed"])
def test_a_connection_that_ends_within_an_answer(said: str, lab: actstore.Lab, moody: Moody) -> None:
    moody.refusals, moody.code, moody.said = 1, grpc.StatusCode.INTERNAL, said
    with pytest.raises(Unavailable, match=said):
        lab.runs()


def test_a_lab_that_is_closed(lab: actstore.Lab) -> None:
    lab.close()
    for ask in (lab.runs, lambda: lab._backend.rows(ReadTokens("r"))):
        with pytest.raises(BadRequest, match="is closed"):
            ask()


@pytest.mark.parametrize("token", ["hidden\n", "hid\tden", "hïdden"])
def test_a_token_that_no_header_can_hold(token: str) -> None:
    with pytest.raises(BadRequest, match="the token contains a character") as caught:
        actstore.connect("127.0.0.1:1", token=token)
    assert "dden" not in repr(caught.value)


def test_a_stream_without_a_message_is_a_fault(lab: actstore.Lab) -> None:
    with pytest.raises(Fault, match="first message"):
        lab._backend.rows(ReadTokens("r"))


def test_nobody_there(free_port: int) -> None:
    with (
        actstore.connect(f"127.0.0.1:{free_port}") as nobody,
        pytest.raises(Unavailable, match="actstore up") as caught,
    ):
        nobody.runs()
    assert (caught.value.field, caught.value.value) == ("address", f"127.0.0.1:{free_port}")


def test_a_wrong_or_missing_token_is_denied(service: Any) -> None:
    for token in (None, "other"):
        with actstore.connect(service.address, token=token) as lab, pytest.raises(Denied, match="ACTSTORE_TOKEN"):
            lab.runs()


def test_a_token_never_travels_in_the_clear_unless_told() -> None:
    with pytest.raises(Denied, match="in the clear") as caught:
        actstore.connect("lab.example:7433", token="secret")
    assert caught.value.field == "tls"
    assert "secret" not in str(caught.value)
    for tls in (True, False):
        actstore.connect("lab.example:7433", token="secret", tls=tls).close()


@pytest.mark.parametrize("address", ["localhost:1", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1"])
def test_loopback_needs_no_encryption(address: str) -> None:
    actstore.connect(address, token="secret").close()


def test_another_machine_is_reached_through_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback never is: tests/client/stack/test_stack.py."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        with actstore.connect("192.0.2.1:7433") as lab, ThreadPoolExecutor(1) as pool:
            asked = pool.submit(lab.runs)
            heard, _ = proxy.accept()
            with heard:
                assert heard.recv(100).startswith(b"CONNECT 192.0.2.1:7433")
            proxy.close()
            with pytest.raises(Unavailable) as caught:
                asked.result()
    assert "no_proxy" in caught.value.next_step


def test_tls_to_a_service_without_it(lab: actstore.Lab) -> None:
    with actstore.connect(lab.address, tls=True) as wrong, pytest.raises(Unavailable) as caught:
        wrong.runs()
    assert "pass tls=False" in caught.value.next_step
    assert caught.value.value == lab.address


@pytest.mark.parametrize(
    ("answer", "step"), [(b"", "pass tls=True"), (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is no gRPC service")]
)
def test_what_is_no_service(answer: bytes, step: str) -> None:
    """A TLS port closes the connection, and a web server speaks HTTP/1."""
    with answering(answer) as address, actstore.connect(address) as lab, pytest.raises(Unavailable) as caught:
        lab.runs()
    assert step in caught.value.next_step


def test_waits_and_checks_count_as_what_they_are(remote: Lab, service: Service) -> None:
    """A stream that is left before its end would count as cancelled, and alerts on errors would fire."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SaeWarning)
        remote.capture("planted-model", dataset="text", saes=[SAE]).wait()
    found = scrape(service)
    watch = "/actstore_api.v1.CaptureService/WatchCapture"
    codes = {labels[0]: value for (name, labels), value in found.items() if name == "actstore_calls_total" and value}
    assert found["actstore_calls_total", ("OK", watch)] == 1
    assert set(codes) == {"OK"}
    checks = [found["actstore_sae_checks_total", (result,)] for result in ("as_claimed", "doubtful")]
    assert sum(checks) == 1
