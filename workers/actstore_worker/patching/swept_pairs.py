"""The pairs of a sweep, run when they are wanted, and what is said of them in the end."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from actstore_api.records.patching import SweepAudit, SweepResult
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.prompts import token_texts
from actstore_worker.patching.direct import Share
from actstore_worker.patching.inputs.sources import Given, Replacing
from actstore_worker.patching.legs import Leg
from actstore_worker.patching.metrics import Metrics
from actstore_worker.patching.plan import SweepPlan
from actstore_worker.patching.screening import Screened
from actstore_worker.patching.tables import baseline_table, direct_table, token_table
from actstore_worker.patching.unpatched import Pair, run_pair
from actstore_worker.provenance import live_provenance


class Pairs:
    """Of many pairs' runs not all fit into memory: each is run again when it is wanted again, but for the first."""

    def __init__(self, model: LanguageModel, plan: SweepPlan, given: Given) -> None:
        self.model, self.plan, self._given = model, plan, given
        # [pair, row of the grid]
        self.unchanged = np.array([[plan.is_unchanged(entry, pair) for entry in plan.grid] for pair in plan.pairs])
        self.first = run_pair(model, plan.pairs[0], plan.recorded_sites)
        self._metrics: list[tuple[Metrics, Metrics]] = []
        self._shares: list[tuple[Sequence[Share], Sequence[Share]]] = []

    def get(self, number: int) -> Pair:
        return run_pair(self.model, self.plan.pairs[number], self.plan.recorded_sites) if number else self.first

    def legs(self, screened: Mapping[str, Screened]) -> Iterator[Leg]:
        """Each pair in each direction."""
        for number in range(len(self.plan.pairs)):
            pair = self.get(number)
            self._metrics.append((pair.clean.metrics, pair.corrupt.metrics))
            self._shares.append((pair.clean.shares, pair.corrupt.shares))
            for direction, chosen in screened.items():
                replacing = self.replacing(pair, direction)
                yield Leg(self.plan, number, pair, replacing, chosen, self.unchanged[number])

    def replacing(self, pair: Pair, direction: str) -> Replacing:
        base, source = pair.sides(direction)
        return Replacing(self.plan, self._given, pair.tokens, direction, base.recording, source.recording)

    def end(self, audit: SweepAudit) -> SweepResult:
        """Once all legs were there."""
        first = self.first
        clean_answer, corrupt_answer = token_texts(self.model, first.answers)
        return SweepResult(
            tokens=token_table(first.clean.texts, first.corrupt.texts),
            baselines=baseline_table(self._metrics),
            direct=direct_table(self._shares),
            clean_answer=clean_answer,
            corrupt_answer=corrupt_answer,
            clean_logit_difference=float(first.clean.metrics.logit_difference[0]),
            corrupt_logit_difference=float(first.corrupt.metrics.logit_difference[0]),
            audit=audit,
            provenance=live_provenance(self.model, self.plan.sae),
            stored_rows=None if self._given.stored is None else self._given.stored.taken,
        )
