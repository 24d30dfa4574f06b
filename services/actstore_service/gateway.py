"""The service's connection to the workers: one channel, and calls forwarded with their deadline, cancellation and
errors.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
from google.rpc import status_pb2

from actstore_api.v1 import capture_pb2
from actstore_api.verbs import VERBS
from actstore_service.failures import ForwardedError
from actstore_service.settings import Limits, is_loopback
from actstore_storage.errors import ActstoreError

LOG = logging.getLogger(__name__)
# The name of the Ray Serve application, by which its proxy routes calls.
APPLICATION = "actstore"
# Read here and not by grpc_status, which refuses a status whose message differs from the details in any way.
STATUS_KEY = "grpc-status-details-bin"
# Caused by the caller, so they say nothing about the workers.
_CALLERS = frozenset({grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED})


class Gateway:
    """Forwards calls. Without an address, or while nothing answers there, every call fails with WORKERS_UNAVAILABLE."""

    def __init__(self, address: str | None, token: str | None, limits: Limits) -> None:
        options = [
            # A proxy of the environment is never used for this machine itself.
            ("grpc.enable_http_proxy", int(address is None or not is_loopback(address))),
            ("grpc.max_receive_message_length", limits.response_bytes),
            ("grpc.max_send_message_length", limits.request_bytes),
            # Otherwise workers that come back are found only after gRPC's own two minutes.
            ("grpc.max_reconnect_backoff_ms", int(1000 * limits.reconnect_seconds)),
        ]
        self._channel = grpc.insecure_channel(address, options) if address else None
        self._metadata = (("application", APPLICATION), ("authorization", f"Bearer {token}"))
        self._places = threading.BoundedSemaphore(limits.forwarded_calls)
        self._limits = limits

    @property
    def configured(self) -> bool:
        return self._channel is not None

    def answer(self, path: str, request: bytes, context: grpc.ServicerContext) -> Any:
        """Forwards a call with one answer message, as bytes. `path` is gRPC's name of the method."""
        with self._place():
            method = self._open().unary_unary(path)
            call = method.future(request, timeout=_seconds_left(context), metadata=self._metadata)
            try:
                _cancel_with(context, call)
                return call.result()
            except (grpc.RpcError, grpc.FutureCancelledError):
                _hand_on(call)

    def stream(self, path: str, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Forwards a call with a stream of messages, as bytes. The call is cancelled if nobody reads the stream any
        more.
        """
        with self._place():
            method = self._open().unary_stream(path)
            call = method(request, timeout=_seconds_left(context), metadata=self._metadata)
            try:
                _cancel_with(context, call)
                yield from call
            except grpc.RpcError:
                _hand_on(call)
            finally:
                call.cancel()

    def capture_totals(self) -> capture_pb2.GetCaptureTotalsResponse | None:
        """Totals for dashboards; None while the workers do not answer."""
        if self._channel is None:
            return None
        try:
            return self._totals()
        except grpc.RpcError as error:
            LOG.warning("no capture totals from the workers: %s", error.code())
            return None

    def _totals(self) -> capture_pb2.GetCaptureTotalsResponse:
        method = self._open().unary_unary(VERBS["GetCaptureTotals"].path)
        request = capture_pb2.GetCaptureTotalsRequest().SerializeToString()
        said = method(request, timeout=self._limits.totals_seconds, metadata=self._metadata)
        return capture_pb2.GetCaptureTotalsResponse.FromString(said)

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()

    @contextmanager
    def _place(self) -> Iterator[None]:
        """Reserves one of the threads that calls to the workers may use; the others answer from the bucket."""
        if not self._places.acquire(blocking=False):
            raise ActstoreError(
                f"{self._limits.forwarded_calls} calls to the workers are open, which is the limit of this service",
                reason="LIMIT_EXCEEDED",
                field="forwarded_calls",
                value=self._limits.forwarded_calls + 1,
                allowed=self._limits.forwarded_calls,
            )
        try:
            yield
        finally:
            self._places.release()

    def _open(self) -> grpc.Channel:
        if self._channel is None:
            raise _unavailable("this service was started without workers (ACTSTORE_GATEWAY)")
        return self._channel


def _seconds_left(context: grpc.ServicerContext) -> float | None:
    """None for a call without a deadline, for which gRPC returns centuries."""
    seconds = context.time_remaining()
    return None if seconds > threading.TIMEOUT_MAX else seconds


def _cancel_with(context: grpc.ServicerContext, call: Any) -> None:
    if not context.add_callback(call.cancel):
        call.cancel()


def _hand_on(call: Any) -> NoReturn:
    """Raises the error of the workers' status. Only reasons of our table pass unchanged: other statuses come from Ray
    Serve or from the network, and their codes would mislead (NOT_FOUND: the application is not deployed).
    """
    code, details = call.code(), call.details()
    written = dict(call.trailing_metadata() or ()).get(STATUS_KEY)
    if written is not None and code is not grpc.StatusCode.UNAUTHENTICATED:
        raise ForwardedError(status_pb2.Status.FromString(written))
    if code in _CALLERS:
        raise ForwardedError(status_pb2.Status(code=code.value[0], message=details))
    LOG.error("the workers' gateway answered %s: %s", code, details)
    if code is grpc.StatusCode.UNAUTHENTICATED:
        raise _unavailable("the workers refuse this service's token: ACTSTORE_GATEWAY_TOKEN must be the same for both")
    if code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL):
        raise ActstoreError("the workers failed; the service's log has the details")
    raise _unavailable("the workers do not answer at the moment; try again later")


def _unavailable(message: str) -> ActstoreError:
    return ActstoreError(message, reason="WORKERS_UNAVAILABLE")
