"""Sends messages to clients that may not take them. No thread waits, and what waits is bounded in time and in bytes.

A client that takes no message for `stalled_seconds` is ended, a stream's with STREAM_STALLED. Where all messages that
wait for their clients together exceed `waiting_bytes`, those that have waited for the longest are ended sooner: whoever
keeps reading keeps its stream.
"""

from actstore_service.calls.call import Call
from actstore_service.calls.waits import Waits
from actstore_service.settings import Limits
from actstore_storage.errors import ActstoreError

# What a connection takes without its client, so that nobody waits for it.
_SMALL_BYTES = 32 * 1024


class Outbox:
    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waits = Waits(limits.stalled_seconds)

    @property
    def roomy(self) -> bool:
        """Whether messages may be made ahead of their clients."""
        return self._waits.n_bytes < self._limits.waiting_bytes // 2

    async def send(self, call: Call, message: bytes) -> None:
        """Sends one message of a stream, and returns once it may have the next. Errors: STREAM_STALLED."""
        self._hurry()
        try:
            with self._waits.waiting(len(message)):
                await call.context.write(message)
        except TimeoutError:
            raise _stalled(self._limits.stalled_seconds) from None

    def last(self, message: bytes) -> bytes:
        """A single answer, which gRPC sends together with the call's status after its task has returned it."""
        if len(message) > _SMALL_BYTES:
            self._hurry()
            wait = self._waits.begin(len(message))
            wait.task.add_done_callback(lambda _: self._waits.finish(wait))
        return message

    def _hurry(self) -> None:
        """Gives the slowest clients `hurried_seconds` for their message, until the rest fits."""
        if self._waits.n_bytes > self._limits.waiting_bytes:
            self._waits.end_older(self._limits.hurried_seconds, self._limits.waiting_bytes)


def _stalled(seconds: float) -> ActstoreError:
    return ActstoreError(
        f"the stream was ended, because its client took no message for a while (at most {seconds:g} seconds)",
        reason="STREAM_STALLED",
        field="stalled_seconds",
        allowed=f"a message taken every {seconds:g} seconds",
    )
