"""Exports what all workers did, from the coordinator's process over HTTP: one process tells it, so nothing is counted
twice.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from actstore_api import metrics as catalogue
from actstore_api.exporting import Exported, ExportedStore, page_server
from actstore_api.levels import own_version
from actstore_api.metrics import Exporter, Metric
from actstore_api.records.capture import GetCaptureTotalsAnswer
from actstore_storage.format.specification import FORMAT_VERSION
from actstore_worker.capture.activity import Activity
from actstore_worker.capture.queueing.usage import UsedBy

if TYPE_CHECKING:
    from actstore_worker.capture.worker_pool import WorkerPool
    from actstore_worker.cluster.placement.replicas import ReplicaCounts

_log = logging.getLogger(__name__)
# How long a scrape waits for the coordinator, whose event loop may be busy.
_ANSWER_SECONDS = 5.0
_RETRY_SECONDS = 1.0
# A device's name in the metrics, by its name in torch.
_DEVICES = {"cpu": "cpu", "cuda": "gpu"}
# By field of the totals: the counter, and its labels.
_COUNTERS: Mapping[str, tuple[Metric, tuple[str, ...]]] = {
    "captures_complete": (catalogue.CAPTURES_ENDED, ("complete",)),
    "captures_failed": (catalogue.CAPTURES_ENDED, ("failed",)),
    "captures_cancelled": (catalogue.CAPTURES_ENDED, ("cancelled",)),
    "shards_committed": (catalogue.SHARDS_COMMITTED, ()),
    "tokens_committed": (catalogue.TOKENS_COMMITTED, ()),
    "bytes_committed": (catalogue.BYTES_COMMITTED, ()),
}


class Counted(Protocol):
    """The coordinator, as far as its metrics need it. All of it is for its event loop."""

    activity: Activity
    used_by: UsedBy
    on_gpus: bool

    async def totals(self) -> GetCaptureTotalsAnswer: ...

    @property
    def paused(self) -> int:
        """Captures that are paused."""

    @property
    def pool(self) -> "WorkerPool":
        """The capture workers."""

    @property
    def replicas(self) -> "ReplicaCounts":
        """The model replicas."""

    @property
    def quota_refusals(self) -> Mapping[str, int]:
        """Refusals by the quota that was used up."""


class WorkerMetrics:
    """The metrics of the workers, as the coordinator counts them. `store` observes its bucket."""

    def __init__(self) -> None:
        self.exported = Exported(Exporter.WORKERS)
        self.exported.set(catalogue.BUILD_INFO, 1, own_version(), str(FORMAT_VERSION))
        self.store = ExportedStore(self.exported)

    def update(self, totals: GetCaptureTotalsAnswer) -> None:
        """Brings the metrics to the totals."""
        found = asdict(totals)
        self.exported.set(catalogue.CAPTURES_RUNNING, found["captures_running"])
        for name, (metric, labels) in _COUNTERS.items():
            self.exported.count_to(metric, found[name], *labels)
        for queue in totals.queues:
            self.exported.set(catalogue.QUEUE_DEPTH, queue.captures_queued, queue.capture_class)
            self.exported.set(catalogue.QUEUE_OLDEST, queue.oldest_seconds, queue.capture_class)
            self.exported.count_to(catalogue.CAPTURES_STARTED, queue.captures_started, queue.capture_class)
            self.exported.count_to(catalogue.QUEUE_WAITED, queue.waited_seconds, queue.capture_class)
        for one in totals.principals:
            self.exported.count_to(catalogue.PRINCIPAL_DEVICE_SECONDS, one.device_seconds, one.principal)

    def look_at(self, coordinator: Counted) -> None:
        """Brings the metrics to what the captures did."""
        self.exported.set(catalogue.CAPTURES_PAUSED, coordinator.paused)
        pool, replicas = coordinator.pool, coordinator.replicas
        for device, name in _DEVICES.items():
            self.exported.set(catalogue.CAPTURE_WORKERS, pool.devices.get(device, 0), name)
        self.exported.set(catalogue.CAPTURE_WORKERS_WANTED, pool.wanted)
        self.exported.set(catalogue.CAPTURE_WORKERS_IDLE, pool.idle_workers)
        for name, here in (("gpu", coordinator.on_gpus), ("cpu", not coordinator.on_gpus)):
            self.exported.set(catalogue.MODEL_REPLICAS, replicas.running if here else 0, name)
        self.exported.set(catalogue.MODEL_REPLICAS_WANTED, replicas.wanted)
        for principal, used in dict(coordinator.used_by.principals).items():
            self.exported.count_to(catalogue.PRINCIPAL_TOKENS, used.tokens, principal)
        for quota, refusals in dict(coordinator.quota_refusals).items():
            self.exported.count_to(catalogue.QUOTA_REFUSALS, refusals, quota)
        activity = coordinator.activity
        self.exported.count_to(catalogue.CAPTURE_TOKEN_LAYERS, activity.token_layers)
        self.exported.count_to(catalogue.MODEL_REPLICA_SECONDS, activity.live_seconds)
        for metric, counts in (
            (catalogue.SHARD_ATTEMPTS, activity.attempts),
            (catalogue.CAPTURE_SECONDS, activity.seconds),
            (catalogue.CAPTURED_TOKENS, activity.tokens),
            (catalogue.NON_FINITE, activity.non_finite),
        ):
            for label, total in dict(counts).items():
                self.exported.count_to(metric, total, label)


class MetricsServer:
    """Answers scrapes of `/metrics` from the moment that it can listen at the address.

    It waits for the address in the background: a coordinator that is replaced may still hold it, and captures do not
    wait for their metrics.
    """

    def __init__(self, address: str, coordinator: Counted, metrics: WorkerMetrics) -> None:
        """To be called on the event loop of the coordinator."""
        self._address, self._coordinator, self._metrics = address, coordinator, metrics
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._serve, name="metrics", daemon=True).start()

    def _serve(self) -> None:
        host, _, port = self._address.rpartition(":")
        host, warned = host.strip("[]"), False
        while True:
            try:
                server = page_server(host, int(port), self._answer)
            except OSError as error:
                if not warned:
                    _log.error("/metrics has to wait for ACTSTORE_WORKER_METRICS_LISTEN %s: %s", self._address, error)
                warned = True
                time.sleep(_RETRY_SECONDS)
            else:
                server.serve_forever()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/metrics":
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"only /metrics is here\n"]
        asyncio.run_coroutine_threadsafe(self._update(), self._loop).result(_ANSWER_SECONDS)
        return self._metrics.exported.wsgi()(environ, start_response)  # type: ignore[no-any-return]

    async def _update(self) -> None:
        self._metrics.update(await self._coordinator.totals())
        self._metrics.look_at(self._coordinator)
