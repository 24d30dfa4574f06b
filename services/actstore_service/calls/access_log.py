"""Writes a line for each call that has ended, and its span. Neither has a token, a key, or text of a caller."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from actstore_api.logs.traces import span
from actstore_api.request_ids import REQUEST_ID
from actstore_service.calls.call import Call
from actstore_service.calls.classes import CallClass

LOG = logging.getLogger("actstore_service.access")
# Whatever else is given as a run's name may be anything, a prompt among them.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
# The fields that the message has too, for people.
_SAID = ("method", "code", "reason", "ms", "principal", "run")
_WARNINGS = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
_ERRORS = frozenset(
    {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS}
)


@contextmanager
def logged(call: Call) -> Iterator[None]:
    """Writes the line of a call at its end. Lines that are written within the block have the request's id."""
    REQUEST_ID.set(call.request_id)
    try:
        yield
    finally:
        _write(call)


@contextmanager
def traced(call: Call) -> Iterator[None]:
    """A call has a span, except probes."""
    if call.kind is CallClass.STANDARD:
        yield
        return
    with span(call.method, call.headers) as found:
        try:
            yield
        finally:
            found.note(failed=call.code in _ERRORS, code=call.code.name, reason=call.reason)


def _write(call: Call) -> None:
    if call.kind is CallClass.STANDARD and call.code is grpc.StatusCode.OK:
        return  # probes every few seconds
    fields = {
        "method": call.method,
        "code": call.code.name,
        "reason": call.reason,
        "ms": round(1000 * call.seconds(), 1),
        "principal": call.name,
        "request_id": call.request_id,
        "run": call.run if _NAME.fullmatch(call.run) else "",
        "peer": call.context.peer(),
    }
    LOG.log(_level(call.code), " ".join(str(fields[name]) for name in _SAID if fields[name]), extra=fields)


def _level(code: grpc.StatusCode) -> int:
    if code in _ERRORS:
        return logging.ERROR
    return logging.WARNING if code in _WARNINGS else logging.INFO
