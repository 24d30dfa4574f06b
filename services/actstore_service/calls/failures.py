"""Turns errors into gRPC statuses: actstore's own as google.rpc.Status, the workers' unchanged, others without internal
details.
"""

import logging
from collections.abc import Callable
from random import SystemRandom
from typing import NoReturn

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from actstore_api.reasons import REASONS, Kind, from_status, to_status, with_request_id
from actstore_api.records.terms import Failure
from actstore_api.request_ids import HEADER
from actstore_api.shape import Unreadable
from actstore_service.calls.call import Call
from actstore_storage.errors import RETRY_SECONDS, ActstoreError, BadRequest

LOG = logging.getLogger(__name__)
# Errors that a caller cannot fix, so the log must have them too.
OPERATORS = frozenset({Kind.STORE, Kind.CORRUPT, Kind.FAULT})
# gRPC's clients wait as long as this trailer says before they try again, and do not where it is negative.
PUSHBACK = "grpc-retry-pushback-ms"
NEVER = "-1"

_CHANCE = SystemRandom()
# What a caller may see of an error.
Seen = Callable[[Failure], Failure]


class StatusGiven(Exception):
    """A status that is passed on unchanged, such as the workers'."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.status = status


def bad_request(error: Unreadable) -> BadRequest:
    """The error for what the contract does not allow."""
    return BadRequest(str(error), reason=error.reason, field=error.field, value=error.value, allowed=error.allowed)


def refusal(call: Call, error: Exception, retry_seconds: float, seen: Seen) -> status_pb2.Status:
    """The error's status, or what of it the caller may see; it is noted in the call. A BUSY call that does not say when
    may be tried again after about `retry_seconds`.
    """
    status = with_request_id(_status(call, error, retry_seconds, seen), call.request_id)
    failure = from_status(status)
    call.code, call.reason = rpc_status.to_status(status).code, failure.reason if failure else ""
    return status


async def abort(call: Call, status: status_pb2.Status) -> NoReturn:
    """Ends the call with this status."""
    written = rpc_status.to_status(status)
    trailers = (*written.trailing_metadata, (HEADER, call.request_id), *_pushback(status, call.seconds_left()))
    await call.context.abort(written.code, written.details, trailers)
    raise AssertionError("abort returned")


def _status(call: Call, error: Exception, retry_seconds: float, seen: Seen) -> status_pb2.Status:
    if isinstance(error, StatusGiven):
        return _with_retry(_passed_on(error.status, seen), retry_seconds)
    if not isinstance(error, ActstoreError):
        return to_status(_hidden(call, error))
    if REASONS[error.reason].kind in OPERATORS:
        LOG.error("%s: %s, request %s", call.method, error.for_log, call.request_id)
    return _with_retry(to_status(seen(Failure(error.reason, error.message, error.details))), retry_seconds)


def _passed_on(status: status_pb2.Status, seen: Seen) -> status_pb2.Status:
    failure = from_status(status)
    shown = failure and seen(failure)
    return status if shown is None or shown == failure else to_status(shown)


def _hidden(call: Call, error: Exception) -> Failure:
    """The error may contain files, addresses or secrets of the server, so it is only logged."""
    LOG.error("%s failed, request %s", call.method, call.request_id, exc_info=error)
    return Failure("INTERNAL", f"internal error; the service's log has the details under request {call.request_id}")


def _with_retry(status: status_pb2.Status, retry_seconds: float) -> status_pb2.Status:
    """The same status with when to try again: as the error says, or for BUSY after about `retry_seconds`."""
    failure = from_status(status)
    if failure is not None and (failure.reason == "BUSY" or RETRY_SECONDS in failure.details):
        # Never sooner than the error says, and never all together.
        said_seconds = float(failure.details.get(RETRY_SECONDS, 0.5 * retry_seconds))
        _add_retry(status, said_seconds + retry_seconds * _CHANCE.random())
    return status


def _add_retry(status: status_pb2.Status, seconds: float) -> None:
    delay = Duration()
    delay.FromMilliseconds(round(1000 * seconds))
    status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))


def _pushback(status: status_pb2.Status, seconds_left: float | None) -> tuple[tuple[str, str], ...]:
    """When a client may try again. What is too large stays too large, so such a call must not be tried again. Nor may
    one whose time is over before: its client would wait in vain, and then see its deadline and not this error.
    """
    retry = error_details_pb2.RetryInfo()
    if any(packed.Unpack(retry) for packed in status.details):
        milliseconds = retry.retry_delay.ToMilliseconds()
        late = seconds_left is not None and milliseconds >= 1000 * seconds_left
        return ((PUSHBACK, NEVER if late else str(milliseconds)),)
    return ((PUSHBACK, NEVER),) if status.code == code_pb2.RESOURCE_EXHAUSTED else ()


def ended_by_caller(call: Call) -> None:
    """Notes the code of a call that was cut off: its client left, or its deadline passed."""
    over = call.seconds_left() == 0
    call.code = grpc.StatusCode.DEADLINE_EXCEEDED if over else grpc.StatusCode.CANCELLED
