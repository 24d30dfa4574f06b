"""Shares the capture workers among principals by deficit round robin, shard by shard.

Shreedhar and Varghese (1995), "Efficient fair queueing using deficit round robin". The cost of a shard is its estimated
token-layers: tokens times the layers that run.
"""

import math
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from actstore_api.records.capture import CaptureClass


class Flow(NamedTuple):
    """The captures of one principal and class."""

    capture_class: CaptureClass
    principal: str


class RoundRobin:
    """Gives each flow that waits the same share. One that stops waiting loses what it did not use."""

    def __init__(self, quantum: float) -> None:
        self._quantum = quantum
        self._order: deque[str] = deque()  # The first one's turn it is.
        self._deficits: dict[str, float] = {}
        self._topped_up = False  # Whether the first one got the quantum of this round.

    def choose(self, costs: Mapping[str, float]) -> str:
        """Returns which flow is next, and charges it. `costs` has the cost of the next shard of each flow that waits,
        at least one. Flows that are new follow the others, in their order.
        """
        self._follow(costs)
        while True:
            for _ in range(len(self._order)):
                chosen = self._order[0]
                if self._affords(chosen, costs[chosen]):
                    self._deficits[chosen] -= costs[chosen]
                    return chosen
                self._order.rotate(-1)
                self._topped_up = False
            self._skip_rounds(costs)

    def _affords(self, flow: str, cost: float) -> bool:
        if not self._topped_up:
            self._deficits[flow] += self._quantum
            self._topped_up = True
        return self._deficits[flow] >= cost

    def _skip_rounds(self, costs: Mapping[str, float]) -> None:
        """Goes at once through the rounds in which no flow could afford its shard, which may cost many quanta."""
        rounds = min(math.ceil((costs[flow] - deficit) / self._quantum) for flow, deficit in self._deficits.items())
        for flow in self._deficits:
            self._deficits[flow] += max(0, rounds - 1) * self._quantum

    def _follow(self, waiting: Mapping[str, float]) -> None:
        if self._order and self._order[0] not in waiting:
            self._topped_up = False
        self._order = deque(flow for flow in self._order if flow in waiting)
        self._order.extend(flow for flow in waiting if flow not in self._deficits)
        self._deficits = {flow: self._deficits.get(flow, 0.0) for flow in self._order}


class FairQueue:
    """Round robin for each class, interactive before bulk. While both wait, bulk gets `bulk_share` of the work."""

    def __init__(self, quantum: float, bulk_share: float) -> None:
        self._rounds = {kind: RoundRobin(quantum) for kind in ("interactive", "bulk")}
        self._bulk_per_interactive = bulk_share / (1 - bulk_share)
        self._owed = 0.0  # What bulk has to get before the next interactive shard, once it is a whole shard.

    def choose(self, costs: Mapping[Flow, float]) -> Flow:
        """Returns the flow whose shard is next, and charges it. `costs` as for RoundRobin.choose."""
        interactive, bulk = (_of_class(costs, kind) for kind in self._rounds)
        if not interactive:
            return self._choose("bulk", bulk)
        if not bulk:
            self._owed = 0.0
            return self._choose("interactive", interactive)
        if self._owed >= min(bulk.values()):
            chosen = self._choose("bulk", bulk)
            self._owed -= costs[chosen]
        else:
            chosen = self._choose("interactive", interactive)
            self._owed += costs[chosen] * self._bulk_per_interactive
        return chosen

    def _choose(self, kind: CaptureClass, costs: Mapping[str, float]) -> Flow:
        return Flow(kind, self._rounds[kind].choose(costs))


def _of_class(costs: Mapping[Flow, float], kind: str) -> dict[str, float]:
    return {flow.principal: cost for flow, cost in costs.items() if flow.capture_class == kind}
