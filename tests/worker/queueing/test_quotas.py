"""What a principal may use: by a clock of the test's own."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actstore_storage.errors import BadRequest
from actstore_storage.quotas import DAY_SECONDS, Buckets, Quota
from actstore_worker.capture.limits import CoordinatorLimits
from actstore_worker.capture.queueing.quotas import TokenQuota, UseQuotas
from actstore_worker.capture.queueing.usage import Speed, UsedBy
from actstore_worker.models.used import Used


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_days_tokens_come_back_within_a_day() -> None:
    clock = Clock()
    quota = TokenQuota(240, 10, clock)
    quota.take("ann", 200)
    with pytest.raises(BadRequest) as refusal:
        quota.take("ann", 50)
    assert refusal.value.details["allowed"] == "at most 40 tokens now; 50 in 1 hours"
    quota.take("bob", 240)
    clock.now += DAY_SECONDS / 24
    quota.take("ann", 50)
    with pytest.raises(BadRequest, match="0 are left"):
        quota.take("ann", 1)
    clock.now += 2 * DAY_SECONDS
    quota.take("ann", 240)
    with pytest.raises(BadRequest) as refusal:
        quota.take("ann", 241)
    assert refusal.value.details["allowed"] == "at most 240 tokens in one capture"


def test_what_is_given_back_is_there_again_and_no_more() -> None:
    clock = Clock()
    quota = TokenQuota(100, 10, clock)
    quota.take("ann", 60)
    quota.give_back("ann", 500)
    quota.take("ann", 100)
    quota.give_back("bob", 5)
    assert len(quota) == 1


def test_what_an_earlier_coordinator_granted_counts_as_far_as_it_is_not_back() -> None:
    clock = Clock()
    clock.now = 10 * DAY_SECONDS
    quota = TokenQuota(100, 10, clock)
    quota.took("ann", 80, clock.now - DAY_SECONDS / 4)  # of which 25 are there again
    with pytest.raises(BadRequest, match="45 are left"):
        quota.take("ann", 46)
    quota.took("old", 80, 0.0)
    quota.take("old", 100)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 50), st.floats(0, DAY_SECONDS / 2)), max_size=30))
def test_the_table_is_bounded_and_nobody_gets_more_than_a_day_and_what_came_back(
    asked: list[tuple[str, int, float]],
) -> None:
    clock, granted = Clock(), dict.fromkeys("abcdef", 0)
    quota = TokenQuota(100, 6, clock)
    begin = clock.now
    for name, tokens, pause_seconds in asked:
        clock.now += pause_seconds
        try:
            quota.take(name, tokens)
        except BadRequest:
            continue
        granted[name] += tokens
        assert granted[name] <= 100 * (1 + (clock.now - begin) / DAY_SECONDS) + 1e-6
    small = TokenQuota(100, 3, clock)
    for name in "abcdef":
        small.take(name, 10)
    assert len(small) == 3


def test_without_a_quota_nothing_is_counted() -> None:
    quota = TokenQuota(None, 10)
    quota.take("ann", 10**18)
    quota.took("ann", 5, 0.0)
    quota.give_back("ann", 5)
    assert len(quota) == 0


def test_the_speed_is_that_of_the_last_shards_and_all_workers() -> None:
    speed = Speed()
    assert speed.seconds(100, 1) is None
    for _ in range(200):
        speed.observe(1000, 100)
    assert speed.seconds(100, 1) == pytest.approx(10)
    assert speed.seconds(100, 4) == pytest.approx(2.5)
    assert speed.seconds(100, 0) is None
    speed.observe(5, 0)  # a shard that another worker had captured
    for _ in range(200):
        speed.observe(1000, 10)
    assert speed.seconds(100, 1) == pytest.approx(1, rel=0.01)


def test_principals_beyond_the_bound_share_one_number_that_never_falls() -> None:
    used = UsedBy(2)
    for name in ("ann", "bob", "cid", "dan", "ann"):
        used.add(name, Used(7, 1.5))
    assert used.principals == {"ann": Used(14, 3.0), "bob": Used(7, 1.5), "other": Used(14, 3.0)}


def test_who_is_beyond_a_quota_of_use_comes_back_when_the_time_has_made_up_for_it() -> None:
    clock = Clock()
    quotas = UseQuotas(600, 3600.0, 10, clock)
    quotas.check("ann")
    quotas.used("ann", Used(650, 1.0))  # more than there was: it is counted after the use
    with pytest.raises(BadRequest, match=r"ann has used 650 of tokens_a_minute, which is 600; .* again in 5 s") as soon:
        quotas.check("ann")
    assert soon.value.reason == "BUSY"
    assert soon.value.details == {
        "field": "tokens_a_minute", "value": "650", "allowed": "at most 600; again in 5 s", "retry_seconds": "5.0",
    }  # fmt: skip
    quotas.check("bob")
    clock.now += 5.1
    quotas.check("ann")
    quotas.used("ann", Used(0, 3600.0 + 1800.0))
    with pytest.raises(BadRequest, match=r"device_seconds_an_hour, which is 3600") as late:
        quotas.check("ann")
    # So long no client waits: it would end by its deadline, and not learn why.
    assert (late.value.reason, "retry_seconds" in late.value.details) == ("LIMIT_EXCEEDED", False)
    assert quotas.refusals == {"tokens_a_minute": 1, "device_seconds_an_hour": 1}


@given(st.lists(st.tuples(st.integers(1, 400), st.floats(0.0, 30.0)), max_size=60))
def test_over_a_longer_time_nobody_gets_more_than_the_quota(asked: list[tuple[int, float]]) -> None:
    clock = Clock()
    quotas, began, used = UseQuotas(600, None, 10, clock), clock.now, 0
    for tokens, pause in asked:
        try:
            quotas.check("ann")
        except BadRequest:
            clock.now += pause
            continue
        quotas.used("ann", Used(tokens))
        used += tokens
        # A full bucket, what came back, and the last use, which is known after it.
        assert used <= 600 + 10 * (clock.now - began) + tokens + 1e-6
        clock.now += pause


def test_without_quotas_nobody_is_refused_and_nothing_is_remembered() -> None:
    buckets = Buckets(Quota("none", None, 60.0), 10)
    buckets.use("ann", 1e12)
    assert (len(buckets), buckets.in_debt("ann"), buckets.seconds_until("ann")) == (0, False, 0.0)
    assert not CoordinatorLimits().limits_use
    assert CoordinatorLimits(device_seconds_an_hour=1.0).limits_use
