"""What the coordinator's process exports: every metric of the workers, brought to its totals at each scrape."""

from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from actstore_api import exporting
from actstore_api.exporting import Report
from actstore_api.metrics import Exporter, exported_by
from actstore_api.records.capture import GetCaptureTotalsAnswer, PrincipalTotals, QueueTotals
from actstore_worker.capture.activity import Activity
from actstore_worker.capture.queueing.usage import UsedBy
from actstore_worker.capture.shards.report import ShardReport
from actstore_worker.cluster.metrics import WorkerMetrics
from actstore_worker.cluster.placement.reporting import GpuMemory, Reporting
from actstore_worker.models.used import Used

REPORT = ShardReport(
    won=True,
    tokens=100,
    bytes=1000,
    device_seconds=3.0,
    sinks=4,
    non_finite={"rows": 2, "features": 1},
    seconds={"wait": 1.0, "load": 1.0, "compute": 2.0, "commit": 0.5},
)
TOTALS = GetCaptureTotalsAnswer(
    captures_running=1,
    captures_complete=2,
    captures_failed=3,
    captures_cancelled=4,
    shards_committed=5,
    tokens_committed=6,
    bytes_committed=7,
    queues=(QueueTotals("interactive", 1, 2.0, 3, 4.0), QueueTotals("bulk", 5, 6.0, 7, 8.0)),
    principals=(PrincipalTotals("ada", 9.0),),
)
GPU = GpuMemory({"allocated": 10, "reserved": 20}, {"retried": 2, "failed": 1})
QUEUES = {"actstore_queue_depth", "actstore_queue_oldest_seconds"}


def _values(metrics: WorkerMetrics) -> dict[tuple[str, str], float]:
    families = text_string_to_metric_families(metrics.exported.text().decode())
    return {(one.name, "/".join(one.labels.values())): one.value for family in families for one in family.samples}


def test_every_metric_of_the_workers_is_told_and_none_twice() -> None:
    metrics, activity = WorkerMetrics(), Activity()
    activity.captured(REPORT, 400.0)
    activity.failed(lost=True)
    activity.live_seconds = 8.0
    pool = SimpleNamespace(devices={"cuda": 2}, wanted=3, idle_workers=1)
    coordinator = SimpleNamespace(
        activity=activity,
        paused=1,
        pool=pool,
        replicas=SimpleNamespace(wanted=2, running=1),
        on_gpus=True,
        used_by=UsedBy(10),
        quota_refusals={"tokens_a_minute": 3},
    )
    coordinator.used_by.add("ann", Used(50, 2.0))
    metrics.store.ended("get", "ok", 0.1)
    metrics.store.moved("read", 10)
    replica = Reporting("questions", metrics.exported.add_report, lambda: GPU)
    replica.loaded(3.0)
    for _ in range(2):
        replica.report()
    for _ in range(2):
        metrics.update(TOTALS)
        metrics.look_at(coordinator)  # type: ignore[arg-type]
    found = _values(metrics)
    told = {name for (name, _), value in found.items() if value}
    for metric in exported_by(Exporter.WORKERS):
        assert {metric.name, f"{metric.name}_count"} & told, metric.name
    assert found["actstore_captures_ended_total", "failed"] == 3
    assert found["actstore_queue_oldest_seconds", "bulk"] == 6
    assert found["actstore_queue_waited_seconds_total", "interactive"] == 4
    assert found["actstore_principal_device_seconds_total", "ada"] == 9
    assert found["actstore_capture_stage_seconds_total", "compute"] == 2
    assert found["actstore_captured_tokens_total", "sink"] == 4
    assert found["actstore_captured_tokens_total", "other"] == 96
    assert found["actstore_nonfinite_values_total", "features"] == 1
    assert found["actstore_shard_attempts_total", "committed"] == 1
    assert found["actstore_shard_attempts_total", "lost"] == 1
    assert (found["actstore_capture_workers", "gpu"], found["actstore_capture_workers", "cpu"]) == (2, 0)
    assert (found["actstore_capture_workers_wanted", ""], found["actstore_capture_workers_idle", ""]) == (3, 1)
    replicas = [found["actstore_model_replicas", device] for device in ("gpu", "cpu")]
    assert (found["actstore_model_replicas_wanted", ""], *replicas) == (2, 1, 0)
    assert found["actstore_model_replica_seconds_total", ""] == 8
    shortages = [found["actstore_gpu_memory_shortages_total", f"{outcome}/questions"] for outcome in GPU.shortages]
    assert shortages == [2, 1]
    assert found["actstore_principal_tokens_total", "ann"] == 50
    assert found["actstore_quota_refusals_total", "tokens_a_minute"] == 3


def test_a_shard_that_another_one_committed_is_no_work_of_this_one() -> None:
    activity = Activity()
    activity.captured(ShardReport(won=False, tokens=100, bytes=1000, sinks=4), 400.0)
    assert (activity.attempts["second"], activity.token_layers, activity.tokens["sink"]) == (1, 0, 0)


class Coordinator:
    """Takes reports, except while it is away."""

    def __init__(self) -> None:
        self.metrics, self.away = WorkerMetrics(), False

    def take(self, process: str, report: Report) -> None:
        if self.away:
            raise ValueError("no such actor")
        self.metrics.exported.add_report(process, report)


def test_what_processes_count_is_added_up_with_what_the_coordinator_did_itself() -> None:
    coordinator = Coordinator()
    coordinator.metrics.store.ended("get", "ok", 0.1)
    reportings = [
        Reporting(use, coordinator.take, lambda: GpuMemory({"allocated": 5})) for use in ("captures", "captures")
    ]
    for count, reporting in enumerate(reportings, start=1):
        for _ in range(count):
            reporting.store.ended("get", "ok", 2.0)
            reporting.store.moved("written", 7)
        for _ in range(2):  # what was reported once is not reported again
            reporting.report()
    found = _values(coordinator.metrics)
    assert found["actstore_store_operations_total", "get/ok"] == 4
    assert found["actstore_store_operation_seconds_count", "get"] == 4
    assert found["actstore_store_operation_seconds_sum", "get"] == pytest.approx(6.1)
    assert found["actstore_store_operation_seconds_bucket", "0.1/get"] == 1
    assert found["actstore_store_operation_seconds_bucket", "2.5/get"] == 4
    assert found["actstore_store_bytes_total", "written"] == 21
    assert found["actstore_gpu_memory_bytes", "allocated/captures"] == 10


def test_a_report_that_does_not_arrive_is_part_of_the_next_one() -> None:
    coordinator = Coordinator()
    reporting = Reporting("questions", coordinator.take)
    reporting.loaded(1.0)
    coordinator.away = True
    with pytest.raises(ValueError, match="no such actor"):
        reporting.report()
    coordinator.away = False
    reporting.loaded(1.0)
    reporting.report()
    assert _values(coordinator.metrics)["actstore_model_load_seconds_count", "questions"] == 2


def test_gauges_of_a_process_that_has_gone_end(monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator = Coordinator()
    Reporting("questions", coordinator.take, lambda: GpuMemory({"reserved": 5})).report()
    assert _values(coordinator.metrics)["actstore_gpu_memory_bytes", "reserved/questions"] == 5
    monkeypatch.setattr(exporting, "REPORTS_LAST_SECONDS", 0.0)
    assert _values(coordinator.metrics)["actstore_gpu_memory_bytes", "reserved/questions"] == 0
