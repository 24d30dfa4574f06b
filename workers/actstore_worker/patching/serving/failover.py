"""Continues a sweep in another process if its process dies.

The gateway, which forwards rows, keeps them until the end and sends them to the new process, so that no forwarded row
is computed again. Rows kept by the process itself would be lost with it, and rows in the bucket would cost one object
per slice, for an event that rarely happens.
"""

import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace

import pyarrow as pa

from actstore_api.records.patching import SweepCells, SweepProgress, SweepResult
from actstore_storage.errors import ActstoreError
from actstore_worker.patching.updates import NOTHING_FINISHED, CheckedCells, Finished, SweepUpdate


class ProcessDied(Exception):
    """The process that computed the sweep has died."""


async def going_on(
    start: Callable[[Finished, float], AsyncGenerator[SweepUpdate, None]],
    most_tries: int,
) -> AsyncGenerator[SweepProgress | SweepCells | SweepResult, None]:
    """Yields the updates of a sweep, whichever process runs it. `start` starts it after the finished rows, so many
    seconds late: its caller waits for no longer than before. A sweep that kills so many processes in a row comes to an
    end.

    Errors: the sweep's own; WORKERS_UNAVAILABLE after several processes died in a row without finishing a row.
    """
    finished, tries, last = NOTHING_FINISHED, most_tries, SweepProgress(0, 0)
    began = time.monotonic()
    while True:
        updates = start(finished, time.monotonic() - began)
        try:
            async for update in updates:
                if isinstance(update, CheckedCells):
                    finished, tries = _with(finished, update), most_tries
                    yield SweepCells(update.rows)
                elif isinstance(update, SweepProgress):
                    last = _counted(update, last)
                    yield last
                else:
                    yield update
        except ProcessDied:
            tries -= 1
            if not tries:
                message = f"this sweep failed: {most_tries} worker processes died while running it, one after the other"
                raise ActstoreError(message, reason="WORKERS_UNAVAILABLE") from None
        else:
            return
        finally:
            await updates.aclose()


def _counted(update: SweepProgress, last: SweepProgress) -> SweepProgress:
    """While the sweep waits for another process, the cells that it had are still done."""
    return replace(last, waits_for=update.waits_for) if update.waits_for else update


def _with(finished: Finished, update: CheckedCells) -> Finished:
    parts = [update.rows] if finished.rows is None else [finished.rows, update.rows]
    return Finished(pa.concat_tables(parts), update.checked, update.provenance)
