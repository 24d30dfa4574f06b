"""Reports what one process of the workers counts to the coordinator, which exports it with that of all others."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from uuid import uuid4

import ray

from actstore_api import metrics as catalogue
from actstore_api.exporting import Exported, ExportedStore, Key, Report
from actstore_api.metrics import Exporter
from actstore_worker.cluster.joining.session import COORDINATOR, NAMESPACE

_log = logging.getLogger(__name__)
# A scrape interval, as usual.
REPORT_SECONDS = 15.0
# How long a report waits for the coordinator, whose event loop may be busy.
_ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class GpuMemory:
    """Bytes of a process's GPU by their state, and how often memory was short, by what came of it."""

    n_bytes: Mapping[str, int] = field(default_factory=dict)
    shortages: Mapping[str, int] = field(default_factory=dict)


NO_GPU = GpuMemory()


class Reporting:
    """The metrics of one process of the workers, which reports them to the coordinator at intervals.

    `store` observes its bucket. A report that does not arrive is part of the next one.
    """

    def __init__(
        self, use: str, deliver: Callable[[str, Report], None], gpu_memory: Callable[[], GpuMemory] = GpuMemory
    ) -> None:
        """`use` is what its models are for, as the catalogue has it."""
        self._gpu_memory = gpu_memory
        self._exported = Exported(Exporter.WORKERS, of_process=False)
        self.store = ExportedStore(self._exported)
        self._use, self._deliver, self._process = use, deliver, uuid4().hex
        self._sent: Mapping[Key, float] = {}
        self._arrived = True

    def start(self) -> "Reporting":
        """Reports from now on, until the process ends."""
        threading.Thread(target=self._report_forever, name="reports", daemon=True).start()
        return self

    def loaded(self, seconds: float) -> None:
        """Counts a model that was loaded."""
        _log.info("a model was loaded in %.1f seconds", seconds)
        self._exported.observe(catalogue.MODEL_LOAD_SECONDS, seconds, self._use)

    def report(self) -> None:
        """Reports what was counted since the last report that arrived."""
        self._look_at_gpus()
        now = self._exported.values(catalogue.REPORTED, gauges=False)
        counted = {key: value - self._sent.get(key, 0.0) for key, value in now.items()}
        gauges = self._exported.values(catalogue.REPORTED, gauges=True)
        self._deliver(self._process, Report({key: value for key, value in counted.items() if value}, gauges))
        self._sent = now

    def _report_forever(self) -> None:
        while True:
            time.sleep(REPORT_SECONDS)
            try:
                self.report()
            except Exception as error:  # noqa: BLE001  of Ray, or the coordinator is being replaced
                if self._arrived:
                    _log.warning("metrics cannot be reported to the coordinator: %s", type(error).__name__)
                self._arrived = False
            else:
                self._arrived = True

    def _look_at_gpus(self) -> None:
        found = self._gpu_memory()
        for state, n_bytes in found.n_bytes.items():
            self._exported.set(catalogue.GPU_MEMORY, n_bytes, self._use, state)
        for outcome, shortages in found.shortages.items():
            self._exported.count_to(catalogue.GPU_MEMORY_SHORTAGES, shortages, self._use, outcome)


def to_coordinator(process: str, report: Report) -> None:
    """Delivers a report. Errors: any of Ray's, and ValueError if there is no coordinator."""
    actor = ray.get_actor(COORDINATOR, NAMESPACE)
    ray.get(actor.report.remote(process, report), timeout=_ANSWER_SECONDS)
