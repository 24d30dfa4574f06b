"""Sends messages to clients that may not take them. No thread waits, and what waits is bounded in time and in bytes.

A client that takes no message for `stalled_seconds` is ended with STREAM_STALLED. Where all messages that wait for
their clients together exceed `waiting_bytes`, those that have waited for the longest are ended sooner: whoever keeps
reading keeps its stream.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from actstore_service.calls.call import Call
from actstore_service.settings import Limits
from actstore_storage.errors import ActstoreError


class Outbox:
    def __init__(self, limits: Limits) -> None:
        self._stalled_seconds, self._hurried_seconds = limits.stalled_seconds, limits.hurried_seconds
        self._bytes_max = limits.waiting_bytes
        self._waiting: OrderedDict[_Sending, None] = OrderedDict()
        self.bytes_waiting = 0

    @property
    def roomy(self) -> bool:
        """Whether messages may be made ahead of their clients."""
        return self.bytes_waiting < self._bytes_max // 2

    async def send(self, call: Call, message: bytes) -> None:
        """Returns once the client may have the next message. Errors: STREAM_STALLED."""
        try:
            async with asyncio.timeout(self._stalled_seconds) as limit:
                with self._counted(_Sending(limit, len(message), asyncio.get_running_loop().time())):
                    await call.context.write(message)
            call.sent(message)
        except TimeoutError:
            raise _stalled(self._stalled_seconds) from None

    @contextmanager
    def _counted(self, sending: "_Sending") -> Iterator[None]:
        self.bytes_waiting += sending.n_bytes
        self._waiting[sending] = None
        self._hurry()
        try:
            yield
        finally:
            self.bytes_waiting -= sending.n_bytes
            del self._waiting[sending]

    def _hurry(self) -> None:
        """Gives the slowest clients `hurried_seconds` from the start of their message, until the rest fits."""
        excess = self.bytes_waiting - self._bytes_max
        for sending in self._waiting:
            if excess <= 0:
                return
            sending.hurry(self._hurried_seconds)
            excess -= sending.n_bytes


class _Sending:
    """One message that waits for its client."""

    def __init__(self, limit: asyncio.Timeout, n_bytes: int, began: float) -> None:
        self._limit, self.n_bytes, self._began = limit, n_bytes, began

    def hurry(self, seconds: float) -> None:
        until = max(self._began + seconds, asyncio.get_running_loop().time())
        when = self._limit.when()
        if not self._limit.expired() and when is not None and until < when:
            self._limit.reschedule(until)


def _stalled(seconds: float) -> ActstoreError:
    return ActstoreError(
        f"the stream was ended, because its client took no message for a while (at most {seconds:g} seconds)",
        reason="STREAM_STALLED",
        field="stalled_seconds",
        allowed=f"a message taken every {seconds:g} seconds",
    )
