"""Counts sweeps for the metrics: the only stream of the workers that the service looks into."""

import time
from collections.abc import AsyncIterator

from actstore_api.reasons import from_status
from actstore_api.v1 import patching_pb2
from actstore_service.calls.failures import StatusGiven
from actstore_service.metrics import SweepMetrics


async def counted(updates: AsyncIterator[bytes], metrics: SweepMetrics) -> AsyncIterator[bytes]:
    """Yields the same messages of RunSweep, and counts them in the metrics."""
    cells, started_seconds = 0, time.monotonic()
    try:
        async for message in updates:
            update = patching_pb2.RunSweepResponse.FromString(message)
            cells = update.progress.cells_done if update.HasField("progress") else cells
            if update.HasField("result"):
                metrics.ended(update.result.audit, cells, time.monotonic() - started_seconds)
            yield message
    except StatusGiven as error:
        failure = from_status(error.status)
        if failure is not None and failure.reason == "AUDIT_FAILED":
            metrics.audit_failed()
        raise
