"""Looks again whether callers of calls that last are still known, and may still do what they began.

A stream may outlive its token by days. One timer for all calls, as in `waits`.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from actstore_service.access import Access, Principal
from actstore_service.calls.call import Call
from actstore_service.calls.waits import Ending
from actstore_storage.errors import ActstoreError


class _Watched(Ending):
    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call


class Rechecks:
    """The calls that last. Each is looked at every `seconds`."""

    def __init__(self, access: Access, seconds: float) -> None:
        self._access, self._seconds = access, seconds
        self._watched: dict[_Watched, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def watched(self, call: Call) -> Iterator[None]:
        """For the block of the current task. Errors: UNAUTHENTICATED or PERMISSION_DENIED where it is ended."""
        one = self._begin(call)
        try:
            with one.block():
                yield
        finally:
            del self._watched[one]

    def _begin(self, call: Call) -> _Watched:
        one = _Watched(call)
        self._watched[one] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._look)
        return one

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        # Before anything may fail: calls that nobody looks at would outlive their tokens.
        self._timer = loop.call_later(self._seconds, self._look) if self._watched else None
        for one in self._watched:
            if one.error is None and (error := self._refusal(one.call)) is not None:
                one.end(error)

    def _refusal(self, call: Call) -> ActstoreError | None:
        """Why the call may not go on; None if it may."""
        try:
            found = self._access.identify(call.headers, call.context.auth_context())
        except ActstoreError as error:
            return error if error.reason == "UNAUTHENTICATED" else None  # an issuer that is away withdraws nothing
        return None if call.principal is None or _may_as_before(found, call.principal) else _changed(found)


def _may_as_before(now: Principal, before: Principal) -> bool:
    return now.name == before.name and now.roles >= before.roles and all(map(now.may_use, before.run_prefixes))


def _changed(principal: Principal) -> ActstoreError:
    return ActstoreError(
        f"{principal.name} may do less than when this call began, so it was ended: ask again for what is still allowed",
        reason="PERMISSION_DENIED",
        field="authorization",
    )
