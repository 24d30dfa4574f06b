"""Sends messages to clients that may not take them. No thread waits, and what waits is bounded.

A stream whose client takes no message for `stalled_seconds` is ended with STREAM_STALLED: its work stops and its place
is free. gRPC keeps the one message that was on its way, and the status behind it, until the client reads or its
connection ends; a server for asyncio cannot take them back. So messages grow with what a client takes, and shrink while
much is waiting.
"""

import asyncio

from actstore_service.calls.admission import busy
from actstore_service.calls.byte_quota import ByteQuota
from actstore_service.calls.call import Call
from actstore_service.calls.waits import Waits
from actstore_service.settings import Limits
from actstore_storage.errors import ActstoreError

# A stream's first message, which a connection mostly takes without its client, and the least while much is waiting.
SMALL_BYTES = 64 * 1024
# The part of what may still wait that one message may be.
_SHARE = 16


class Outbox:
    def __init__(self, limits: Limits, quota: ByteQuota) -> None:
        self._limits, self._quota = limits, quota
        self._waits = Waits(limits.stalled_seconds)
        self._untaken = 0
        self.bytes_held = 0

    def share(self, wanted: int) -> int:
        """How large a message may be that would be `wanted` bytes if nothing else were waiting."""
        return min(wanted, max(SMALL_BYTES, (self._limits.waiting_bytes - self.bytes_held) // _SHARE))

    def check(self) -> None:
        """Refuses new streams while too many that were ended wait for clients that do not read."""
        if self._untaken >= self._limits.untaken_streams:
            raise busy("too many streams were ended whose clients do not read", "ends", self._limits.untaken_streams)

    async def send(self, call: Call, message: bytes) -> None:
        """Sends one message of a stream, and returns once it may have the next. Errors: STREAM_STALLED."""
        self.bytes_held += len(message)
        try:
            with self._waits.waiting():
                await call.context.write(message)
            call.sent(message)
            self._quota.sent(call, message)
        except TimeoutError:
            self._keep(len(message))
            raise _stalled(self._limits.stalled_seconds) from None
        finally:
            self.bytes_held -= len(message)
        await self._quota.pause(call)

    def last(self, call: Call, message: bytes) -> bytes:
        """A single answer, which gRPC sends together with the call's status after its task has returned it.

        Errors: BUSY for a large one while too much is waiting.
        """
        if len(message) > SMALL_BYTES:
            if self.bytes_held > self._limits.waiting_bytes:
                raise busy("answers that clients do not read fill the memory", "bytes", self._limits.waiting_bytes)
            self.bytes_held += len(message)
            _task().add_done_callback(lambda _: self._gone(len(message)))
        self._quota.sent(call, message)
        return message

    def _keep(self, n_bytes: int) -> None:
        """Counts a message for as long as gRPC has it, which is until the call's task is over."""
        self.bytes_held += n_bytes
        self._untaken += 1
        _task().add_done_callback(lambda _: self._taken(n_bytes))

    def _taken(self, n_bytes: int) -> None:
        self._untaken -= 1
        self._gone(n_bytes)

    def _gone(self, n_bytes: int) -> None:
        self.bytes_held -= n_bytes


def _task() -> "asyncio.Task[object]":
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("only a task sends messages")
    return task


def _stalled(seconds: float) -> ActstoreError:
    return ActstoreError(
        f"the stream was ended, because its client took no message for {seconds:g} seconds",
        reason="STREAM_STALLED",
        field="stalled_seconds",
        allowed=f"a message taken every {seconds:g} seconds",
    )
