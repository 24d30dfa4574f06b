"""Turns at planning, of which few run at once, for callers that wait long enough."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from actstore_worker.caller import Caller

# The weight of earlier plans relative to the last one in the measured time of one.
_MEMORY = 0.5


class Planning:
    """At most so many plans at once. Further ones wait in the order in which they came."""

    def __init__(self, plans: int) -> None:
        self._plans = plans
        self._places = asyncio.Semaphore(plans)
        self._waiting = 0
        self._seconds = 0.0  # What one plan takes, as measured.

    @asynccontextmanager
    async def turn(self, caller: Caller) -> AsyncIterator[None]:
        """Errors: LIMIT_EXCEEDED with both numbers if the turn comes later than the caller waits; CANCELLED if it came
        too late.
        """
        caller.check_deadline(self._expected_seconds(), "waiting for other captures to be planned")
        began = time.monotonic()
        async with self._place():
            caller.after(time.monotonic() - began).check_waits()
            began = time.monotonic()
            yield
            taken = time.monotonic() - began
            self._seconds = taken if not self._seconds else _MEMORY * self._seconds + (1 - _MEMORY) * taken

    def _expected_seconds(self) -> float:
        """0 if there is a place now."""
        return self._seconds * (self._waiting + 1) / self._plans if self._places.locked() else 0.0

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._places.release()
