"""Reads the one message of a call, with a limit on its time and on how many calls may be without theirs.

A call that has sent headers and no message costs no thread and no place, but some memory. Where too many are open, the
one that has kept its message back for the longest is ended, so that newcomers always get in.
"""

import grpc

from actstore_service.calls.call import Call
from actstore_service.calls.waits import Waits
from actstore_storage.errors import ActstoreError, BadRequest


class Opening:
    def __init__(self, message_seconds: float, unread_max: int) -> None:
        self._message_seconds, self._unread_max = message_seconds, unread_max
        self._unread = Waits(message_seconds)

    async def message(self, call: Call) -> bytes:
        """The call's one message. Errors: MESSAGE_LATE where it does not come in time."""
        found = await self.next_message(call)
        if found is None:
            raise BadRequest("the call ended without a message", field="message", value="none", allowed="one message")
        return found

    async def next_message(self, call: Call) -> bytes | None:
        """None once the caller has closed its side."""
        if len(self._unread) >= self._unread_max:
            self._unread.end_oldest()
        try:
            with self._unread.waiting():
                found = await call.context.read()
        except TimeoutError:
            raise _late(self._message_seconds) from None
        return None if found is grpc.aio.EOF else found


def _late(seconds: float) -> ActstoreError:
    return ActstoreError(
        f"the call's message did not arrive; a service waits for it for at most {seconds:g} seconds",
        reason="MESSAGE_LATE",
        field="message",
        allowed=f"a message within {seconds:g} seconds of the headers",
    )
