"""Authentication: one bearer token for the whole service. Health checks need no token, because probes have none."""

import hmac
from collections.abc import Callable
from typing import NoReturn

import grpc

from actstore_api.records.terms import Failure
from actstore_service.failures import abort
from actstore_service.guards import guarded

OPEN_PREFIX = "/grpc.health.v1.Health/"


class AccessInterceptor(grpc.ServerInterceptor):
    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        handler = continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(OPEN_PREFIX):
            return handler
        presented = dict(handler_call_details.invocation_metadata or ()).get("authorization", "")
        if hmac.compare_digest(presented.encode(), self._expected):
            return handler
        return guarded(handler, _denied)


def _denied(context: grpc.ServicerContext) -> NoReturn:
    message = "this service requires a token, and the call had none or a wrong one"
    abort(context, Failure("UNAUTHENTICATED", message, {"field": "authorization", "allowed": "Bearer <token>"}))
