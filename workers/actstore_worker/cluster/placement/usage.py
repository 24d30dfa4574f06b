"""Reports what the principals of one model replica used to the coordinator, which counts it with that of captures."""

import threading
import time

import ray

from actstore_worker.cluster.joining.session import COORDINATOR, NAMESPACE
from actstore_worker.models.used import Usage


def report_usage(usage: Usage, pause_seconds: float) -> None:
    """Reports from a thread of its own until the process ends."""
    threading.Thread(target=_report, args=(usage, pause_seconds), name="usage", daemon=True).start()


def _report(usage: Usage, pause_seconds: float) -> None:
    while True:
        time.sleep(pause_seconds)
        if not (used := usage.take()):
            continue
        try:
            # Without a time limit: a report that arrived after it would be told, and counted, again.
            ray.get(ray.get_actor(COORDINATOR, NAMESPACE).used.remote(dict(used)))
        except Exception:  # noqa: BLE001  it is being replaced; what was used is told to the next one
            for principal, of_principal in used.items():
                usage.add(principal, of_principal)
