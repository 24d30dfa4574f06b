"""One trace of a question, from the client through the service to the replica that answers it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import actstore
from actstore_api.logs import traces
from tests.service.observed.otlp import Receiver
from tests.service.process import running_service
from tests.worker_process import WorkerProcess

pytestmark = pytest.mark.stack

PLANTED = "Mary gave a planted prompt"
PATH = "/actstore_api.v1.ModelService/GetAttention"


@pytest.fixture
def client_spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Of this process, which is the client only: the service is another one."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(traces, "_provider", provider)
    yield exporter
    provider.shutdown()


def test_a_question_has_one_trace(
    workers: WorkerProcess, receiver: Receiver, folder: Path, client_spans: InMemorySpanExporter
) -> None:
    variables = {
        "ACTSTORE_STORE": str(folder / "store"),
        "ACTSTORE_TOKEN": "planted-token",
        "ACTSTORE_GATEWAY": workers.address,
        "ACTSTORE_GATEWAY_TOKEN": workers.token,
    }
    with running_service(**variables, **receiver.variables) as ready:
        with actstore.connect(ready["address"], token="planted-token") as lab:
            lab.attention("tiny", PLANTED)
        (client,) = (span for span in client_spans.get_finished_spans() if span.name == PATH)
        trace = f"{client.context.trace_id:032x}"
        service = receiver.span(trace=trace, process="service")
        gateway = receiver.span(trace=trace, process="gateway")
        replica = receiver.span(trace=trace, process="replica")
    assert service.parent == f"{client.context.span_id:016x}"
    assert (gateway.parent, replica.parent) == (service.own, gateway.own)
    assert (service.name, gateway.name, replica.name) == (PATH, PATH, "replica/GetAttention")
    assert len({span.attributes["actstore.request_id"] for span in (service, gateway, replica)}) == 1
    assert not any(secret.encode() in receiver.bytes for secret in (PLANTED, "planted-token", workers.token))
