"""Which model replicas there are for the questions of a gateway, and what a question waits for while there is none."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from actstore_worker.cluster.placement.answers import unavailable
from actstore_worker.cluster.placement.resources import gpu_count, gpus_most, uses_gpus
from actstore_worker.settings import WorkerSettings

# How often a question that waits looks for a replica, and when a caller may come back who was refused.
LOOK_SECONDS, _RETRY_SECONDS = 1.0, 60.0
_WITHOUT = "answers from the store need none"


class Arrivals:
    """Tells the questions of one gateway that wait for a replica what they wait for. Serve itself tells nobody.

    `running` returns how many replicas answer. It may block.
    """

    def __init__(self, settings: WorkerSettings, running: Callable[[], int]) -> None:
        self._settings, self._count = settings, running
        self._running, self._looked = 0, -LOOK_SECONDS
        self._lock = asyncio.Lock()
        self._looking: asyncio.Task[None] | None = None

    @property
    def running(self) -> int:
        """How many replicas answer, as seen a moment ago. Whoever asks has it looked at again, in the background."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._look_if_possible())
        return self._running

    async def awaited(self, work: asyncio.Future[Any]) -> AsyncIterator[str]:
        """Yields what the work of a replica waits for, again and again, until it is done or a replica is there.

        Errors: ActstoreError WORKERS_UNAVAILABLE if none may come, or none has come in time.
        """
        began = time.monotonic()
        while not (await asyncio.wait({work}, timeout=LOOK_SECONDS))[0]:
            if await self._one_runs():
                return
            yield await asyncio.to_thread(self._waits_for, time.monotonic() - began)

    async def _one_runs(self) -> bool:
        await self._look_if_possible()
        return self._running > 0

    async def _look_if_possible(self) -> None:
        with suppress(Exception):  # Serve is busy or ends; the last number holds
            await self._look()

    async def _look(self) -> None:
        """One look serves all questions of the moment."""
        async with self._lock:
            if time.monotonic() - self._looked >= LOOK_SECONDS:
                self._looked = time.monotonic()
                self._running = await asyncio.to_thread(self._count)

    def _waits_for(self, seconds: float) -> str:
        """Asks Ray, which may block."""
        if not uses_gpus(self._settings) or gpu_count():
            what = "a model replica"
        elif gpus_most(self._settings):
            what = "a node with a GPU"
        else:
            raise unavailable(f"the workers have no node with a GPU now, and none is expected: {_WITHOUT}")
        if seconds > self._settings.ray.replica_start_seconds:
            late = f"{what} was asked for {seconds:.0f} s ago, and has not come"
            raise unavailable(f"{late}. Try again in {_RETRY_SECONDS:.0f} s; {_WITHOUT}", _RETRY_SECONDS)
        return what
