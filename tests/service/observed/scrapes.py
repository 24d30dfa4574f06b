"""What Prometheus would read off a service."""

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from actstore_service.server import Service
from tests.waiting import PATIENCE_SECONDS

Samples = dict[tuple[str, tuple[str, ...]], float]


def scrape(service: Service) -> Samples:
    """Values by sample name and label values in order of label name, without histogram bounds."""
    with urllib.request.urlopen(f"http://{service.metrics_address}/metrics", timeout=PATIENCE_SECONDS) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        samples = [sample for family in families for sample in family.samples]
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for sample in samples
        if "le" not in sample.labels
    }
