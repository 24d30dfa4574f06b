"""A receiver of traces, as a collector is: a real server that processes send their spans to."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.waiting import wait_until


@dataclass(frozen=True)
class Span:
    """One span, with its ids in hexadecimal; `process` is who sent it."""

    name: str
    process: str
    trace: str
    own: str
    parent: str
    attributes: dict[str, str]
    failed: bool


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.bytes = b""
        self.address = ""

    @property
    def variables(self) -> dict[str, str]:
        """With which a process sends its spans here, soon after they end."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{self.address}", "OTEL_BSP_SCHEDULE_DELAY": "50"}

    def Export(self, request: Any, context: Any) -> Any:
        self.bytes += request.SerializeToString()
        for resource in request.resource_spans:
            process = _attributes(resource.resource)["actstore.process"]
            self.spans += [_span(one, process) for scope in resource.scope_spans for one in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def span(self, **fields: str) -> Span:
        """The one with these fields, once it is here."""

        def found() -> list[Span]:
            return [one for one in self.spans if all(getattr(one, name) == value for name, value in fields.items())]

        wait_until(found, f"a span with {fields}")
        (one,) = found()
        return one


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver, server = Receiver(), grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
    receiver.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield receiver
    server.stop(None).wait()


def _span(one: Any, process: str) -> Span:
    ids = one.trace_id.hex(), one.span_id.hex(), one.parent_span_id.hex()
    return Span(one.name, process, *ids, _attributes(one), one.status.code == 2)


def _attributes(of: Any) -> dict[str, str]:
    return {each.key: each.value.string_value for each in of.attributes}
