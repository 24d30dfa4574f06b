"""Turns errors into gRPC statuses: actstore's own as google.rpc.Status, the workers' unchanged, others without internal
details.
"""

import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import grpc
from google.rpc import status_pb2
from grpc_status import rpc_status

from actstore_api.reasons import REASONS, Kind, to_status
from actstore_api.records.terms import Failure
from actstore_service.guards import guarded
from actstore_storage.errors import ActstoreError

LOG = logging.getLogger(__name__)
# Errors that a caller cannot fix, so the log must have them too.
OPERATORS = frozenset({Kind.STORE, Kind.CORRUPT, Kind.UNAVAILABLE, Kind.FAULT})


class ForwardedError(Exception):
    """A status from the workers, which is passed on unchanged."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.status = status


class FailureInterceptor(grpc.ServerInterceptor):
    """Turns every exception of a servicer into a status."""

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        handler = continuation(handler_call_details)
        return handler and guarded(handler, lambda context: _answered(context, handler_call_details.method))


def abort(context: grpc.ServicerContext, failure: Failure) -> NoReturn:
    context.abort_with_status(rpc_status.to_status(to_status(failure)))
    raise AssertionError("abort_with_status returned")


@contextmanager
def _answered(context: grpc.ServicerContext, method: str) -> Iterator[None]:
    try:
        yield
    except ActstoreError as error:
        if REASONS[error.reason].kind in OPERATORS:
            LOG.error("%s: %s", method, error.message)
        abort(context, Failure(error.reason, error.message, error.details))
    except ForwardedError as error:
        context.abort_with_status(rpc_status.to_status(error.status))
    except Exception:
        request = uuid.uuid4().hex
        LOG.exception("%s failed, request %s", method, request)
        # The error may contain files, addresses or secrets of the server, so it is only logged.
        abort(
            context, Failure("INTERNAL", f"internal error; the service's log has the details under request {request}")
        )
