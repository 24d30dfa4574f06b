"""The steps that calls of the contract share: admission, and their message."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from actstore_service.calls.admission import Admission, Room
from actstore_service.calls.call import Call
from actstore_service.calls.classes import CallClass
from actstore_service.calls.opening import Opening
from actstore_service.calls.outbox import Outbox


@dataclass(frozen=True)
class Steps:
    admission: Admission
    opening: Opening
    outbox: Outbox

    @asynccontextmanager
    async def begun(self, call: Call, kind: CallClass) -> AsyncIterator[tuple[bytes, Room]]:
        """The call's message, and the room of its class; refused before the message is read if the class is full.

        A call has no place while its message is on the way, so callers that send none keep nobody out.
        """
        self.admission.check(call, kind)
        message = await self.opening.message(call)
        self.admission.bytes.received(call, message)
        async with self.admission.opened(call, kind):
            yield message, self.admission.rooms[kind]
