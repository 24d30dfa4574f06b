"""Which capture starts next, where the others wait, and how much work comes before: without any capture."""

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from actstore_worker.capture.queueing.fair_queue import Flow
from actstore_worker.capture.queueing.waiting import (
    Entry,
    Places,
    Turns,
    in_order,
    next_to_start,
    place_of,
    that_wait,
    token_layers_before,
)

PLACES = Places({"interactive": 2, "bulk": 8}, 2)
NAMES = st.sampled_from(["ann", "bob", "cid", "dan"])


def bulk(run: str, principal: str, turn: float = 0.0, work: float = 10.0) -> Entry:
    return Entry(run, Flow("bulk", principal), turn, 0.0, work)


@settings(max_examples=60)
@given(st.lists(st.tuples(NAMES, st.floats(1, 100)), min_size=1, max_size=40), st.integers(0, 40))
def test_principals_start_as_much_work_as_each_other_within_their_largest_capture(
    submitted: list[tuple[str, float]], restart_at: int
) -> None:
    """One place, all submitted before the first starts; and a process that takes the turns up again changes nothing."""
    turns, waiting = Turns(), list[Entry]()
    for number, (name, work) in enumerate(submitted):
        if number == restart_at:
            turns = Turns()
            for entry in waiting:
                turns.gave(entry.flow.principal, entry.turn, entry.token_layers)
        waiting.append(bulk(f"{number:02}", name, turns.give(name, work), work))
    most, got, left = max(work for _, work in submitted), Counter[str](), Counter(name for name, _ in submitted)
    for entry, _ in in_order(waiting, []):
        behind = [got[name] for name in left if left[name]]
        assert got[entry.flow.principal] <= min(behind) + most
        got[entry.flow.principal] += entry.token_layers
        left[entry.flow.principal] -= 1


def test_who_comes_later_does_not_wait_for_all_that_others_submitted_before() -> None:
    turns = Turns()
    first = [turns.give("ann", 10) for _ in range(5)]
    assert first == [0, 10, 20, 30, 40]
    turns.started(0)
    turns.started(10)
    assert turns.give("bob", 10) == 10
    assert turns.give("bob", 10) == 20
    turns.started(40)
    assert turns.give("cid", 5) == turns.give("bob", 5) == 40  # nobody saves turns
    assert turns.give("ann", 5) == 50


def test_a_principals_captures_do_not_take_every_place() -> None:
    waiting = [bulk(f"a{number}", "ann", 10.0 * number) for number in range(9)]
    assert [entry.run for entry in that_wait(waiting, [], PLACES)] == [f"a{number}" for number in range(2, 9)]
    others = [bulk(name, name) for name in "bcdefg"]
    running = [waiting[0], *others[:5]]
    # Two of eight places are left, which are kept for those who have none.
    assert next_to_start([waiting[1]], running, PLACES) is None
    assert next_to_start([waiting[1], others[5]], running, PLACES) == others[5]
    assert next_to_start([waiting[1]], running[:5], PLACES) == waiting[1]


def test_interactive_captures_come_first_and_have_places_of_their_own() -> None:
    running = [bulk(name, name) for name in "abcdefgh"]
    small = Entry("small", Flow("interactive", "a"), 99.0, 99.0, 1.0)
    late = bulk("late", "ann")
    assert [entry.run for entry, _ in in_order([late, small], running)] == ["small", "late"]
    assert next_to_start([late, small], running, PLACES) == small
    assert next_to_start([late], running, PLACES) is None
    full = [replace(small, run=f"s{number}", flow=Flow("interactive", f"s{number}")) for number in range(2)]
    assert next_to_start([small], full, PLACES) is None


def test_places_are_told_with_what_is_ahead_of_ones_own() -> None:
    waiting, running = [bulk("a1", "ann", 10), bulk("a2", "ann", 20), bulk("b", "bob", 15)], [bulk("a0", "ann")]
    found = {
        run: (place_of(run, waiting, running).position, place_of(run, waiting, running).ahead)
        for run in ("a1", "a2", "b")
    }
    assert found == {"a1": (1, 1), "b": (2, 0), "a2": (3, 2)}


def test_the_work_before_a_capture_is_its_principals_and_as_much_of_each_other() -> None:
    one = Places({"interactive": 1, "bulk": 1}, 1)
    running, waiting = [bulk("a0", "ann", 0, 30)], [bulk("a1", "ann", 40, 7), bulk("b0", "bob", 0, 12)]
    assert token_layers_before("a1", waiting, running, one, 0.25) == 30 + 12
    assert token_layers_before("b0", waiting, running, one, 0.25) == 30 + 30  # it waits for the only place
    small = Entry("s", Flow("interactive", "cid"), 0, 0, 9)
    # Of interactive work, three times as much as of bulk work is done meanwhile, if there is as much.
    assert token_layers_before("a1", waiting, [*running, small], one, 0.25) == 42 + 9
    much = replace(small, token_layers=1000)
    assert token_layers_before("a1", waiting, [*running, much], one, 0.25) == 42 + 126
    assert token_layers_before("a1", waiting, [*running, much], one, 0.0) == 42 + 1000
