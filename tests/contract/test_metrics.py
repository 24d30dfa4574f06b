"""The catalogue of metrics, and what is exported of it."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from actstore_api import metrics as catalogue
from actstore_api.exporting import Exported
from actstore_api.metrics import METRICS, Exporter, Metric, MetricType, exported_by

# More series than this in one process would be a label that grew by mistake.
SERIES_MAX = 1000


Key = tuple[str, frozenset[tuple[str, str]]]


def _samples(exported: Exported) -> dict[Key, float]:
    families = text_string_to_metric_families(exported.text().decode())
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def _key(metric: Metric, *values: str) -> Key:
    return metric.name, frozenset(zip((label.name for label in metric.labels), values, strict=True))


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_names_units_and_labels_follow_the_rules(metric: Metric) -> None:
    assert re.fullmatch(r"actstore_[a-z]+(_[a-z]+)*", metric.name)
    assert metric.name.endswith("_total") == (metric.type is MetricType.COUNTER)
    assert metric.unit != "seconds" or "_seconds" in metric.name
    assert metric.unit != "bytes" or "_bytes" in metric.name
    assert bool(metric.buckets) == (metric.type is MetricType.HISTOGRAM)
    assert list(metric.buckets) == sorted(metric.buckets)
    assert metric.help.endswith(".")
    assert metric.exporters
    for label in metric.labels:
        assert bool(label.values) != bool(label.bound)
        assert len(set(label.values)) == len(label.values)
    assert metric.series_max <= SERIES_MAX


@pytest.mark.parametrize("exporter", Exporter)
def test_counters_begin_at_zero_with_all_values_that_are_known(exporter: Exporter) -> None:
    found = _samples(Exported(exporter, of_process=False))
    counters = [metric for metric in exported_by(exporter) if metric.type is MetricType.COUNTER]
    known = {_key(metric, *values) for metric in counters for values in metric.first_series()}
    assert {key for key in found if key[0].endswith("_total")} == known
    assert not any(found.values())


def test_what_a_label_does_not_have_counts_as_other() -> None:
    exported = Exported(Exporter.SERVICE, of_process=False)
    for code in ("OK", "OK", "418"):
        exported.add(catalogue.CALLS, catalogue.UNKNOWN_METHOD, code)
    found = _samples(exported)
    assert found[_key(catalogue.CALLS, "unknown", "OK")] == 2
    assert found[_key(catalogue.CALLS, "unknown", "other")] == 1


def test_a_label_without_a_list_has_a_bound() -> None:
    exported = Exported(Exporter.SERVICE, of_process=False)
    for version in ("1", "2", "1", "3"):
        exported.set(catalogue.BUILD_INFO, 1, version, "4")
    assert {key for key in _samples(exported) if key[0] == catalogue.BUILD_INFO.name} == {
        _key(catalogue.BUILD_INFO, "1", "4"),
        _key(catalogue.BUILD_INFO, "other", "4"),
    }


def test_a_metric_of_another_process_or_of_none_cannot_be_counted() -> None:
    exported = Exported(Exporter.SERVICE, of_process=False)
    with pytest.raises(KeyError):
        exported.set(catalogue.CAPTURES_RUNNING, 1)
    with pytest.raises(KeyError):
        exported.add(Metric("actstore_new_total", MetricType.COUNTER, "calls", "New."))
