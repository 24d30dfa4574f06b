"""Hands sweeps and live questions on to the model replicas, a few at a time and in turns by principal.

Replicas have as many places as they interleave. What has none waits here, where it is known who asks: sixteen slow
sweeps of one principal do not make the small question of another one wait for all of them.
"""

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, Protocol

from actstore_api.records.capture import CaptureClass
from actstore_api.records.patching import RunSweep, SweepCells, SweepEstimate, SweepProgress, SweepResult
from actstore_worker.caller import Caller
from actstore_worker.capture.queueing.fair_queue import FairQueue, Flow

# One of so many places is kept for principals that have none.
_KEPT = 4
# How soon more places are noticed, while some wait.
_LOOK_SECONDS = 1.0
# Each question counts alike: what it will cost is not known before a replica has read it.
_COST = 1.0

Updates = AsyncGenerator[SweepProgress | SweepCells | SweepResult, None]
# Errors of a principal that may begin nothing now.
Admitted = Callable[[str], Awaitable[None]]


class Models(Protocol):
    """Questions to the model replicas."""

    def run(self, request: RunSweep, caller: Caller) -> Updates: ...

    async def estimate(self, request: RunSweep, caller: Caller) -> SweepEstimate: ...

    async def ask(self, question: Any, caller: Caller) -> Any: ...


class LivePlaces:
    """The places of all replicas together. All methods run in one event loop, so that its state needs no locks.

    Questions are interactive and come before sweeps, which are bulk and keep a share. Of a class, the principal with
    the fewest places is next, and those with as many take turns.
    """

    def __init__(self, places: Callable[[], int], bulk_share: float) -> None:
        """`places` says how many there are now."""
        self._places = places
        self._fair = FairQueue(_COST, bulk_share)
        self._waiting: dict[Flow, deque[asyncio.Future[None]]] = {}
        self._running: Counter[str] = Counter()  # By principal.

    @property
    def waiting(self) -> int:
        """Questions and sweeps without a place."""
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def place(self, kind: CaptureClass, caller: Caller) -> AsyncIterator[Caller]:
        """A place for as long as the block runs. Yields the caller as it is then, after the time that it waited.

        Errors: ActstoreError CANCELLED for a caller whose deadline is over.
        """
        began = time.monotonic()
        await self._enter(Flow(kind, caller.principal))
        try:
            later = caller.after(time.monotonic() - began)
            later.check_waits()
            yield later
        finally:
            self._running[caller.principal] -= 1
            self._running += Counter()  # without those that have none
            self._let_in()

    async def _enter(self, flow: Flow) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(flow, deque()).append(turn)
        try:
            self._let_in()
            while not turn.done():
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await asyncio.shield(turn)
                self._let_in()
        except asyncio.CancelledError:
            self._give_up(flow, turn)
            raise

    def _let_in(self) -> None:
        while flows := self._next_flows():
            flow = self._fair.choose(dict.fromkeys(flows, _COST))
            self._waiting[flow].popleft().set_result(None)
            self._drop_empty(flow)
            self._running[flow.principal] += 1

    def _next_flows(self) -> list[Flow]:
        """Of each class, the flows of those who have the fewest places."""
        able = [flow for flow in self._waiting if self._has_place(flow)]
        fewest = {flow.capture_class: math.inf for flow in able}
        for flow in able:
            fewest[flow.capture_class] = min(fewest[flow.capture_class], self._running[flow.principal])
        return [flow for flow in able if self._running[flow.principal] == fewest[flow.capture_class]]

    def _has_place(self, flow: Flow) -> bool:
        places = self._places()
        kept = places // _KEPT if self._running[flow.principal] else 0
        return places - self._running.total() > kept

    def _give_up(self, flow: Flow, turn: "asyncio.Future[None]") -> None:
        if turn.done():  # the place came at the same moment
            self._running[flow.principal] -= 1
            self._let_in()
            return
        self._waiting[flow].remove(turn)
        self._drop_empty(flow)

    def _drop_empty(self, flow: Flow) -> None:
        if not self._waiting[flow]:
            del self._waiting[flow]


class FairModels:
    """The model replicas of a gateway, for principals that are within their quotas."""

    def __init__(self, models: Models, places: LivePlaces, admitted: Admitted) -> None:
        self._models, self._places, self._admitted = models, places, admitted

    async def ask(self, question: Any, caller: Caller) -> Any:
        await self._admitted(caller.principal)
        async with self._places.place("interactive", caller) as later:
            return await self._models.ask(question, later)

    async def estimate(self, request: RunSweep, caller: Caller) -> SweepEstimate:
        await self._admitted(caller.principal)
        async with self._places.place("interactive", caller) as later:
            return await self._models.estimate(request, later)

    async def run(self, request: RunSweep, caller: Caller) -> Updates:
        await self._admitted(caller.principal)
        async with (
            self._places.place("bulk", caller) as later,
            aclosing(self._models.run(request, later)) as updates,
        ):
            async for update in updates:
                yield update
