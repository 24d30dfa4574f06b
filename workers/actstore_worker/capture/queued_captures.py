"""The captures of a coordinator in the order in which they were submitted: which run, which wait, and until when."""

import contextlib
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

from actstore_api.logs.traces import traceparent
from actstore_api.records.capture import CaptureClass, CaptureSpecification, QueuePlace, QueueTotals
from actstore_storage.format.specification import RunRecord
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.wanted import Queued
from actstore_worker.capture.limits import CoordinatorLimits
from actstore_worker.capture.planning.work import token_layers_per_shard
from actstore_worker.capture.queueing.fair_queue import Flow
from actstore_worker.capture.queueing.progress import CaptureState
from actstore_worker.capture.queueing.quotas import TokenQuota, check_queue
from actstore_worker.capture.queueing.usage import Speed
from actstore_worker.capture.queueing.waiting import (
    Entry,
    Places,
    Turns,
    next_to_start,
    place_of,
    that_wait,
    token_layers_before,
)


class QueuedCaptures:
    """Every capture that a coordinator knows, by run. All methods run in one event loop."""

    def __init__(self, limits: CoordinatorLimits) -> None:
        self._limits = limits
        self._captures: dict[str, CaptureState] = {}
        self._beginning: dict[str, Entry] = {}  # Captures with a place that are not in `_captures` yet.
        self._places = Places(
            {"interactive": limits.interactive_captures, "bulk": limits.captures}, limits.captures_per_principal
        )
        self._tokens = TokenQuota(limits.tokens_a_day, limits.principals)
        self._totals = {kind: QueueTotals(kind) for kind in self._places.by_class}
        self._turns = {kind: Turns() for kind in self._places.by_class}
        self.speed = Speed()

    @property
    def refusals_of_tokens(self) -> int:
        """Captures that were refused because a day's tokens were used up."""
        return self._tokens.refusals

    def get(self, run: str) -> CaptureState | None:
        return self._captures.get(run)

    def is_active(self, run: str) -> bool:
        return run in self._captures and self._captures[run].active

    @property
    def active(self) -> list[str]:
        """Runs that are captured or wait for it."""
        return [run for run, capture in self._captures.items() if capture.active]

    @property
    def running(self) -> int:
        return len(self._entries(waiting=False))

    @property
    def paused(self) -> int:
        return sum(capture.state == "paused" for capture in self._captures.values())

    @contextlib.contextmanager
    def new_place(self, record: RunRecord, principal: str, committed: int) -> Iterator[Queued]:
        """Reserves a place and tokens for a run before anything of it is in the bucket, so that simultaneous requests
        cannot exceed the limits. `committed` are tokens of the run that are there already.

        Errors: BadRequest LIMIT_EXCEEDED.
        """
        work, tokens = record.shards_total * token_layers_per_shard(record), record.tokens_total - committed
        kind: CaptureClass = "interactive" if work <= self._limits.interactive_token_layers else "bulk"
        self._check(Entry(record.run, Flow(kind, principal), math.inf, math.inf, work))
        self._tokens.take(principal, tokens)
        queued = Queued(principal, kind, time.time(), self._turns[kind].give(principal, work), traceparent())
        self._beginning[record.run] = Entry(
            record.run, Flow(kind, principal), queued.turn, queued.submitted_seconds, work
        )
        try:
            yield queued
        except BaseException:
            self._tokens.give_back(principal, tokens)
            raise
        finally:
            del self._beginning[record.run]

    def enter(self, snapshot: Snapshot, request: CaptureSpecification, queued: Queued) -> CaptureState:
        """Puts a capture into the queue."""
        run = snapshot.record.run
        self._captures.pop(run, None)
        self._forget_old()
        capture = self._captures[run] = CaptureState.of(snapshot)
        capture.queued, capture.request, capture.waits = queued, request, True
        return capture

    def enter_again(self, snapshot: Snapshot, request: CaptureSpecification, queued: Queued) -> None:
        """Puts a capture into the queue that an earlier coordinator had accepted."""
        record = snapshot.record
        work = record.shards_total * token_layers_per_shard(record)
        self._turns[queued.capture_class].gave(queued.principal, queued.turn, work)
        self._tokens.took(queued.principal, record.tokens_total - snapshot.tokens_committed, queued.submitted_seconds)
        self.enter(snapshot, request, queued)

    def start_next(self) -> CaptureState | None:
        """Takes the next capture that has a place out of the queue. None: no capture has one."""
        entry = next_to_start(self._entries(waiting=True), self._entries(waiting=False), self._places)
        if entry is None:
            return None
        capture = self._captures[entry.run]
        capture.leave_queue()
        self._turns[capture.queued.capture_class].started(capture.queued.turn)
        totals = self._totals[capture.queued.capture_class]
        started, waited_seconds = totals.captures_started + 1, totals.waited_seconds + capture.waited_seconds
        self._totals[totals.capture_class] = replace(totals, captures_started=started, waited_seconds=waited_seconds)
        return capture

    def ended(self, capture: CaptureState) -> None:
        """Gives back the tokens that were not captured."""
        self._tokens.give_back(capture.queued.principal, capture.record.tokens_total - capture.tokens_committed)

    def place(self, capture: CaptureState, workers: int) -> QueuePlace | None:
        """None for a capture that does not wait."""
        if not capture.waits:
            return None
        run, waiting, running = capture.record.run, self._entries(waiting=True), self._entries(waiting=False)
        found = place_of(run, waiting, running)
        before = token_layers_before(run, waiting, running, self._places, self._limits.bulk_share)
        return QueuePlace(found.position, found.ahead, self.speed.seconds(before, workers))

    def totals(self) -> tuple[QueueTotals, ...]:
        waiting = [capture for capture in self._captures.values() if capture.waits]
        return tuple(_with_waiting(totals, waiting) for totals in self._totals.values())

    def _check(self, entry: Entry) -> None:
        others = [*self._entries(waiting=True), *self._beginning.values()]
        waiting = that_wait([*others, entry], self._entries(waiting=False), self._places)
        if entry in waiting:
            own = sum(other.flow.principal == entry.flow.principal for other in waiting) - 1
            check_queue(len(waiting) - 1, own, self._limits.queued_captures, self._limits.queued_per_principal)

    def _entries(self, *, waiting: bool) -> list[Entry]:
        return [one.entry for one in self._captures.values() if one.active and one.waits == waiting]

    def _forget_old(self) -> None:
        ended = [run for run, capture in self._captures.items() if not capture.active]
        for run in ended[: max(0, len(ended) - self._limits.finished_captures + 1)]:
            del self._captures[run]


def _with_waiting(totals: QueueTotals, waiting: Iterable[CaptureState]) -> QueueTotals:
    seconds = [one.waited_seconds for one in waiting if one.queued.capture_class == totals.capture_class]
    return replace(totals, captures_queued=len(seconds), oldest_seconds=max(seconds, default=0.0))
