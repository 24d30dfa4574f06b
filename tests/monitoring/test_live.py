"""A real Prometheus scrapes two services, the workers' exporter and a canary: panels have data, and sums are true."""

import asyncio
import json
import subprocess
import threading
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import yaml

import actstore
from actstore._canary.check import CHECKS, Verdict, metrics_text
from actstore._cli import upkeep
from actstore._stack.seaweed import free_ports
from actstore_api.records.patching import SweepAudit, SweepResult
from actstore_api.records.sae import CheckSaeAnswer
from actstore_service.loop import run
from actstore_service.server import Service
from actstore_service.settings import Settings
from actstore_storage.bucket.opening import open_bucket
from actstore_worker.capture.activity import Activity
from actstore_worker.capture.queueing.usage import UsedBy
from actstore_worker.cluster.metrics import MetricsServer, WorkerMetrics
from actstore_worker.cluster.placement.reporting import Reporting
from actstore_worker.models.used import Used
from deploy.monitoring.alerts import ALERTS
from tests.client.workers.stand_in import TOKEN, StandInWorkers
from tests.monitoring.queries import queries, selectors
from tests.monitoring.tools import tool
from tests.stored_run import DENSE_SITE, MODEL, SAE, write_stored_run
from tests.waiting import wait_until
from tests.worker.cluster.test_metrics import GPU, REPORT, TOTALS

# Only a service with TLS has it.
WITHOUT_TLS = "actstore_certificate_expiry_timestamp_seconds"
# How many services are scraped, and how often each is asked for its runs.
SERVICES, ASKED = 2, 3
# How often a process of the workers reports, each time with a model that it has loaded.
LOOKS = 60
AUDIT = SweepAudit(
    audited_cells=4,
    largest_error=1e-6,
    noise_floor=1e-6,
    tolerance=1e-4,
    kernel="resumed",
    token_layers=10,
    token_layers_full=40,
)


class Prometheus:
    """A process of its own, and its answers."""

    def __init__(self, folder: Path, targets: dict[str, list[str]]) -> None:
        jobs = [{"job_name": job, "static_configs": [{"targets": found}]} for job, found in targets.items()]
        config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": jobs}
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        (port,) = free_ports(1)
        self.address = f"127.0.0.1:{port}"
        arguments = (f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data")
        with (folder / "prometheus.log").open("wb") as log:
            command = [tool("prometheus"), *arguments, f"--web.listen-address={self.address}"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The result of a query now; nothing while Prometheus starts."""
        url = f"http://{self.address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        with suppress(OSError), urllib.request.urlopen(url, timeout=30) as answer:
            found: list[dict[str, Any]] = json.loads(answer.read())["data"]["result"]
            return found
        return []

    def numbers(self, query: str) -> list[float]:
        """The values that are numbers."""
        return [float(one["value"][1]) for one in self.ask(query) if one["value"][1] != "NaN"]

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(60)


class AuditedWorkers(StandInWorkers):
    """Sweeps say what they computed, and checks of SAEs what those explain."""

    def CheckSae(self, asked: Any, context: Any) -> CheckSaeAnswer:
        explained = {"quantity": ["fvu"], "value": [0.2], "claimed": [0.2]}
        return replace(super().CheckSae(asked, context), quantities=pa.table(explained))

    def RunSweep(self, asked: Any, context: Any) -> Iterator[Any]:
        for answer in super().RunSweep(asked, context):
            if isinstance(answer.update, SweepResult):
                answer = replace(answer, update=replace(answer.update, audit=AUDIT))
            yield answer


class Traffic:
    """Two services before the same workers and store, and calls to both."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        bucket = open_bucket(str(folder))
        write_stored_run(bucket)
        self._workers = AuditedWorkers()
        stack.callback(self._workers.close)
        token = folder / "token"
        token.write_text(TOKEN)
        self.services = [self._service(bucket, token, stack) for _ in range(SERVICES)]
        self._labs = [stack.enter_context(actstore.connect(one.address)) for one in self.services]

    def _service(self, bucket: Any, token: Path, stack: ExitStack) -> Service:
        free = {"listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0"}
        settings = Settings(
            **free, gateway=self._workers.address, gateway_token_file=token, anonymous=("reader", "writer", "admin")
        )
        started = Service(bucket, settings)
        stack.callback(started.stop)
        return started

    def ask(self) -> None:
        """Of each kind of call at least one, on each service."""
        for lab in self._labs:
            for _ in range(ASKED):
                lab.runs()
            list(lab.run("planted").activations(DENSE_SITE))
            lab.capture(MODEL, dataset="text", saes=[SAE]).wait(progress=False)
            lab.patch(MODEL, clean="a b", corrupt="a c", answers=(" b", " c"), progress=False)
            with suppress(actstore.NotFound):
                lab.run("absent")


@contextmanager
def _served(text: str) -> Iterator[str]:
    """A file as the node exporter would serve it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class Workers:
    """A coordinator that captures two shards at each look."""

    def __init__(self) -> None:
        self.activity, self.paused, self.used_by, self.quota_refusals = (
            Activity(),
            0,
            UsedBy(10),
            {"tokens_a_minute": 3},
        )
        self.pool = SimpleNamespace(devices={"cuda": 2}, wanted=3, idle_workers=1)
        self.replicas, self.on_gpus = SimpleNamespace(wanted=2, running=2), True

    async def totals(self) -> Any:
        self.used_by.add("ann", Used(50, 2.0))
        self.activity.captured(REPORT, 400.0)
        self.activity.failed(lost=False)
        self.activity.live_seconds += 1.0
        done = self.activity.attempts["committed"]
        queues = tuple(replace(one, captures_started=done, waited_seconds=2.0 * done) for one in TOTALS.queues)
        return replace(TOTALS, shards_committed=done, tokens_committed=done, bytes_committed=done, queues=queues)


async def _export(address: str) -> None:
    metrics = WorkerMetrics()
    metrics.store.ended("get", "ok", 0.01)
    reporting = Reporting("captures", metrics.exported.add_report, lambda: GPU)
    for look in range(LOOKS):  # a rate is of what grows
        asyncio.get_running_loop().call_later(look, lambda: (reporting.loaded(2.0), reporting.report()))
    MetricsServer(address, Workers(), metrics)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, Traffic]]:
    folder = tmp_path_factory.mktemp("live")
    (folder / "store").mkdir()
    tool("prometheus")
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore", actstore.SaeWarning)
        traffic = Traffic(folder / "store", stack)
        workers = f"127.0.0.1:{free_ports(1)[0]}"
        run(_export(workers))
        verdict = Verdict(dict.fromkeys(CHECKS), {}, 2.0, 1.0)
        left = metrics_text(verdict) + upkeep.metrics_text(["orphan"], 1.0)
        canary = stack.enter_context(_served(left))
        services = [service.metrics_address for service in traffic.services]
        prometheus = Prometheus(folder, {"service": services, "workers": [workers], "canary": [canary]})
        stack.callback(prometheus.end)
        wait_until(lambda: sum(prometheus.numbers("up")) == SERVICES + 2, "all targets to be scraped")
        traffic.ask()
        # A histogram with labels is there from its first value on, and `rate` sees only what comes after that.
        swept = "sum(actstore_sweep_seconds_count)"
        wait_until(lambda: prometheus.numbers(swept) == [SERVICES], "the first calls to be scraped")
        traffic.ask()
        yield prometheus, traffic


def test_every_panel_has_data(scraped: tuple[Prometheus, Traffic]) -> None:
    prometheus, _ = scraped
    panels = {where: query for where, query in queries() if ":" in where and WITHOUT_TLS not in query}
    left = dict(panels)

    def all_answered() -> bool:
        for where, query in list(left.items()):
            if prometheus.numbers(query):
                del left[where]
        return not left

    try:
        wait_until(all_answered, "data for every panel")
    except AssertionError:
        pytest.fail(f"no data: {left}")


def test_every_metric_of_an_alert_is_there(scraped: tuple[Prometheus, Traffic]) -> None:
    prometheus, _ = scraped
    names = {one.name for where, query in queries() if ":" not in where for one in selectors(query)} - {WITHOUT_TLS}
    assert [name for name in sorted(names) if not prometheus.ask(name)] == []


def test_sums_over_services_are_the_truth(scraped: tuple[Prometheus, Traffic]) -> None:
    prometheus, _ = scraped
    asked = 'sum(actstore_calls_total{method="/actstore_api.v1.CatalogService/ListRuns"})'
    wait_until(lambda: prometheus.numbers(asked) == [2 * SERVICES * ASKED], "the number of calls that were made")
    failed = prometheus.numbers('sum(actstore_captures_ended_total{state="failed"})')
    assert failed == [TOTALS.captures_failed]
    assert not prometheus.numbers('sum(actstore_calls_total{code="CANCELLED"}) > 0')


def test_nothing_fires_on_a_sound_stack(scraped: tuple[Prometheus, Traffic]) -> None:
    prometheus, _ = scraped
    page = [alert for alert in ALERTS if alert.severity == "page" and WITHOUT_TLS not in alert.query]
    assert [alert.name for alert in page if prometheus.ask(alert.query)] == []
