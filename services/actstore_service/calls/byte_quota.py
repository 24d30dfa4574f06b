"""Counts the bytes of each principal's messages, in both directions, and holds a principal to its quota of a minute.

It is in memory, and of one process: a process that starts again hands out one minute's quota again, and replicas of a
service hand out one each. So it keeps a caller from filling the network, and is no account of what was used.
"""

import asyncio
import time

from actstore_service.calls.call import Call
from actstore_service.calls.classes import CallClass
from actstore_service.settings import Limits
from actstore_storage.quotas import MINUTE_SECONDS, Buckets, Quota, over_quota


class ByteQuota:
    """All of this runs in the event loop."""

    def __init__(self, limits: Limits) -> None:
        quota = Quota("principal_bytes_a_minute", limits.principal_bytes_a_minute, MINUTE_SECONDS)
        self._buckets = Buckets(quota, limits.principals, time.monotonic)
        self.refusals = 0

    @property
    def name(self) -> str:
        """The setting."""
        return self._buckets.quota.name

    def check(self, principal: str) -> None:
        """Errors: BUSY or LIMIT_EXCEEDED for a principal that is beyond its quota, with both numbers and when to come
        back.
        """
        if self._buckets.in_debt(principal):
            self.refusals += 1
            left, seconds = self._buckets.left(principal), self._buckets.seconds_until(principal)
            raise over_quota(principal, self._buckets.quota, left, seconds)

    def received(self, call: Call, message: bytes) -> None:
        call.received_bytes += len(message)
        self.sent(call, message)

    def sent(self, call: Call, message: bytes) -> None:
        """Bytes of health and of the like, which are never refused for a quota, are not counted either."""
        if call.kind is not CallClass.STANDARD:
            self._buckets.use(call.name, len(message))

    async def pause(self, call: Call) -> None:
        """Returns once the principal is within its quota: a stream that has begun becomes slow, and goes on."""
        while self._buckets.in_debt(call.name):
            await asyncio.sleep(self._buckets.seconds_until(call.name))
