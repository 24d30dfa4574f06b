"""The page of Prometheus metrics, from the catalogue that service and workers export."""

from actstore_api.metrics import Exporter, Label, Metric, exported_by
from docs.hooks.tables import code, table

_HEAD = """# Metrics

This page lists every metric that actstore exports in Prometheus's text format. A counter's name ends in `_total`; a
histogram has `_bucket`, `_sum` and `_count`. No label has a value that a caller can choose: each has a list of values,
or at most as many as the table says. Whatever else occurs counts as `other`. Counters begin at 0 with the process, for
all values that are listed.

Metrics named `process_` are those of the Prometheus client for every process: memory, processor time, open files.

"""
_SECTIONS = {
    Exporter.SERVICE: "## Service\n\nEach service process answers `/metrics` at `ACTSTORE_METRICS_LISTEN`, for what it "
    "did itself. Sums over processes are true totals.\n\n",
    Exporter.WORKERS: "## Workers\n\nOne process, on the head of the Ray cluster, exports the metrics of all workers "
    "together. What replicas and capture workers count arrives there every 15 seconds.\n\n",
    Exporter.CANARY: "## Canary\n\n`actstore canary --metrics FILE` writes a file for the textfile collector of "
    "Prometheus's node exporter.\n\n",
    Exporter.CHECK: "## Check of the bucket\n\n`actstore check --metrics FILE` writes such a file, too.\n\n",
}
# Longer lists stand in another page of the reference.
_ELSEWHERE = {
    "method": "each [method](contract/service.md)",
    "reason": "each [reason](errors.md)",
    "code": "each gRPC status code",
}


def page() -> str:
    """Writes a section for each kind of process, with a table of its metrics."""
    return _HEAD + "\n".join(_section(exporter) for exporter in Exporter if exported_by(exporter))


def _section(exporter: Exporter) -> str:
    rows = [_row(metric) for metric in exported_by(exporter)]
    return _SECTIONS[exporter] + table(("metric", "type", "unit", "labels", "meaning"), rows)


def _row(metric: Metric) -> tuple[str, ...]:
    labels = "; ".join(map(_label, metric.labels))
    return code(metric.name), metric.type.value, metric.unit, labels, metric.help


def _label(label: Label) -> str:
    values = _ELSEWHERE.get(label.name, ", ".join(map(code, label.values))) or f"at most {label.bound}"
    return f"{code(label.name)}: {values}"
