"""Prometheus metrics of the service, and the workers' capture totals at each scrape. Only this file uses Prometheus.

Labels are bounded: methods are those that the server has, all others count as `unknown`; codes are gRPC's.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from actstore_api.v1 import patching_pb2
from actstore_service.calls.call import Call
from actstore_service.gateway import Gateway

UNKNOWN_METHOD = "unknown"
# The kernel label for a sweep from another version of the workers.
OTHER_KERNEL = "other"
KERNELS: Mapping[int, str] = {
    number: name.removeprefix("SWEEP_KERNEL_").lower() for name, number in patching_pb2.SweepKernel.items() if number
}
ERROR_BUCKETS = (1e-4, 1e-3, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
# From a health check to a feature page over a large run.
LATENCY_BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The metrics of one process, in their own registry."""

    def __init__(self, gateway: Gateway) -> None:
        self._registry = CollectorRegistry()
        self._calls = Counter(
            "actstore_calls",
            "gRPC calls that have finished, by method and status code.",
            ("method", "code"),
            registry=self._registry,
        )
        self._latency_seconds = Histogram(
            "actstore_call_latency_seconds",
            "Seconds from a call's start to its last message.",
            ("method",),
            buckets=LATENCY_BUCKETS_SECONDS,
            registry=self._registry,
        )
        self._refused = Counter(
            "actstore_refused",
            "Calls that ended with an error, by its reason and their class of calls.",
            ("reason", "class"),
            registry=self._registry,
        )
        self._in_flight = Gauge("actstore_calls_in_flight", "gRPC calls in progress.", registry=self._registry)
        self.sweeps = SweepMetrics(self._registry)
        ProcessCollector(registry=self._registry)
        self._registry.register(_CaptureTotals(gateway))

    def wsgi(self) -> Callable[..., Any]:
        return make_wsgi_app(self._registry)

    @contextmanager
    def counted(self, call: Call) -> Iterator[None]:
        started_seconds = time.monotonic()
        with self._in_flight.track_inprogress():
            try:
                yield
            finally:
                self._latency_seconds.labels(call.method).observe(time.monotonic() - started_seconds)
                self._calls.labels(call.method, call.code.name).inc()
                if call.reason:
                    self._refused.labels(call.reason, call.kind).inc()


class SweepMetrics:
    """Metrics of finished sweeps. A cached answer's audit was counted when it was computed, so it is not
    counted again.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._ended = Counter(
            "actstore_sweeps",
            "Patching sweeps that returned an answer. answer: computed, or kept (read from the store's cache). kernel: "
            "resumed (partial forward passes), or full (full forward passes, if the model's layers do not support "
            "partial ones).",
            ("answer", "kernel"),
            registry=registry,
        )
        self._failed = Counter(
            "actstore_sweep_audits_failed",
            "Sweeps aborted because the audit error exceeded the tolerance.",
            registry=registry,
        )
        self._cells = Counter(
            "actstore_sweep_cells",
            "Cells in the answers of sweeps, computed or kept (read from the store's cache).",
            ("answer",),
            registry=registry,
        )
        self._token_layers = Counter(
            "actstore_sweep_token_layers",
            "Work of sweeps in tokens times layers. way: computed (what was run), or full (what full forward passes of "
            "all patched prompts would take).",
            ("way",),
            registry=registry,
        )
        self._errors = Histogram(
            "actstore_sweep_error_of_tolerance",
            "Largest error among a sweep's audited cells, divided by the tolerance; above 1 the sweep is aborted.",
            buckets=ERROR_BUCKETS,
            registry=registry,
        )
        self._largest_error = Gauge(
            "actstore_sweep_largest_error",
            "Largest absolute logit error among all audited cells since the service started.",
            registry=registry,
        )
        self._noise_floor = Gauge(
            "actstore_sweep_noise_floor",
            "Largest absolute logit difference between two runs with nothing patched, since the service started.",
            registry=registry,
        )
        self._lock = threading.Lock()
        self._largest = {self._largest_error: 0.0, self._noise_floor: 0.0}

    def ended(self, audit: patching_pb2.SweepAudit, cells: int) -> None:
        answer = "kept" if audit.cached else "computed"
        self._ended.labels(answer, KERNELS.get(audit.kernel, OTHER_KERNEL)).inc()
        self._cells.labels(answer).inc(cells)
        if audit.cached:
            return
        self._token_layers.labels("computed").inc(audit.token_layers)
        self._token_layers.labels("full").inc(audit.token_layers_full)
        if audit.audited_cells:
            self._errors.observe(audit.largest_error / audit.tolerance if audit.tolerance else math.inf)
        self._raise_to(self._largest_error, audit.largest_error)
        self._raise_to(self._noise_floor, audit.noise_floor)

    def audit_failed(self) -> None:
        self._failed.inc()

    def _raise_to(self, gauge: Gauge, value: float) -> None:
        with self._lock:
            self._largest[gauge] = max(self._largest[gauge], value)
            gauge.set(self._largest[gauge])


class _CaptureTotals(Collector):
    """Asks the workers during each scrape, because the service holds no state."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def describe(self) -> list[Metric]:
        # Without this, registration would already call the workers.
        return []

    def collect(self) -> Iterator[Metric]:
        totals = self._gateway.capture_totals()
        yield GaugeMetricFamily(
            "actstore_workers_up", "1 if the workers answer, else 0.", value=int(totals is not None)
        )
        if totals is None:
            return
        yield GaugeMetricFamily("actstore_captures_running", "Captures in progress.", value=totals.captures_running)
        ended = CounterMetricFamily(
            "actstore_captures_ended",
            "Captures that have ended since the workers started, by final state.",
            labels=("state",),
        )
        for state in ("complete", "failed", "cancelled"):
            ended.add_metric((state,), getattr(totals, f"captures_{state}"))
        yield ended
        for noun in ("shards", "tokens", "bytes"):
            yield CounterMetricFamily(
                f"actstore_{noun}_committed",
                f"{noun.capitalize()} in shards that were committed since the workers started.",
                value=getattr(totals, f"{noun}_committed"),
            )
