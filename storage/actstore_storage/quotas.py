"""Counts what principals use, in buckets that fill up with time. Service and workers refuse by these counts.

A use is counted once it is known, which is after the work: so a bucket can be in debt, and its principal is refused
until the debt is gone. Over a longer time nobody gets more than the quota.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from actstore_storage.errors import BadRequest

# Who is beyond a quota for longer is not told to wait: a client would wait until its deadline, and not learn why.
SOON_SECONDS = 10.0
MINUTE_SECONDS, HOUR_SECONDS, DAY_SECONDS = 60.0, 3600.0, 24 * 3600.0


@dataclass(frozen=True)
class Quota:
    """What each principal may use: `most` units in `period_seconds`. None: any number. `name` is its setting."""

    name: str
    most: float | None
    period_seconds: float


@dataclass
class _Bucket:
    left: float
    filled_seconds: float


class Buckets:
    """A bucket for each principal, which is filled when it is looked at. Without limit, it holds nothing.

    A principal without a bucket has a full one, so full ones are forgotten first if there are more than `principals`.
    """

    def __init__(self, quota: Quota, principals: int, clock: Callable[[], float] = time.time) -> None:
        self.quota, self._principals, self._clock = quota, principals, clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()  # The one that was used last is last.

    def __len__(self) -> int:
        return len(self._buckets)

    def left(self, principal: str) -> float:
        """Units that are left now; below 0 for a debt."""
        bucket, most = self._buckets.get(principal), self._most
        if bucket is None:
            return most
        gone_seconds = max(0.0, self._clock() - bucket.filled_seconds)
        return min(most, bucket.left + self.back_after(gone_seconds))

    def use(self, principal: str, units: float) -> None:
        """Counts a use; a negative one gives back, up to a full bucket."""
        if self.quota.most is not None and units:
            self._put(principal, min(self._most, self.left(principal) - units))

    def give_back(self, principal: str, units: float) -> None:
        """Gives back what was used before; nothing to a principal whose bucket is full."""
        if principal in self._buckets:
            self.use(principal, -units)

    def back_after(self, seconds: float) -> float:
        """Units that come back in so many seconds."""
        return self._most * seconds / self.quota.period_seconds

    def seconds_until(self, principal: str, units: float = 0.0) -> float:
        """How long until more than so many units are left; 0: they are now."""
        missing = units - self.left(principal)
        return max(0.0, missing) * self.quota.period_seconds / self._most if self.quota.most is not None else 0.0

    def in_debt(self, principal: str) -> bool:
        """Whether the principal has used more than it may have until now."""
        return self.quota.most is not None and self.left(principal) < 0

    @property
    def _most(self) -> float:
        return self.quota.most or 0.0

    def _put(self, principal: str, left: float) -> None:
        self._buckets[principal] = _Bucket(left, self._clock())
        self._buckets.move_to_end(principal)
        if len(self._buckets) > self._principals:
            full = (name for name in self._buckets if self.left(name) >= self._most)
            del self._buckets[next(full, next(iter(self._buckets)))]


def over_quota(principal: str, quota: Quota, left: float, seconds: float) -> BadRequest:
    """The error for a principal that is beyond a quota, with both numbers: BUSY if it is to try again soon, and else
    LIMIT_EXCEEDED, which says when.
    """
    most, used, wait = f"{quota.most:g}", (quota.most or 0.0) - left, math.ceil(10 * seconds) / 10
    soon = seconds <= SOON_SECONDS
    return BadRequest(
        f"{principal} has used {used:.6g} of {quota.name}, which is {most}; there is room again in {wait:g} s",
        reason="BUSY" if soon else "LIMIT_EXCEEDED",
        field=quota.name,
        value=f"{used:.6g}",
        allowed=f"at most {most}; again in {wait:g} s",
        retry_seconds=wait if soon else None,
    )
