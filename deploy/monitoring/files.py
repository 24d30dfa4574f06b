"""The files that are written: rules for Prometheus and for its operator, Grafana's dashboards, and the runbooks' page."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deploy.monitoring.alerts import ALERTS, RUNBOOKS, Alert
from deploy.monitoring.dashboards import DASHBOARDS, Dashboard, Panel

ROOT = Path(__file__).parents[2]
_KUBERNETES = "deploy/kubernetes/components/monitoring"
_COLUMNS, _HEIGHT = 2, 8
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WRITTEN = "# Written by `python -m deploy.monitoring`; edit deploy/monitoring instead.\n"
_RUNBOOKS = """# Runbooks

What to do for each alert. A **page** means that somebody has to look now, a **ticket** within days. Dashboards are named
as in Grafana; logs are JSON lines, in which a request is found by its `request_id`.

"""


def files() -> Mapping[str, str]:
    """Each file's text, by its path in the project."""
    found = {
        "deploy/monitoring/rules.yaml": _WRITTEN + _yaml(rules()),
        f"{_KUBERNETES}/rules.yaml": _WRITTEN + _yaml(_resource()),
        "docs/runbooks.md": _RUNBOOKS + "\n".join(map(_runbook, ALERTS)),
    }
    for dashboard in DASHBOARDS:
        text = json.dumps(grafana(dashboard), indent=1) + "\n"
        found[f"{_KUBERNETES}/dashboards/{dashboard.uid}.json"] = text
    return found


def rules() -> dict[str, Any]:
    """The rules as Prometheus reads them."""
    return {"groups": [{"name": "actstore", "rules": [_rule(alert) for alert in ALERTS]}]}


def grafana(dashboard: Dashboard) -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["actstore"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {
            "list": [{"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}]
        },
        "panels": [_panel(number, panel) for number, panel in enumerate(dashboard.panels)],
    }


def _rule(alert: Alert) -> dict[str, Any]:
    labels = {"severity": alert.severity} | ({"needs": "workers"} if alert.needs_workers else {})
    notes = {"summary": alert.summary, "runbook_url": f"{RUNBOOKS}#{alert.name.lower()}"}
    return {
        "alert": f"Actstore{alert.name}",
        "expr": alert.query,
        "for": alert.lasts,
        "labels": labels,
        "annotations": notes,
    }


def _resource() -> dict[str, Any]:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "actstore"},
        "spec": rules(),
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    width = 24 // _COLUMNS
    place = {"x": width * (number % _COLUMNS), "y": _HEIGHT * (number // _COLUMNS), "w": width, "h": _HEIGHT}
    return {
        "id": number + 1,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _SOURCE,
                "expr": query,
                "legendFormat": legend,
                **({"format": "heatmap"} if panel.kind == "heatmap" else {}),
            }
            for index, (query, legend) in enumerate(panel.queries)
        ],
    }


def _runbook(alert: Alert) -> str:
    steps = "".join(f"{number}. {step}\n" for number, step in enumerate(alert.steps, 1))
    lasts = "" if alert.lasts == "0m" else f", for {alert.lasts}"
    return (
        f"## {alert.name}\n\n**{alert.severity}.** {alert.meaning}\n\n{steps}\n"
        f"```promql\n{alert.query}\n```\n\nFires as soon as this has a result{lasts}.\n"
    )


def _yaml(value: Any, depth: int = 0) -> str:
    """Only mappings, lists and texts, which are written as JSON's texts: those are YAML's, too."""
    return "".join(_lines(value, depth))


def _lines(value: Any, depth: int) -> Iterator[str]:
    space = "  " * depth
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield f"{space}{key}:\n{_yaml(item, depth + 1)}"
        elif isinstance(item, list):
            yield f"{space}{key}:\n"
            for each in item:
                yield f"{space}  - {_yaml(each, depth + 2).lstrip()}"
        else:
            yield f"{space}{key}: {json.dumps(item)}\n"
