"""Exports what all workers did, from the coordinator's process over HTTP: one process tells it, so nothing is counted
twice.
"""

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from actstore_api import metrics as catalogue
from actstore_api.exporting import Exported
from actstore_api.metrics import Exporter, Metric
from actstore_api.records.capture import GetCaptureTotalsAnswer
from actstore_storage.format.specification import FORMAT_VERSION

_log = logging.getLogger(__name__)
# How long a scrape waits for the coordinator, whose event loop may be busy.
_ANSWER_SECONDS = 5.0
_RETRY_SECONDS = 1.0
# By field of the totals: the counter, and its labels.
_COUNTERS: Mapping[str, tuple[Metric, tuple[str, ...]]] = {
    "captures_complete": (catalogue.CAPTURES_ENDED, ("complete",)),
    "captures_failed": (catalogue.CAPTURES_ENDED, ("failed",)),
    "captures_cancelled": (catalogue.CAPTURES_ENDED, ("cancelled",)),
    "shards_committed": (catalogue.SHARDS_COMMITTED, ()),
    "tokens_committed": (catalogue.TOKENS_COMMITTED, ()),
    "bytes_committed": (catalogue.BYTES_COMMITTED, ()),
}


class WorkerMetrics:
    """The metrics of the workers, as the coordinator's totals have them."""

    def __init__(self) -> None:
        self.exported = Exported(Exporter.WORKERS)
        self.exported.set(catalogue.BUILD_INFO, 1, version("actstore"), str(FORMAT_VERSION))
        self._told = dict.fromkeys(_COUNTERS, 0)
        self._lock = threading.Lock()

    def update(self, totals: GetCaptureTotalsAnswer) -> None:
        """Adds to the counters what is new in the totals. Totals that came late change nothing."""
        found = asdict(totals)
        self.exported.set(catalogue.CAPTURES_RUNNING, found["captures_running"])
        with self._lock:
            for name, (metric, labels) in _COUNTERS.items():
                self.exported.add(metric, *labels, by=max(0, found[name] - self._told[name]))
                self._told[name] = max(found[name], self._told[name])


class MetricsServer:
    """Answers scrapes of `/metrics` from the moment that it can listen at the address.

    It waits for the address in the background: a coordinator that is replaced may still hold it, and captures do not
    wait for their metrics.
    """

    def __init__(self, address: str, totals: Callable[[], Awaitable[GetCaptureTotalsAnswer]]) -> None:
        """To be called on the event loop of `totals`."""
        self._address, self._totals = address, totals
        self._metrics = WorkerMetrics()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._serve, name="metrics", daemon=True).start()

    def _serve(self) -> None:
        host, _, port = self._address.rpartition(":")
        host, warned = host.strip("[]"), False
        while True:
            try:
                server = make_server(host, int(port), self._answer, _Server6 if ":" in host else _Server, _QuietHandler)
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
        totals = asyncio.run_coroutine_threadsafe(_awaited(self._totals), self._loop)
        self._metrics.update(totals.result(_ANSWER_SECONDS))
        return self._metrics.exported.wsgi()(environ, start_response)  # type: ignore[no-any-return]


async def _awaited(totals: Callable[[], Awaitable[GetCaptureTotalsAnswer]]) -> GetCaptureTotalsAnswer:
    return await totals()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _QuietHandler(WSGIRequestHandler):
    timeout = 10.0  # seconds that a connection may be silent

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Scrapes are not logged."""
