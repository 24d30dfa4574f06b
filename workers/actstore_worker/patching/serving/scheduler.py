"""Runs several sweeps side by side on the models of one process, in slices so short that other work does not wait long.

Principals take turns, and the sweeps of one principal take turns in its own: who runs many sweeps is not served more
often than who runs one. Slices of sweeps of the same
model, with prompts of the same length, share a batch.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from typing import Any, Generic, TypeVar

from actstore_worker.models.turns import SharedModel
from actstore_worker.patching.steps import Ran, Steps, Work

# Token-layers of the first slice of a model whose speed is unknown: even a large model computes this quickly.
FIRST_TOKEN_LAYERS = 512.0
# The most updates that a sweep may have pending; then it waits until they are taken.
UPDATES_MAX = 64
# The weight of earlier measurements of speed relative to the last slice.
_MEMORY = 0.5

Update = TypeVar("Update")
_log = logging.getLogger(__name__)


class Pace:
    """Measures the speed of a model, and computes how large a slice may be: about `slice_seconds` for all its sweeps
    together.
    """

    def __init__(self, slice_seconds: float) -> None:
        self._slice_seconds = slice_seconds
        self._seconds = self._token_layers = 0.0
        self.sweeps = 0

    @property
    def seconds_per_token_layer(self) -> float | None:
        """The measured speed. None: nothing was measured."""
        return self._seconds / self._token_layers if self._token_layers else None

    def budget(self) -> float:
        """Returns the token-layers of one sweep's next slice."""
        measured = self.seconds_per_token_layer
        found = FIRST_TOKEN_LAYERS if measured is None else self._slice_seconds / measured
        return found / max(1, self.sweeps)

    def observe(self, token_layers: float, seconds: float) -> None:
        """Ignores work without computed layers, such as patches that are written after all of them."""
        if not token_layers:
            return
        self._seconds = _MEMORY * self._seconds + seconds
        self._token_layers = _MEMORY * self._token_layers + token_layers


class Job(Generic[Update]):
    """A running sweep, which uses `model` in its turns. `notify` is called, in the scheduler's thread, whenever there
    is an update to take.
    """

    def __init__(
        self,
        model: SharedModel,
        steps: Steps[Update, None],
        pace: Pace,
        notify: Callable[[], None],
        principal: str = "",
    ) -> None:
        self.model, self.pace, self._steps, self._notify = model, pace, steps, notify
        self.principal = principal
        # With the request's id, for the log.
        self.context = copy_context()
        self._updates: deque[Update] = deque()
        self._error: Exception | None = None
        self._ran: Ran | None = None
        self._seconds = 0.0
        self.work: Work | None = None
        self.ended = self.closed = False

    @property
    def can_advance(self) -> bool:
        """Whether the job has no unfinished work, and its updates are being taken."""
        return self.work is None and not self.ended and not self.closed and len(self._updates) < UPDATES_MAX

    def take(self) -> Iterator[Update]:
        """Returns the updates since the last call. Errors: the sweep's own, after the last update."""
        while self._updates:
            yield self._updates.popleft()
        if self.ended and self._error is not None:
            raise self._error

    def close(self) -> None:
        """Ends the job, because its updates are no longer needed."""
        self.closed = True

    def advance(self) -> None:
        """Runs the sweep up to its next work, or until it has updates."""
        began = time.monotonic()
        ran, self._ran = self._ran, None
        try:
            step = self._steps.send(ran)
        except StopIteration:
            self._end(None)
        except Exception as error:  # noqa: BLE001  its own, for who takes it
            self._end(error)
        else:
            if isinstance(step, Work):
                self.work = step
            else:
                self._updates.append(step)
                self._notify()
        if ran is not None:
            self.pace.observe(ran.token_layers, self._seconds + time.monotonic() - began)

    def answer(self, ran: Ran, seconds: float) -> None:
        self._ran, self._seconds, self.work = ran, seconds, None

    def fail(self, error: Exception) -> None:
        self.work = None
        self._steps.close()
        self._end(error)

    def drop(self) -> None:
        """Closes the job without a notification."""
        self.work, self.ended = None, True
        self._steps.close()

    def _end(self, error: Exception | None) -> None:
        self._error, self.ended = error, True
        self._notify()


class Scheduler:
    """Runs the jobs. Whatever jobs do with their models happens in the models' turns."""

    def __init__(self, tokens_per_slice: int) -> None:
        self._tokens_per_slice = tokens_per_slice
        self._changed = threading.Condition()
        self._jobs: deque[Job[Any]] = deque()
        # By principal, when it last had its turn, in turns.
        self._last_turns: dict[str, int] = {}
        self._turns = 0
        # The number of batches that were run.
        self.batches = 0

    def add(self, job: Job[Any]) -> None:
        with self._changed:
            self._jobs.append(job)
            job.pace.sweeps += 1
            self._changed.notify_all()

    def wake(self) -> None:
        """Wakes the scheduler after updates were taken or a job was closed."""
        with self._changed:
            self._changed.notify_all()

    def run_forever(self) -> None:
        while True:
            with self._changed:
                while not self._runnable():
                    self._drop_closed()
                    self._changed.wait()
            self.turn()

    def turn(self) -> None:
        """Advances every sweep to its next work, then runs the work of the principal that has waited longest, together
        with work that fits into the same batch.
        """
        with self._changed:
            self._drop_closed()
            jobs = list(self._jobs)
        for job in jobs:
            while job.can_advance:
                job.model.turns.work_for(job.principal)
                with job.model.turns:
                    job.advance()
        with self._changed:
            self._let_go([job for job in self._jobs if job.ended])
            batch = self._batch()
            for job in batch:  # To the end of the queue.
                self._jobs.remove(job)
                self._jobs.append(job)
            self._note_turn(batch)
        if batch:
            turns = batch[0].model.turns  # The same kernel implies the same model.
            turns.work_for(*(job.principal for job in batch))
            with turns:
                self._run(batch)

    def _runnable(self) -> bool:
        return any(job.can_advance or (job.work is not None and not job.closed) for job in self._jobs)

    def _drop_closed(self) -> None:
        closed = [job for job in self._jobs if job.closed]
        self._let_go(closed)
        for job in closed:
            job.drop()

    def _let_go(self, jobs: Sequence[Job[Any]]) -> None:
        for job in jobs:
            self._jobs.remove(job)
            job.pace.sweeps -= 1

    def _batch(self) -> list[Job[Any]]:
        waiting = [(job, job.work) for job in self._jobs if job.work is not None and not job.closed]
        waiting.sort(key=lambda found: self._last_turns.get(found[0].principal, 0))  # Of a principal's, in their order.
        if not waiting:
            return []
        (first, work), room = waiting[0], self._tokens_per_slice - _tokens(waiting[0][1])
        batch = [first]
        for job, other in waiting[1:]:
            if other.kernel is work.kernel and _length(other) == _length(work) and _tokens(other) <= room:
                batch.append(job)
                room -= _tokens(other)
        return batch

    def _note_turn(self, batch: Sequence[Job[Any]]) -> None:
        """The first of a batch decided it, so it was its principal's turn. Principals that have no sweep are forgotten
        once all others had a turn after theirs, so that nobody gains by leaving and coming back.
        """
        for job in batch[:1]:
            self._turns += 1
            self._last_turns[job.principal] = self._turns
        first = min((self._last_turns.get(job.principal, 0) for job in self._jobs), default=self._turns)
        self._last_turns = {name: turn for name, turn in self._last_turns.items() if turn >= first}

    def _run(self, batch: Sequence[Job[Any]]) -> None:
        works = [job.work for job in batch if job.work is not None]
        began = time.monotonic()
        try:
            answers = run_together(works)
        except Exception as error:  # noqa: BLE001  the one whose it is gets it
            if len(batch) == 1:
                batch[0].fail(error)
                return
            for job in batch:
                said = f"a batch of {len(batch)} sweeps failed; each is now run separately"
                job.context.run(_log.warning, said, exc_info=error)
                self._run([job])
            return
        self.batches += 1
        for job, ran in zip(batch, answers, strict=True):
            if job.work is not None:
                job.model.turns.ran(_tokens(job.work), job.principal)
            job.answer(ran, (time.monotonic() - began) / len(batch))


def run_together(works: Sequence[Work]) -> list[Ran]:
    """Runs work in one batch. The computed token-layers are divided by each work's price."""
    kernel = works[0].kernel
    before = kernel.count.computed
    logits = kernel.run([patch for work in works for patch in work.patches])
    computed = kernel.count.computed - before
    prices = [sum(kernel.price(patch.cells, _length(work)) for patch in work.patches) for work in works]
    shares = [price / sum(prices) if sum(prices) else 1 / len(works) for price in prices]
    parts = logits.split([len(work.patches) for work in works])
    return [Ran(part, computed * share) for part, share in zip(parts, shares, strict=True)]


def _length(work: Work) -> int:
    return len(work.patches[0].base.tokens)


def _tokens(work: Work) -> int:
    return len(work.patches) * _length(work)
