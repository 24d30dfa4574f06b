"""What a principal may use: by a clock of the test's own."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actstore_storage.errors import BadRequest
from actstore_worker.capture.queueing.quotas import DAY_SECONDS, TokenQuota
from actstore_worker.capture.queueing.usage import DeviceSeconds, Speed


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
    used = DeviceSeconds(2)
    for name in ("ann", "bob", "cid", "dan", "ann"):
        used.add(name, 1.5)
    assert used.by_principal == {"ann": 3.0, "bob": 1.5, "other": 3.0}
