"""The page of Prometheus metrics, read off one scrape of a service that has counted one call and one sweep."""

from collections.abc import Iterator
from typing import Any
from wsgiref.util import setup_testing_defaults

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from actstore_api.v1 import capture_pb2, patching_pb2
from actstore_service.calls.call import Call
from actstore_service.calls.classes import CallClass
from actstore_service.metrics import Metrics
from docs.hooks.tables import code, table

_HEAD = """# Metrics

The service answers `/metrics` at `ACTSTORE_METRICS_LISTEN` in Prometheus's text format. This page lists every metric.
A counter's name ends in `_total` when it is scraped; a histogram has `_bucket`, `_sum` and `_count`.

Metrics of captures come from the workers at each scrape, and are absent while the workers do not answer. The metrics
named `process_` are those of the Prometheus client for every process.

"""
# Labels that the text format itself adds.
_FORMAT_LABELS = {"le", "quantile"}


def page() -> str:
    """Writes a table of all metrics."""
    rows = [
        (code(metric.name), metric.type, ", ".join(map(code, labels(metric))), metric.documentation)
        for metric in metrics()
    ]
    return _HEAD + table(("metric", "type", "labels", "meaning"), rows)


def metrics() -> Iterator[Metric]:
    """Yields each metric that a service offers, the workers' among them; `_created` only dates a counter's start."""
    for metric in text_string_to_metric_families(_scraped(_used())):
        if not metric.name.endswith("_created"):
            yield metric


def labels(metric: Metric) -> list[str]:
    """Lists a metric's own labels."""
    return sorted({label for sample in metric.samples for label in sample.labels} - _FORMAT_LABELS)


def _used() -> Metrics:
    found = Metrics(_Gateway())  # type: ignore[arg-type]
    call = Call("Method", CallClass.CATALOG, None, {}, "", reason="BUSY")
    with found.counted(call):
        found.sweeps.ended(patching_pb2.SweepAudit(), 1)
    return found


def _scraped(metrics: Metrics) -> str:
    environment: dict[str, Any] = {}
    setup_testing_defaults(environment)
    return b"".join(metrics.wsgi()(environment, lambda *_: None)).decode()


class _Gateway:
    """Workers that answer, and have captured nothing."""

    def capture_totals(self) -> object:
        return capture_pb2.GetCaptureTotalsResponse()
