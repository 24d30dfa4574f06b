"""What a principal may use: captures that wait, tokens and seconds of a device."""

import math
import time
from collections import Counter
from collections.abc import Callable

from actstore_storage.errors import BadRequest
from actstore_storage.quotas import DAY_SECONDS, HOUR_SECONDS, MINUTE_SECONDS, Buckets, Quota, over_quota
from actstore_worker.models.used import Used


class TokenQuota:
    """Tokens of captures a day. They are taken before the capture begins, because they are known then."""

    def __init__(self, tokens_a_day: int | None, principals: int, clock: Callable[[], float] = time.time) -> None:
        self._most, self._clock, self.refusals = tokens_a_day, clock, 0
        self._buckets = Buckets(Quota("tokens_a_day", tokens_a_day, DAY_SECONDS), principals, clock)

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, principal: str, tokens: int) -> None:
        """Errors: BadRequest LIMIT_EXCEEDED with both numbers; then nothing is taken."""
        if self._most is None or not tokens:
            return
        left = self._buckets.left(principal)
        if tokens > left:
            self.refusals += 1
            raise BadRequest(
                f"the capture has {tokens} tokens; {principal} may capture {self._most} a day, {int(left)} are left",
                reason="LIMIT_EXCEEDED",
                field="tokens_a_day",
                value=tokens,
                allowed=self._allowed(self._most, tokens, left),
            )
        self._buckets.use(principal, tokens)

    def give_back(self, principal: str, tokens: int) -> None:
        """Returns tokens that were taken and are not captured."""
        self._buckets.give_back(principal, tokens)

    def took(self, principal: str, tokens: int, then_seconds: float) -> None:
        """Takes tokens that an earlier coordinator granted at that time, as far as they are not there again."""
        back = self._buckets.back_after(max(0.0, self._clock() - then_seconds))
        self._buckets.use(principal, max(0.0, tokens - back))

    def _allowed(self, most: int, tokens: int, left: float) -> str:
        """Says when as many tokens are allowed, if ever."""
        if tokens > most:
            return f"at most {most} tokens in one capture"
        hours = math.ceil(10 * (tokens - left) / most * DAY_SECONDS / 3600) / 10
        return f"at most {int(left)} tokens now; {tokens} in {hours:g} hours"


class UseQuotas:
    """Tokens a minute and seconds of a device an hour, of captures, sweeps and live questions together. Both are
    counted after the use, so who is beyond a quota begins nothing new until the time has made up for it.

    They are in memory only: a coordinator that starts again hands out at most one minute's and one hour's again.
    """

    def __init__(
        self,
        tokens_a_minute: int | None,
        device_seconds_an_hour: float | None,
        principals: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        tokens = Quota("tokens_a_minute", tokens_a_minute, MINUTE_SECONDS)
        seconds = Quota("device_seconds_an_hour", device_seconds_an_hour, HOUR_SECONDS)
        self.refusals: Counter[str] = Counter()
        self._tokens, self._seconds = (Buckets(quota, principals, clock) for quota in (tokens, seconds))

    def check(self, principal: str) -> None:
        """Errors: BadRequest BUSY or LIMIT_EXCEEDED for a principal that is beyond a quota, with both numbers and when
        to come back.
        """
        for buckets in (self._tokens, self._seconds):
            if buckets.in_debt(principal):
                self.refusals[buckets.quota.name] += 1
                raise over_quota(principal, buckets.quota, buckets.left(principal), buckets.seconds_until(principal))

    def used(self, principal: str, used: Used) -> None:
        self._tokens.use(principal, used.tokens)
        self._seconds.use(principal, used.device_seconds)


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
