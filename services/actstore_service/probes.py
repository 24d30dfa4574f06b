"""An HTTP server for Prometheus and probes: /metrics, /healthz (alive), /readyz (accepts calls)."""

import threading
from collections.abc import Callable, Iterable
from typing import Any

from actstore_api.exporting import page_server
from actstore_service.settings import cannot_listen, split_address

# How soon `close` takes effect.
POLL_SECONDS = 0.1
Probe = Callable[[], bool]


class ProbeServer:
    """Serves from the moment it is built until `close`."""

    def __init__(self, address: str, metrics: Callable[..., Any], alive: Probe, ready: Probe) -> None:
        self._metrics, self._alive, self._ready = metrics, alive, ready
        host, port = split_address(address, "ACTSTORE_METRICS_LISTEN")
        try:
            self._server = page_server(host, port, self._answer)
        except OSError as error:
            raise cannot_listen(address, "ACTSTORE_METRICS_LISTEN", error) from error
        self._host = host
        threading.Thread(target=self._server.serve_forever, args=(POLL_SECONDS,), name="probes", daemon=True).start()

    @property
    def address(self) -> str:
        shown = f"[{self._host}]" if ":" in self._host else self._host
        return f"{shown}:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return self._metrics(environ, start_response)
        known = {"/healthz": self._alive, "/readyz": self._ready}
        status = "404 Not Found" if path not in known else "200 OK" if known[path]() else "503 Service Unavailable"
        start_response(status, [("Content-Type", "text/plain")])
        return [status.encode() + b"\n"]
