"""What a principal may use: captures that wait, and tokens a day."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from actstore_storage.errors import BadRequest

DAY_SECONDS = 24 * 3600.0


@dataclass
class _Bucket:
    tokens: float
    filled_seconds: float


class TokenQuota:
    """A token bucket for each principal, which fills up within a day. It is filled when it is looked at.

    A principal without a bucket has a full one, so full ones are forgotten first if there are more than `principals`.
    """

    def __init__(self, tokens_a_day: int | None, principals: int, clock: Callable[[], float] = time.time) -> None:
        self._most, self._principals, self._clock = tokens_a_day, principals, clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()  # The one that was used last is last.

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, principal: str, tokens: int) -> None:
        """Errors: BadRequest LIMIT_EXCEEDED with both numbers; then nothing is taken."""
        if self._most is None or not tokens:
            return
        left = self._left(principal)
        if tokens > left:
            raise BadRequest(
                f"the capture has {tokens} tokens; {principal} may capture {self._most} a day, {int(left)} are left",
                reason="LIMIT_EXCEEDED",
                field="tokens_a_day",
                value=tokens,
                allowed=self._allowed(tokens, left),
            )
        self._put(principal, left - tokens)

    def give_back(self, principal: str, tokens: int) -> None:
        """Returns tokens that were taken and are not captured."""
        if self._most is not None and principal in self._buckets:
            self._put(principal, min(self._most, self._left(principal) + tokens))

    def took(self, principal: str, tokens: int, then_seconds: float) -> None:
        """Takes tokens that an earlier coordinator granted at that time, as far as they are not there again."""
        if self._most is not None:
            back = self._most * max(0.0, self._clock() - then_seconds) / DAY_SECONDS
            self._put(principal, self._left(principal) - max(0.0, tokens - back))

    def _left(self, principal: str) -> float:
        bucket, most = self._buckets.get(principal), self._most or 0
        if bucket is None:
            return float(most)
        gone_seconds = max(0.0, self._clock() - bucket.filled_seconds)
        return min(float(most), bucket.tokens + most * gone_seconds / DAY_SECONDS)

    def _put(self, principal: str, tokens: float) -> None:
        self._buckets[principal] = _Bucket(tokens, self._clock())
        self._buckets.move_to_end(principal)
        if len(self._buckets) > self._principals:
            full = (name for name in self._buckets if self._left(name) >= (self._most or 0))
            del self._buckets[next(full, next(iter(self._buckets)))]

    def _allowed(self, tokens: int, left: float) -> str:
        """Says when as many tokens are allowed, if ever."""
        most = self._most or 0
        if tokens > most:
            return f"at most {most} tokens in one capture"
        hours = math.ceil(10 * (tokens - left) / most * DAY_SECONDS / 3600) / 10
        return f"at most {int(left)} tokens now; {tokens} in {hours:g} hours"


def check_queue(waiting: int, of_principal: int, most: int, most_of_principal: int) -> None:
    """Errors: BadRequest LIMIT_EXCEEDED with both numbers, if one more capture would not fit into the queue."""
    for field, found, limit, whose in (
        ("queued_per_principal", of_principal, most_of_principal, " of yours"),
        ("queued_captures", waiting, most, ""),
    ):
        if found >= limit:
            raise BadRequest(
                f"{found} captures{whose} wait in the queue, and at most {limit} may",
                reason="LIMIT_EXCEEDED",
                field=field,
                value=found + 1,
                allowed=f"at most {limit}: wait until some have started, or cancel some",
            )
