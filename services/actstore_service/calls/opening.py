"""Reads the one message of a call, with a limit on its time and on how many calls may be without theirs.

A call that has sent headers and no message costs no thread and no place, but some memory. Where too many are open, the
one that has kept its message back for the longest is ended, so that newcomers always get in.
"""

import asyncio
from collections import OrderedDict
from typing import Any

import grpc

from actstore_service.calls.call import Call
from actstore_storage.errors import ActstoreError, BadRequest


class Opening:
    def __init__(self, message_seconds: float, unread_max: int) -> None:
        self._message_seconds, self._unread_max = message_seconds, unread_max
        self._unread: OrderedDict[asyncio.Timeout, None] = OrderedDict()

    async def message(self, call: Call) -> bytes:
        """The call's one message. Errors: MESSAGE_LATE where it does not come in time."""
        found = await self.next_message(call)
        if found is None:
            raise BadRequest("the call ended without a message", field="message", value="none", allowed="one message")
        return found

    async def next_message(self, call: Call) -> bytes | None:
        """None once the caller has closed its side."""
        found = await self._read(call)
        return None if found is grpc.aio.EOF else found

    async def _read(self, call: Call) -> Any:
        try:
            async with asyncio.timeout(self._message_seconds) as limit:
                self._make_room()
                self._unread[limit] = None
                try:
                    return await call.context.read()
                finally:
                    self._unread.pop(limit, None)
        except TimeoutError:
            raise _late(self._message_seconds) from None

    def _make_room(self) -> None:
        if len(self._unread) >= self._unread_max:
            oldest, _ = self._unread.popitem(last=False)
            oldest.reschedule(asyncio.get_running_loop().time())


def _late(seconds: float) -> ActstoreError:
    return ActstoreError(
        f"the call's message did not arrive; a service waits for it for at most {seconds:g} seconds",
        reason="MESSAGE_LATE",
        field="message",
        allowed=f"a message within {seconds:g} seconds of the headers",
    )
