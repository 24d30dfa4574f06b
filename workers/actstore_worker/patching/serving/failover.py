"""A sweep whose process dies goes on in another one.

Who hands rows on keeps them until the end, and sends them along: nothing that was handed on is computed again, wherever
the sweep goes on. Rows kept by the process itself would be gone with it, and rows in the bucket would be one object a
slice, for a thing that hardly ever happens.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable

import pyarrow as pa

from actstore_api.records.patching import SweepCells, SweepProgress, SweepResult
from actstore_storage.errors import ActstoreError
from actstore_worker.patching.updates import NOTHING_FINISHED, CheckedCells, Finished, SweepUpdate

# A sweep that kills what it runs on must come to an end.
TRIES = 3


class ProcessDied(Exception):
    """What computed the sweep is no more."""


async def going_on(
    start: Callable[[Finished], AsyncGenerator[SweepUpdate, None]],
) -> AsyncIterator[SweepProgress | SweepCells | SweepResult]:
    """What is told of the sweep, wherever it runs. `start` begins it behind what is finished.

    Errors: the sweep's own; WORKERS_UNAVAILABLE once so many processes died of it without finishing a row.
    """
    finished, tries = NOTHING_FINISHED, TRIES
    while True:
        updates = start(finished)
        try:
            async for update in updates:
                if isinstance(update, CheckedCells):
                    finished, tries = _with(finished, update), TRIES
                    yield SweepCells(update.rows)
                else:
                    yield update
        except ProcessDied:
            tries -= 1
            if not tries:
                message = f"this sweep failed: {TRIES} worker processes died while running it, one after the other"
                raise ActstoreError(message, reason="WORKERS_UNAVAILABLE") from None
        else:
            return
        finally:
            await updates.aclose()


def _with(finished: Finished, update: CheckedCells) -> Finished:
    parts = [update.rows] if finished.rows is None else [finished.rows, update.rows]
    return Finished(pa.concat_tables(parts), update.checked, update.provenance)
