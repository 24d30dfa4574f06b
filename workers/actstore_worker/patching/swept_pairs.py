"""The unpatched runs of a sweep's pairs, which patched runs start from, take activations from, and are
compared with.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from actstore_api.records.patching import SweepAudit, SweepResult
from actstore_storage.errors import BadRequest
from actstore_storage.format.sites import Site
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.prompts import token_texts
from actstore_worker.patching.direct import Share, direct_shares
from actstore_worker.patching.inputs.prompts import PairTokens
from actstore_worker.patching.kernels.recording import Recording, record
from actstore_worker.patching.metrics import SMALLEST_DIFFERENCE, Metrics
from actstore_worker.patching.plan import SweepPlan
from actstore_worker.patching.replacing import Given, Replacing
from actstore_worker.patching.tables import baseline_table, direct_table, token_table
from actstore_worker.provenance import live_provenance


@dataclass(frozen=True)
class Prompt:
    """One unpatched prompt of a pair: its run, its metrics compared with the other prompt's, and its direct shares."""

    recording: Recording
    metrics: Metrics
    texts: list[str]
    shares: list[Share]


@dataclass(frozen=True)
class Pair:
    tokens: PairTokens
    clean: Prompt
    corrupt: Prompt

    def sides(self, direction: str) -> tuple[Prompt, Prompt]:
        """Returns the base run and the source run."""
        return (self.corrupt, self.clean) if direction == "denoise" else (self.clean, self.corrupt)

    @property
    def answers(self) -> tuple[int, int]:
        return self.tokens.clean_answer, self.tokens.corrupt_answer


def run_pair(model: LanguageModel, tokens: PairTokens, sites: Iterable[Site]) -> Pair:
    """Runs both prompts of a pair. `sites`: those whose activations patches take. Direct shares also need every head's
    z.
    """
    wanted = {*sites, *(Site(layer, "z") for layer in range(model.layer_count))}
    clean, corrupt = (record(model, ids, wanted) for ids in (tokens.clean, tokens.corrupt))
    answers = tokens.clean_answer, tokens.corrupt_answer
    prompts = []
    for recording, other in ((clean, corrupt), (corrupt, clean)):
        metrics = Metrics.of(recording.logits[None], answers, other.logits)
        texts, shares = model.texts.in_order(recording.tokens.tolist()), direct_shares(model, recording, answers)
        prompts.append(Prompt(recording, metrics, texts, shares))
    return Pair(tokens, *prompts)


class Pairs:
    """The pairs of a sweep. Not all of their runs fit into memory: all except the first are run again when they are
    needed.
    """

    def __init__(self, model: LanguageModel, plan: SweepPlan, given: Given) -> None:
        self.model, self.plan, self._given = model, plan, given
        # [pair, row of the grid]
        self.unchanged = np.array([[plan.is_unchanged(entry, pair) for entry in plan.grid] for pair in plan.pairs])
        self.first = run_pair(model, plan.pairs[0], plan.recorded_sites)
        self._metrics: list[tuple[Metrics, Metrics]] = []
        self._shares: list[tuple[Sequence[Share], Sequence[Share]]] = []

    def get(self, number: int) -> Pair:
        return run_pair(self.model, self.plan.pairs[number], self.plan.recorded_sites) if number else self.first

    def each(self) -> Iterator[Pair]:
        """Yields pairs in order, and keeps what the result needs of each."""
        for number in range(len(self.plan.pairs)):
            pair = self.get(number)
            self._metrics.append((pair.clean.metrics, pair.corrupt.metrics))
            self._shares.append((pair.clean.shares, pair.corrupt.shares))
            yield pair

    def replacing(self, pair: Pair, direction: str) -> Replacing:
        base, source = pair.sides(direction)
        return Replacing(self.plan, self._given, pair.tokens, direction, base.recording, source.recording)

    def end(self, audit: SweepAudit) -> SweepResult:
        """Returns the result, after all pairs have run."""
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


def check_apart(pair: Pair) -> None:
    """Refuses a pair whose prompts have the same logit difference: BadRequest PROMPTS_INDISTINGUISHABLE."""
    clean, corrupt = (float(prompt.metrics.logit_difference[0]) for prompt in (pair.clean, pair.corrupt))
    if abs(clean - corrupt) < SMALLEST_DIFFERENCE:
        raise BadRequest(
            f"the model does not distinguish the prompts by these answers: the logit difference is {clean:.6g} on "
            "the clean "
            f"prompt and {corrupt:.6g} on the corrupt one, so no effect can be normalized",
            reason="PROMPTS_INDISTINGUISHABLE",
            field="corrupt",
            value=f"{abs(clean - corrupt):.6g}",
            allowed=f"a change of at least {SMALLEST_DIFFERENCE:g}",
        )
