"""The order in which captures wait, which of them starts next, and when."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actstore_api.records.capture import CaptureClass
from actstore_worker.capture.queueing.fair_queue import Flow

# One of so many places of a class is kept for principals that have none.
_KEPT = 4


@dataclass(frozen=True)
class Entry:
    """A capture that runs or waits. Those of a class start in order of `turn`, then of age. `token_layers` is the
    estimated work that is left.
    """

    run: str
    flow: Flow
    turn: float
    submitted_seconds: float
    token_layers: float


@dataclass(frozen=True)
class Places:
    """How many captures may run at once, by class, and how many of them of one principal."""

    by_class: Mapping[CaptureClass, int]
    of_principal: int


@dataclass(frozen=True)
class Place:
    """A place in the queue: `position` from 1; `ahead` are captures of the same principal and class that run or wait
    before it.
    """

    position: int
    ahead: int


class Turns:
    """Gives each capture of one class its turn, by start-time fair queueing: a principal's captures follow each other
    by their work, and a principal that comes later does not wait for what others had before.

    Goyal, Vin and Cheng (1996), "Start-time fair queuing". A turn is stored with its capture, so that nothing is lost
    with the process.
    """

    def __init__(self) -> None:
        self._now = 0.0  # The latest turn that has started.
        self._next: dict[str, float] = {}  # By principal, as long as it is later than now.

    def give(self, principal: str, token_layers: float) -> float:
        turn = max(self._now, self._next.get(principal, 0.0))
        self.gave(principal, turn, token_layers)
        return turn

    def gave(self, principal: str, turn: float, token_layers: float) -> None:
        """A turn that was given before."""
        self._next[principal] = max(turn + token_layers, self._next.get(principal, 0.0))

    def started(self, turn: float) -> None:
        self._now = max(self._now, turn)
        self._next = {name: later for name, later in self._next.items() if later > self._now}


def in_order(waiting: Sequence[Entry], running: Sequence[Entry]) -> list[tuple[Entry, int]]:
    """Returns the captures that wait in the order in which they start, interactive ones first, each with the captures
    of its flow ahead of it.
    """
    ahead = Counter(entry.flow for entry in running)
    found = []
    for entry in sorted(waiting, key=_order):
        found.append((entry, ahead[entry.flow]))
        ahead[entry.flow] += 1
    return found


def next_to_start(waiting: Sequence[Entry], running: Sequence[Entry], places: Places) -> Entry | None:
    """Returns the first capture in order that has a place."""
    taken = Counter(entry.flow.capture_class for entry in running)
    for entry, ahead in in_order(waiting, running):
        there_are = places.by_class[entry.flow.capture_class]
        free = there_are - taken[entry.flow.capture_class]
        if ahead < places.of_principal and free > (there_are // _KEPT if ahead else 0):
            return entry
    return None


def that_wait(waiting: Sequence[Entry], running: Sequence[Entry], places: Places) -> list[Entry]:
    """Returns the captures that still wait after all that have a place have started."""
    left, started = list(waiting), list(running)
    while entry := next_to_start(left, started, places):
        left.remove(entry)
        started.append(entry)
    return left


def place_of(run: str, waiting: Sequence[Entry], running: Sequence[Entry]) -> Place:
    """Returns the place of a capture that waits."""
    ordered = enumerate(in_order(waiting, running), start=1)
    return next(Place(position, ahead) for position, (entry, ahead) in ordered if entry.run == run)


def token_layers_before(
    run: str, waiting: Sequence[Entry], running: Sequence[Entry], places: Places, bulk_share: float
) -> float:
    """Estimates the work that is done before a capture that waits gets its place, under ideal sharing: until then each
    other principal gets as much as this one, or all that it has left.
    """
    [entry] = (found for found in waiting if found.run == run)
    before = _own_work_before(entry, waiting, running, places)
    left = _work_by_flow([*waiting, *running])
    kind, other = entry.flow.capture_class, "bulk" if entry.flow.capture_class == "interactive" else "interactive"
    of_class = before + sum(
        min(work, before) for flow, work in left.items() if flow.capture_class == kind and flow != entry.flow
    )
    share = bulk_share if kind == "bulk" else 1 - bulk_share
    of_other = sum(work for flow, work in left.items() if flow.capture_class == other)
    return of_class + (min(of_other, of_class * (1 - share) / share) if share else of_other)


def _own_work_before(entry: Entry, waiting: Sequence[Entry], running: Sequence[Entry], places: Places) -> float:
    """The work of this principal's captures that must end before this one has a place. If it only waits for a place of
    others: the least that one of them has left.
    """
    own = sorted((found for found in running if found.flow == entry.flow), key=_order)
    own += sorted(
        (found for found in waiting if found.flow == entry.flow and _order(found) < _order(entry)), key=_order
    )
    must_end = own[: max(0, len(own) + 1 - places.of_principal)]
    if must_end:
        return sum(found.token_layers for found in must_end)
    of_class = [found.token_layers for found in running if found.flow.capture_class == entry.flow.capture_class]
    return min(of_class, default=0.0)


def _work_by_flow(entries: Sequence[Entry]) -> Mapping[Flow, float]:
    found: defaultdict[Flow, float] = defaultdict(float)
    for entry in entries:
        found[entry.flow] += entry.token_layers
    return found


def _order(entry: Entry) -> tuple[bool, float, float, str]:
    return entry.flow.capture_class == "bulk", entry.turn, entry.submitted_seconds, entry.run
