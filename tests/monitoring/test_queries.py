"""Dashboards and alerts name what the code exports, all of it, and their files are those that the code writes."""

import json
import re
from pathlib import Path

import pytest

from actstore_api.metrics import METRICS
from deploy.monitoring.alerts import ALERTS
from deploy.monitoring.files import ROOT, files
from tests.monitoring.queries import grouped_by, metric_of, queries, selectors

QUERIES = dict(queries())


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_a_query_names_only_metrics_and_labels_of_the_catalogue(query: str) -> None:
    found = selectors(query)
    assert found
    known: set[str] = set()
    for selector in found:
        metric, labels = metric_of(selector.name)
        assert metric is not None, selector.name
        known |= labels
        assert {matcher.name for matcher in selector.matchers.matchers} <= labels, selector.name
        for matcher in selector.matchers.matchers:
            label = next(label for label in metric.labels if label.name == matcher.name)
            asked = re.compile(matcher.value)
            assert any(asked.fullmatch(value) for value in label.values), matcher
    assert grouped_by(query) <= known


def test_every_metric_is_on_a_panel_or_in_an_alert() -> None:
    named = [metric_of(one.name)[0] for query in QUERIES.values() for one in selectors(query)]
    assert set(METRICS) - {metric.name for metric in named if metric} == set()


@pytest.mark.parametrize("query", ["sum(actstore_nothing_total)", "actstore_unary_seconds"])
def test_a_metric_that_does_not_exist_is_found(query: str) -> None:
    (selector,) = selectors(query)
    assert metric_of(selector.name)[0] is None


def test_the_files_are_those_that_are_written() -> None:
    assert [path for path, text in files().items() if (ROOT / path).read_text() != text] == []


def test_each_alert_has_its_runbook() -> None:
    page = (ROOT / "docs" / "runbooks.md").read_text()
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == [alert.name for alert in ALERTS]
    assert all(alert.steps and alert.meaning.endswith(".") for alert in ALERTS)


def test_dashboards_have_fixed_ids_and_a_source_that_is_chosen() -> None:
    found = [json.loads(text) for path, text in files().items() if Path(path).suffix == ".json"]
    assert len({one["uid"] for one in found}) == len(found) == 6
    for one in found:
        assert one["templating"]["list"][0]["name"] == "datasource"
        assert all(panel["datasource"]["uid"] == "${datasource}" for panel in one["panels"])
        assert len({panel["title"] for panel in one["panels"]}) == len(one["panels"])
