"""Deficit round robin: every principal its share, compared to ideal sharing; and the share that bulk keeps."""

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actstore_worker.capture.queueing.fair_queue import FairQueue, Flow, RoundRobin
from tests.worker.queueing import fluid

COSTS = st.floats(1, 100)
SHARDS = st.dictionaries(st.sampled_from("abcdef"), st.lists(COSTS, min_size=1, max_size=30), min_size=1)
QUANTA = st.floats(0.5, 200)


def order(shards: Mapping[str, Sequence[float]], choose: Callable[[dict[str, float]], str]) -> list[tuple[str, int]]:
    """The shards in the order in which they are served, by principal and index."""
    left = {name: deque(enumerate(costs)) for name, costs in shards.items()}
    found = []
    while waiting := {name: costs[0][1] for name, costs in left.items() if costs}:
        chosen = choose(waiting)
        index, _ = left[chosen].popleft()
        found.append((chosen, index))
    return found


@given(SHARDS, QUANTA)
def test_everything_is_served_once_and_in_its_own_order(shards: dict[str, list[float]], quantum: float) -> None:
    found = order(shards, RoundRobin(quantum).choose)
    assert sorted(found) == [(name, index) for name in sorted(shards) for index in range(len(shards[name]))]
    for name in shards:
        own = [index for of, index in found if of == name]
        assert own == sorted(own)


@given(SHARDS, QUANTA)
def test_who_waits_gets_what_ideal_sharing_gives_within_a_quantum_and_a_shard_of_each(
    shards: dict[str, list[float]], quantum: float
) -> None:
    """At every moment; so nobody starves, however many shards others have."""
    most = max(max(costs) for costs in shards.values())
    work = {name: sum(costs) for name, costs in shards.items()}
    got, done = Counter[str](), 0.0
    for name, index in order(shards, RoundRobin(quantum).choose):
        got[name] += shards[name][index]
        done += shards[name][index]
        ideal = fluid.served(work, done)
        assert all(abs(got[each] - ideal[each]) <= (quantum + 2 * most) * len(work) for each in work)


@given(st.integers(2, 5), st.lists(COSTS, min_size=1, max_size=5), QUANTA, st.integers(20, 60))
def test_of_two_that_always_wait_neither_is_ahead_by_more_than_a_quantum_and_two_shards(
    principals: int, costs: list[float], quantum: float, steps: int
) -> None:
    """The bound of the paper: between any two moments."""
    names, queue, got = "abcde"[:principals], RoundRobin(quantum), Counter[str]()
    at = dict.fromkeys(names, 0)
    history = [dict.fromkeys(names, 0.0)]
    for _ in range(steps):
        waiting = {name: costs[(at[name] + names.index(name)) % len(costs)] for name in names}
        chosen = queue.choose(waiting)
        got[chosen] += waiting[chosen]
        at[chosen] += 1
        history.append({name: got[name] for name in names})
    bound = quantum + 2 * max(costs) + 1e-6
    for begin in history[:: max(1, steps // 5)]:
        gained = [history[-1][name] - begin[name] for name in names]
        assert max(gained) - min(gained) <= bound


@given(SHARDS, QUANTA)
def test_a_shard_ends_at_most_a_round_after_it_would_under_ideal_sharing(
    shards: dict[str, list[float]], quantum: float
) -> None:
    most, done, late = max(max(costs) for costs in shards.values()), 0.0, []
    ideal = fluid.ends(shards)
    for name, index in order(shards, RoundRobin(quantum).choose):
        done += shards[name][index]
        late.append(done - ideal[name, index])
    assert max(late) <= (quantum + 2 * most) * len(shards)


def test_shards_of_many_quanta_take_no_time_to_choose() -> None:
    queue = RoundRobin(quantum=1e-6)
    chosen = [queue.choose({"a": 1e9, "b": 1e9}) for _ in range(10)]
    assert Counter(chosen) == {"a": 5, "b": 5}


def test_who_comes_back_has_saved_nothing() -> None:
    """A principal that waited for nothing for long gets no more than its share from now on."""
    queue = RoundRobin(quantum=10)
    assert [queue.choose({"a": 1, "b": 1}) for _ in range(20)] == ["a"] * 10 + ["b"] * 10
    assert [queue.choose({"b": 1}) for _ in range(95)] == ["b"] * 95
    found = Counter(queue.choose({"a": 1, "b": 1}) for _ in range(40))
    assert abs(found["a"] - found["b"]) <= 10


@settings(max_examples=30)
@given(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9]), st.lists(COSTS, min_size=1, max_size=4))
def test_interactive_captures_come_first_and_bulk_keeps_its_share(share: float, costs: list[float]) -> None:
    queue, got = FairQueue(quantum=50, bulk_share=share), Counter[str]()
    for step in range(400):
        waiting = {Flow("interactive", "a"): costs[step % len(costs)], Flow("bulk", "a"): costs[-1 - step % len(costs)]}
        chosen = queue.choose(waiting)
        got[chosen.capture_class] += waiting[chosen]
        within = 2 * max(costs)
        assert abs(got["bulk"] - share * sum(got.values())) <= within


def test_what_one_class_does_not_need_the_other_gets() -> None:
    queue = FairQueue(quantum=10, bulk_share=0.25)
    flows = [Flow("bulk", "a"), Flow("bulk", "b")]
    assert Counter(queue.choose(dict.fromkeys(flows, 10.0)) for _ in range(10)) == dict.fromkeys(flows, 5)
    assert queue.choose({Flow("interactive", "c"): 1.0, **dict.fromkeys(flows, 10.0)}) == Flow("interactive", "c")
    assert all(queue.choose({Flow("interactive", "c"): 5.0}).principal == "c" for _ in range(100))
    # Nothing was owed to bulk, because none waited.
    assert queue.choose({Flow("interactive", "c"): 1.0, Flow("bulk", "a"): 1.0}).principal == "c"


@pytest.mark.parametrize("principals", [2, 3])
def test_two_classes_of_a_principal_do_not_share_its_turn(principals: int) -> None:
    queue = FairQueue(quantum=1, bulk_share=0.5)
    waiting = {Flow(kind, name): 1.0 for kind in ("interactive", "bulk") for name in "abc"[:principals]}
    assert set(Counter(queue.choose(waiting) for _ in range(60)).values()) == {60 // len(waiting)}
