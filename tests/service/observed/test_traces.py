"""Spans of a real service process, as a collector receives them, and processes in which traces are off."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace

import grpc
import pytest

from actstore_api.logs import traces
from actstore_api.v1 import capture_pb2, catalog_pb2
from actstore_storage.bucket import Bucket
from tests.service import stand_in
from tests.service.conftest import TOKEN, Caller
from tests.service.observed.otlp import Receiver, receiving
from tests.service.process import environment, running_service
from tests.stored_run import StoredRun

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SENT = (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("x-request-id", "traced"))
PLANTED = "planted prompt"
GET_RUN = "/actstore_api.v1.CatalogService/GetRun"
CANCEL = "/actstore_api.v1.CaptureService/CancelCapture"
# Runs `{code}` after it has hidden OpenTelemetry, if it is to be missing.
SCRIPT = """
import logging, os, sys
if {missing}:
    sys.modules["opentelemetry.sdk"] = sys.modules["opentelemetry.exporter.otlp.proto.grpc"] = None
from actstore_api.logs.lines import LogForm, start_logging
from actstore_api.logs.traces import asked, carried, received, start_traces
start_logging("service", LogForm.TEXT)
start_traces("service", os.environ)
with received("a", {{"traceparent": "{sent}"}}):
    assert carried()["traceparent"] == "{sent}", carried()
with asked("b", "id") as headers:
    assert not headers
print(any(name.partition(".")[0] == "opentelemetry" and module for name, module in sys.modules.items()))
"""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def test_a_call_has_a_span_below_the_callers_and_above_the_workers(
    bucket: Bucket, stored: StoredRun, workers: stand_in.StandIn, receiver: Receiver
) -> None:
    variables = {
        "ACTSTORE_STORE": bucket.address,
        "ACTSTORE_TOKEN": TOKEN,
        "ACTSTORE_GATEWAY": workers.address,
        "ACTSTORE_GATEWAY_TOKEN": stand_in.TOKEN,
    }
    with running_service(**variables, **receiver.variables) as ready:
        call = Caller(ready["address"], TOKEN)
        metadata = (*call.metadata, *SENT)
        call.stub("CatalogService").GetRun(catalog_pb2.GetRunRequest(run="planted"), metadata=metadata)
        span = receiver.span(name=GET_RUN)
        assert (span.process, span.trace, span.parent, span.failed) == ("service", TRACE, PARENT, False)
        assert span.attributes == {
            "actstore.request_id": "traced", "actstore.code": "OK", "actstore.reason": "",
        }  # fmt: skip
        for run in ("refused", "bare-INTERNAL", PLANTED):
            with suppress(grpc.RpcError):  # a stand-in cancels what has no special name
                call.stub("CaptureService").CancelCapture(capture_pb2.CancelCaptureRequest(run=run), metadata=metadata)
            if run == "refused":
                passed_on = workers.metadata["traceparent"]
                below = receiver.span(name=CANCEL)
                assert passed_on == f"00-{TRACE}-{below.own}-01"
                receiver.spans.remove(below)
        call.channel.close()
    assert PLANTED.encode() not in receiver.bytes
    assert TOKEN.encode() not in receiver.bytes


@pytest.mark.parametrize(("configured", "missing"), [(False, False), (True, True)])
def test_without_traces_nothing_is_imported_and_none_is_cut(configured: bool, missing: bool) -> None:
    """A process that has none of its own hands on what it got."""
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"} if configured else {}
    code = SCRIPT.format(missing=missing, sent=SENT[0][1])
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(**variables), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert ("install actstore[trace]" in done.stderr) == missing
    assert missing or done.stdout.strip() == "False"


def test_traces_that_were_ended_are_not_ended_again(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(traces, "_provider", SimpleNamespace(shutdown=lambda: ended.append("once")))
    traces.end_traces()
    traces.end_traces()
    with traces.received("a", {}) as span:
        span.end()
    assert ended == ["once"]
