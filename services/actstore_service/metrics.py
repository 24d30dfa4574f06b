"""Counts what a service does, in metrics of the catalogue: calls, sweeps, and whether the workers answer."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import grpc

from actstore_api import metrics as catalogue
from actstore_api.exporting import Exported
from actstore_api.metrics import OTHER, UNKNOWN_METHOD, Exporter
from actstore_api.v1 import patching_pb2
from actstore_api.verbs import VERBS
from actstore_service.gateway import Gateway
from actstore_service.guards import guarded
from actstore_storage.format.specification import FORMAT_VERSION

KERNELS = {number: name.removeprefix("SWEEP_KERNEL_").lower() for name, number in patching_pb2.SweepKernel.items()}
_STREAMS = frozenset(verb.path for verb in VERBS.values() if verb.streams)


class Metrics:
    """The metrics of one service process."""

    def __init__(self, gateway: Gateway) -> None:
        self.exported = Exported(Exporter.SERVICE)
        self.exported.set(catalogue.BUILD_INFO, 1, version("actstore"), str(FORMAT_VERSION))
        self.sweeps = SweepMetrics(self.exported)
        self._gateway = gateway
        self._answer_scrape = self.exported.wsgi()

    def wsgi(self) -> Callable[..., Any]:
        """Answers a scrape, after asking the workers whether they are there."""

        def answer(environ: Any, start_response: Any) -> Any:
            self.exported.set(catalogue.WORKERS_UP, int(self._gateway.capture_totals() is not None))
            return self._answer_scrape(environ, start_response)

        return answer

    def refused(self, method: str) -> None:
        """Counts a call of a method that the server does not have."""
        self.exported.add(catalogue.CALLS_STARTED, method)
        self.exported.add(catalogue.CALLS, method, grpc.StatusCode.UNIMPLEMENTED.name)

    @contextmanager
    def counted(self, context: grpc.ServicerContext, method: str) -> Iterator[None]:
        """Counts a call from its start to its end."""
        started_seconds = time.monotonic()
        self.exported.add(catalogue.CALLS_STARTED, method)
        self.exported.add(catalogue.CALLS_IN_FLIGHT)
        try:
            yield
        finally:
            took = catalogue.STREAM_SECONDS if method in _STREAMS else catalogue.UNARY_SECONDS
            self.exported.add(catalogue.CALLS_IN_FLIGHT, by=-1)
            self.exported.observe(took, time.monotonic() - started_seconds, method)
            self.exported.add(catalogue.CALLS, method, _code(context).name)


class SweepMetrics:
    """Metrics of finished sweeps. A cached answer's audit was counted when it was computed, so it is not
    counted again.
    """

    def __init__(self, exported: Exported) -> None:
        self._exported = exported

    def ended(self, audit: patching_pb2.SweepAudit, cells: int, seconds: float) -> None:
        """Counts a sweep that returned its answer."""
        answer, kernel = "kept" if audit.cached else "computed", KERNELS.get(audit.kernel, OTHER)
        self._exported.add(catalogue.SWEEPS, answer, kernel)
        self._exported.add(catalogue.SWEEP_CELLS, answer, by=cells)
        if not audit.cached:
            self._exported.observe(catalogue.SWEEP_SECONDS, seconds, kernel)
            self._computed(audit)

    def audit_failed(self) -> None:
        """Counts a sweep that its audit aborted."""
        self._exported.add(catalogue.SWEEP_AUDITS_FAILED)

    def _computed(self, audit: patching_pb2.SweepAudit) -> None:
        self._exported.add(catalogue.SWEEP_TOKEN_LAYERS, "computed", by=audit.token_layers)
        self._exported.add(catalogue.SWEEP_TOKEN_LAYERS, "full", by=audit.token_layers_full)
        if audit.audited_cells:
            self._exported.observe(catalogue.SWEEP_ERROR, _share(audit.largest_error, audit.tolerance))
            self._exported.observe(catalogue.SWEEP_NOISE, _share(audit.noise_floor, audit.tolerance))


class MetricsInterceptor(grpc.ServerInterceptor):
    """The outermost interceptor, so that refused calls are counted too."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        handler = continuation(handler_call_details)
        if handler is None:
            self._metrics.refused(UNKNOWN_METHOD)
            return None
        return guarded(handler, lambda context: self._metrics.counted(context, handler_call_details.method))


def _share(value: float, tolerance: float) -> float:
    return value / tolerance if tolerance else math.inf


def _code(context: grpc.ServicerContext) -> grpc.StatusCode:
    if context.code() is not None:
        return context.code()
    return grpc.StatusCode.OK if context.is_active() else grpc.StatusCode.CANCELLED
