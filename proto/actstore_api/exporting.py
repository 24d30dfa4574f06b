"""Exports the metrics of the catalogue to Prometheus. Only this file uses Prometheus's client.

A process has one `Exported`. It knows the metrics of that kind of process, and has every series that is known
beforehand from its start, at 0.
"""

import socket
import threading
import time
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import Any, TypeAlias
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    make_wsgi_app,
)

from actstore_api import metrics as catalogue
from actstore_api.metrics import OTHER, Exporter, Label, Metric, MetricType, exported_by

# Outcomes of an operation on a store.
_STORE_ANSWERED, _STORE_DOWN = frozenset({"ok", "absent", "taken"}), frozenset({"unreachable", "refused", "missing"})

Made: TypeAlias = Counter | Gauge | Histogram
# A value of a series: the metric's name, its labels' values, the sample's name, and a histogram's bound.
Key: TypeAlias = tuple[str, tuple[str, ...], str, str]
# How long the gauges of a process count that does not report any more.
REPORTS_LAST_SECONDS = 60.0


@dataclass(frozen=True)
class Report:
    """What a process counted since its last report, and what its gauges show now."""

    counted: Mapping[Key, float]
    gauges: Mapping[Key, float]


class Exported:
    """The metrics of one process, in a registry of their own. Any number of threads may use it.

    A value that a label does not have, or that is beyond its bound, counts as `other`: no caller makes new series.
    """

    def __init__(self, exporter: Exporter, *, of_process: bool = True) -> None:
        """With `of_process`, memory, processor time and open files are exported too, as `process_`."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they would be a second series for each counter
        self._registry = _Summed()
        self._made = {metric.name: _made(metric, self._registry) for metric in exported_by(exporter)}
        self._seen: dict[tuple[str, str], set[str]] = {}
        self._totals: dict[tuple[str, tuple[str, ...]], float] = {}
        self._series: dict[tuple[str, tuple[str, ...]], Any] = {}
        self._lock = threading.Lock()
        if of_process:
            ProcessCollector(registry=self._registry)

    def add(self, metric: Metric, *labels: str, by: float = 1) -> None:
        """Adds to a counter, or to a gauge."""
        self._of(metric, labels).inc(by)

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Sets a gauge."""
        self._of(metric, labels).set(value)

    def count_to(self, metric: Metric, total: float, *labels: str) -> None:
        """Brings a counter to a total that is counted elsewhere, in this process."""
        with self._lock:
            before = self._totals.get((metric.name, labels), 0)
            self._totals[metric.name, labels] = total
        self._of(metric, labels).inc(total - before)

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """Observes a value in a histogram."""
        self._of(metric, labels).observe(value)

    def values(self, metrics: Iterable[Metric], *, gauges: bool) -> dict[Key, float]:
        """What gauges show, or what the other metrics have counted, for a report."""
        chosen = (metric for metric in metrics if (metric.type is MetricType.GAUGE) == gauges)
        return {
            _key(metric, sample): sample.value
            for metric in chosen
            for family in self._made[metric.name].collect()
            for sample in family.samples
        }

    def add_report(self, process: str, report: Report) -> None:
        """Adds what another process reports to what this one exports."""
        for name, labels, _, _ in (*report.counted, *report.gauges):
            self._of(catalogue.METRICS[name], labels)  # so that there is a series
        self._registry.add(process, report)

    def text(self) -> bytes:
        """Everything, in Prometheus's text format."""
        return generate_latest(self._registry)

    def wsgi(self) -> Callable[..., Any]:
        """A WSGI application that answers a scrape."""
        return make_wsgi_app(self._registry)

    def _of(self, metric: Metric, labels: tuple[str, ...]) -> Any:
        made = self._made[metric.name]
        if not metric.labels:
            return made
        found = self._series.get((metric.name, labels))
        if found is None:
            pairs = zip(metric.labels, labels, strict=True)
            bounded = tuple(self._bounded(metric, label, value) for label, value in pairs)
            found = made.labels(*bounded)
            if bounded == labels:  # as many as there are series, whatever callers send
                self._series[metric.name, labels] = found
        return found

    def _bounded(self, metric: Metric, label: Label, value: str) -> str:
        if label.values:
            return value if value in label.values else OTHER
        with self._lock:
            seen = self._seen.setdefault((metric.name, label.name), set())
            if value in seen or len(seen) < label.bound:
                seen.add(value)
                return value
        return OTHER


class _Summed(CollectorRegistry):
    """Adds what other processes reported to the values of this one."""

    def __init__(self) -> None:
        super().__init__()
        self._counted: Counts[Key] = Counts()
        self._gauges: dict[str, tuple[float, Mapping[Key, float]]] = {}
        self._reports = threading.Lock()

    def add(self, process: str, report: Report) -> None:
        now = time.monotonic()
        with self._reports:
            self._counted.update(report.counted)
            self._gauges[process] = now, report.gauges
            self._gauges = {name: said for name, said in self._gauges.items() if now - said[0] < REPORTS_LAST_SECONDS}

    def collect(self) -> Iterator[Any]:
        more = self._reported()
        for family in super().collect():
            metric = catalogue.METRICS.get(family.name) or catalogue.METRICS.get(f"{family.name}_total")
            if metric in catalogue.REPORTED:
                family.samples = [one._replace(value=one.value + more[_key(metric, one)]) for one in family.samples]
            yield family

    def _reported(self) -> "Counts[Key]":
        now = time.monotonic()
        with self._reports:
            found = self._counted.copy()
            for seconds, gauges in self._gauges.values():
                if now - seconds < REPORTS_LAST_SECONDS:
                    found.update(gauges)
        return found


def _key(metric: Metric, sample: Any) -> Key:
    labels = tuple(sample.labels[label.name] for label in metric.labels)
    return metric.name, labels, sample.name, sample.labels.get("le", "")


class ExportedStore:
    """Exports what it is told of a store, as actstore_storage's `StoreObserver`."""

    def __init__(self, exported: Exported) -> None:
        self._exported = exported

    def ended(self, operation: str, outcome: str, seconds: float) -> None:
        """Counts an operation. The store is up if it answered, and down if it could not be reached or refused."""
        self._exported.add(catalogue.STORE_OPERATIONS, operation, outcome)
        self._exported.observe(catalogue.STORE_OPERATION_SECONDS, seconds, operation)
        if outcome in _STORE_ANSWERED:
            self._exported.set(catalogue.STORE_UP, 1)
        elif outcome in _STORE_DOWN:
            self._exported.set(catalogue.STORE_UP, 0)

    def moved(self, direction: str, n_bytes: int) -> None:
        """Counts bytes."""
        self._exported.add(catalogue.STORE_BYTES, direction, by=n_bytes)


def _made(metric: Metric, registry: CollectorRegistry) -> Made:
    names = tuple(label.name for label in metric.labels)
    if metric.type is MetricType.HISTOGRAM:
        return Histogram(metric.name, metric.help, names, buckets=metric.buckets, registry=registry)
    if metric.type is MetricType.GAUGE:
        return Gauge(metric.name, metric.help, names, registry=registry)
    counter = Counter(metric.name, metric.help, names, registry=registry)
    if names:
        for values in metric.first_series():
            counter.labels(*values)
    return counter


def page_server(host: str, port: int, answer: Callable[..., Any]) -> WSGIServer:
    """A server of pages over HTTP, which answers each connection in a thread of its own. `answer` is a WSGI
    application. Errors: OSError if it cannot listen.
    """
    return make_server(host, port, answer, _Server6 if ":" in host else _Server, _QuietHandler)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _QuietHandler(WSGIRequestHandler):
    timeout = 10.0  # seconds that a connection may be silent

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Scrapes and probes every few seconds are not logged."""
