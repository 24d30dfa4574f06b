"""Every query of dashboards and alerts, and which metrics and labels it names."""

import re
from collections.abc import Iterator
from typing import Any

import promql_parser

from actstore_api.metrics import METRICS, Metric, MetricType
from deploy.monitoring.alerts import ALERTS
from deploy.monitoring.dashboards import DASHBOARDS, RATE

# promql-parser knows no variables of Grafana.
_INTERVAL = "5m"
# What Prometheus and its operator add to each series.
TARGET_LABELS = {"job", "instance", "pod"}
_PARTS = ("_bucket", "_sum", "_count")


def queries() -> Iterator[tuple[str, str]]:
    """Where a query stands, and its text without variables."""
    for alert in ALERTS:
        yield alert.name, alert.query
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            for number, (query, _) in enumerate(panel.queries, start=1):
                yield f"{dashboard.title}: {panel.title}, {number}", query.replace(RATE, _INTERVAL)


def metric_of(name: str) -> tuple[Metric | None, set[str]]:
    """The metric of the catalogue that a series belongs to, and its labels."""
    part = next((part for part in _PARTS if name.endswith(part)), "")
    metric = METRICS.get(name) or METRICS.get(name.removesuffix(part))
    if metric is None or (metric.type is MetricType.HISTOGRAM) != bool(part):
        return None, set()
    return metric, {label.name for label in metric.labels} | ({"le"} if part == "_bucket" else set()) | TARGET_LABELS


def selectors(query: str) -> list[Any]:
    """The selectors of a query, parsed."""
    found: list[Any] = []

    def look(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        if isinstance(node, promql_parser.MatrixSelector):
            found.append(node.vector_selector)

    promql_parser.walk(promql_parser.parse(query), look)
    return list({str(one): one for one in found}.values())


def grouped_by(query: str) -> set[str]:
    """The labels by which a query aggregates or joins."""
    return {
        name.strip()
        for names in re.findall(r"\b(?:by|on) \(([^)]*)\)", query)
        for name in names.split(",")
        if name.strip()
    }
