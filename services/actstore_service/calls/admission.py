"""Whether a call may begin: places and a waiting room for each class of calls, shared out among callers.

A call that finds both full is refused with BUSY, at once and before its message is read. All of this runs in the event
loop, so it needs no lock.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from actstore_service.calls.byte_quota import ByteQuota
from actstore_service.calls.call import Call
from actstore_service.calls.classes import CallClass
from actstore_service.settings import Limits
from actstore_storage.errors import ActstoreError


class Room:
    """The places of one class. Who waits is let in by turns among callers, and in order within one caller's calls."""

    def __init__(self, name: str, places: int, waiting_max: int) -> None:
        self.name, self.places, self.waiting_max = name, places, waiting_max
        self.taken = self.waiting = 0
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    def check(self) -> None:
        """Refuses if a call that came now could not even wait."""
        if self.taken >= self.places and self.waiting >= self.waiting_max:
            whole = self.places + self.waiting_max
            raise busy(f"all {whole} places for calls of the class {self.name} are taken", f"{self.name} calls", whole)

    async def enter(self, caller: str) -> None:
        """Returns once the call has a place, which `leave` gives back."""
        self.check()
        if self.taken < self.places:
            self.taken += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._queues.setdefault(caller, deque()).append(turn)
        self.waiting += 1
        try:
            await turn
        except asyncio.CancelledError:
            self._give_up(caller, turn)
            raise

    @asynccontextmanager
    async def place(self, caller: str) -> AsyncIterator[None]:
        """A place for as long as the block runs."""
        await self.enter(caller)
        try:
            yield
        finally:
            self.leave()

    def leave(self) -> None:
        """Hands the place to the next caller that waits, if there is one."""
        while self._queues:
            caller, queue = self._queues.popitem(last=False)
            turn = queue.popleft()
            if queue:
                self._queues[caller] = queue  # behind the others
            if not turn.done():
                self.waiting -= 1
                turn.set_result(None)
                return
        self.taken -= 1

    def _give_up(self, caller: str, turn: "asyncio.Future[None]") -> None:
        if turn.done() and not turn.cancelled():  # the place came at the same moment
            self.leave()
            return
        self.waiting -= 1
        queue = self._queues.get(caller, deque())
        if turn in queue:
            queue.remove(turn)
            if not queue:
                del self._queues[caller]


class Admission:
    """The rooms of all classes, and how many calls each caller has open."""

    def __init__(self, limits: Limits) -> None:
        self.rooms: Mapping[CallClass, Room] = {
            CallClass.CATALOG: Room(CallClass.CATALOG, limits.catalog_threads, limits.waiting_calls),
            CallClass.READS: Room(CallClass.READS, limits.read_threads, limits.waiting_calls),
            CallClass.SLOW: Room(CallClass.SLOW, limits.slow_threads, limits.waiting_calls),
            CallClass.STREAMS: Room(CallClass.STREAMS, limits.open_streams, 0),
            CallClass.FORWARDED: Room(CallClass.FORWARDED, limits.forwarded_calls, 0),
            CallClass.STANDARD: Room(CallClass.STANDARD, limits.standard_calls, 0),
        }
        self.bytes = ByteQuota(limits)
        self._open: Counter[tuple[str, CallClass]] = Counter()
        self._limits = limits
        self._allowed = {
            CallClass.STREAMS: limits.principal_streams,
            CallClass.FORWARDED: limits.principal_forwarded_calls,
        }

    def check(self, call: Call, kind: CallClass) -> None:
        """Refuses a call of this class by what is known before its message."""
        self._check_caller(call, kind)
        if kind is not CallClass.STANDARD:
            self.bytes.check(call.name)
        self.rooms[kind].check()

    @asynccontextmanager
    async def opened(self, call: Call, kind: CallClass) -> AsyncIterator[None]:
        """Counts the call among its caller's, from when it may wait to its end."""
        self._check_caller(call, kind)
        self._open[call.name, kind] += 1
        try:
            yield
        finally:
            self._open[call.name, kind] -= 1
            if not self._open[call.name, kind]:
                del self._open[call.name, kind]

    def _check_caller(self, call: Call, kind: CallClass) -> None:
        allowed = self._allowed.get(kind, self._limits.principal_calls)
        if self._open[call.name, kind] >= allowed:
            message = f"{call.name} has {allowed} calls of the class {kind} open"
            raise busy(message, f"{kind} calls of one caller", allowed)


def busy(message: str, field: str, allowed: int) -> ActstoreError:
    return ActstoreError(
        f"{message}, which is the limit of this service: try again soon",
        reason="BUSY",
        field=field,
        value=allowed + 1,
        allowed=allowed,
    )
