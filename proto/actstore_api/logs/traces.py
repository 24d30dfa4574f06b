"""Traces of calls through client, service and workers, by OpenTelemetry. Only this file uses it.

They are off, and nothing of OpenTelemetry is imported, unless a variable of its own says where spans go. A span has a
method's name, the call's status, reason and request id, and nothing that a caller sent.
"""

import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from actstore_api.request_ids import HEADER, REQUEST_ID, request_id_of

_log = logging.getLogger(__name__)
# Either of them turns traces on. The others of OpenTelemetry's variables apply then, too.
SWITCHES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
# W3C's headers: the span that a call belongs to.
_PARENT, _STATE = "traceparent", "tracestate"
_VALID = re.compile(r"[\x20-\x7e]{1,512}")
_NONE: Mapping[str, str] = {}

# The headers of the span that runs in this context; empty outside of a trace.
_CURRENT: ContextVar[Mapping[str, str]] = ContextVar("_CURRENT", default=_NONE)
# OpenTelemetry's, once it has been started in this process.
_provider: Any = None


class Span:
    """A span that is under way, or none where traces are off."""

    def __init__(self, span: Any, headers: Mapping[str, str]) -> None:
        self._span, self.headers = span, headers

    def note(self, *, failed: bool = False, **said: str) -> None:
        """Adds attributes, and that the call failed. `said` has no text that a caller sent."""
        if self._span is None:
            return
        for name, value in said.items():
            self._span.set_attribute(f"actstore.{name}", value)
        if failed:
            from opentelemetry.trace import StatusCode

            self._span.set_status(StatusCode.ERROR)

    def end(self) -> None:
        """The call is over."""
        if self._span is not None:
            self._span.end()


def start_traces(process: str, environment: Mapping[str, str]) -> None:
    """Sends the spans of this process to where the environment says, if it says so. `process` is in their resource."""
    global _provider
    if _provider is not None or not any(map(environment.get, SWITCHES)):
        return
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        _log.warning("there are no traces, because %s is not installed: install actstore[trace]", error.name)
        return
    named = "OTEL_SERVICE_NAME" in environment or "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    own = {"actstore.process": process} | ({} if named else {"service.name": f"actstore-{process}"})
    _provider = TracerProvider(resource=Resource.create(own))
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))


def end_traces() -> None:
    """Sends the spans that wait. There are no further ones, until traces are started again."""
    global _provider
    ended, _provider = _provider, None
    if ended is not None:
        ended.shutdown()


def carried() -> dict[str, str]:
    """The headers that go with a call to another process: the request's id, and the span that the call belongs to."""
    request = REQUEST_ID.get()
    return {**({HEADER: request} if request else {}), **_CURRENT.get()}


def traceparent() -> str:
    """The span that runs in this context, for what outlives it; empty outside of a trace."""
    return _CURRENT.get().get(_PARENT, "")


def apart(request_id: str, parent: str = "") -> None:
    """From here on, what this task does belongs to that request, and to the span `parent`, which may be long over."""
    REQUEST_ID.set(request_id)
    _CURRENT.set({_PARENT: parent} if _VALID.fullmatch(parent) else _NONE)


def received(name: str, headers: Mapping[str, str]) -> Any:
    """Within this context runs a call that came with these headers: its lines have its request's id, and it has a span.

    The context stays the call's after its end, so each call needs a task or a thread of its own.
    """
    REQUEST_ID.set(request_id_of(headers.get(HEADER)))
    return span(name, headers)


@contextmanager
def span(name: str, headers: Mapping[str, str]) -> Iterator[Span]:
    """Within this context, a call that came with these headers has a span."""
    found = _begun(name, headers)
    _CURRENT.set(found.headers)
    try:
        yield found
    except BaseException:
        found.note(failed=True)
        raise
    finally:
        found.note(request_id=REQUEST_ID.get())
        found.end()


@contextmanager
def asked(name: str, request_id: str) -> Iterator[Mapping[str, str]]:
    """Within this context a client makes a call, with these headers. Its span belongs to the caller's own, if the
    program has traces.
    """
    tracer = _tracer_of_program()
    if tracer is None:
        yield _NONE
        return
    from opentelemetry.trace import SpanKind

    found = _with_headers(tracer.start_span(name, kind=SpanKind.CLIENT))
    found.note(request_id=request_id)
    try:
        yield found.headers
    except BaseException as error:
        found.note(failed=not isinstance(error, GeneratorExit))
        raise
    finally:
        found.end()


def _begun(name: str, headers: Mapping[str, str]) -> Span:
    """Where traces are off here, they are not cut: the next process gets the span that this one got."""
    given = {key: headers[key] for key in (_PARENT, _STATE) if _VALID.fullmatch(headers.get(key, ""))}
    if _provider is None:
        return Span(None, given)
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    parent = TraceContextTextMapPropagator().extract(given)
    tracer = _provider.get_tracer("actstore")
    return _with_headers(tracer.start_span(name, context=parent, kind=SpanKind.SERVER))


def _tracer_of_program() -> Any:
    """Ours if it was started here, as the command does, else that of a program that has traces of its own."""
    if _provider is not None:
        return _provider.get_tracer("actstore")
    theirs = sys.modules.get("opentelemetry.trace")
    return None if theirs is None else theirs.get_tracer("actstore")


def _with_headers(started: Any) -> Span:
    from opentelemetry.trace import set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers, set_span_in_context(started))
    return Span(started, headers)
