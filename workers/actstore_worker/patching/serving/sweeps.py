"""Runs sweeps on the models that a process has loaded."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any

from actstore_api.records.patching import RunSweep, SweepEstimate, SweepResult
from actstore_worker.caller import ANYONE, Caller
from actstore_worker.models.turns import SharedModel
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.inputs.supplies import Supplies
from actstore_worker.patching.kernels.full import FullForward
from actstore_worker.patching.serving.answer_cache import AnswerCache
from actstore_worker.patching.serving.estimate import estimate_steps
from actstore_worker.patching.serving.scheduler import Job, Pace, Scheduler
from actstore_worker.patching.steps import Steps
from actstore_worker.patching.sweep import Kernels, fastest_kernel, sweep_steps
from actstore_worker.patching.updates import CheckedCells, Finished, SweepUpdate


@dataclass(frozen=True)
class Served:
    """A model, and the state that all of its sweeps share."""

    model: SharedModel
    kernels: Kernels
    pace: Pace


class Sweeps:
    """Runs sweeps in its own thread, which ends with the process."""

    def __init__(self, limits: PatchingLimits, supplies: Supplies) -> None:
        self._limits, self._supplies = limits, supplies
        self._scheduler = Scheduler(limits.tokens_per_slice)
        threading.Thread(target=self._scheduler.run_forever, name="sweeps", daemon=True).start()

    def serve(self, model: SharedModel) -> Served:
        with model.turns:
            kernels = Kernels(fastest_kernel(model), FullForward(model))
        return Served(model, kernels, Pace(self._limits.slice_seconds))

    async def run(
        self, served: Served, request: RunSweep, finished: Finished, caller: Caller = ANYONE
    ) -> AsyncGenerator[SweepUpdate, None]:
        """Yields the updates of a sweep. Errors: as `sweep_steps`; LIMIT_EXCEEDED if it takes longer than the caller
        waits. Closing the generator ends the sweep after the current slice.
        """
        supplies = self._supplies.settled()
        kept = AnswerCache(supplies, self._limits)
        key = await asyncio.to_thread(kept.key, served.model, request, served.kernels.fast.name)
        parts = [] if finished.rows is None else [finished.rows]
        if key is not None and not request.fresh:
            for update in await asyncio.to_thread(kept.find, key, finished):
                yield update
                if isinstance(update, SweepResult):
                    return
        if caller.seconds_left is not None and not finished.cells and served.pace.seconds_per_token_layer is not None:
            caller.check_deadline((await self._estimated(served, request, supplies, caller)).seconds)
        async with aclosing(self._computed(served, request, finished, supplies, caller)) as updates:
            async for update in updates:
                if isinstance(update, CheckedCells):
                    parts.append(update.rows)
                if isinstance(update, SweepResult) and key is not None:
                    await asyncio.to_thread(kept.keep, key, parts, update, fresh=request.fresh)
                yield update

    def _computed(
        self, served: Served, request: RunSweep, finished: Finished, supplies: Supplies, caller: Caller
    ) -> AsyncGenerator[SweepUpdate, None]:
        budget = served.pace.budget
        steps = sweep_steps(served.model, request, self._limits, served.kernels, supplies, budget, finished)
        return self._updates(served, steps, caller)

    async def estimate(self, served: Served, request: RunSweep, caller: Caller = ANYONE) -> SweepEstimate:
        """Returns the estimate of a sweep. Errors: as `estimate_steps`."""
        supplies = self._supplies.settled()
        kept = AnswerCache(supplies, self._limits)
        found = await self._estimated(served, request, supplies, caller)
        key = await asyncio.to_thread(kept.key, served.model, request, served.kernels.fast.name)
        cached = not request.fresh and await asyncio.to_thread(kept.has, key)
        return replace(found, cached=True, seconds=0.0) if cached else found

    async def _estimated(self, served: Served, request: RunSweep, supplies: Supplies, caller: Caller) -> SweepEstimate:
        steps = estimate_steps(served.model, request, self._limits, served.kernels, supplies, served.pace)
        async with aclosing(self._updates(served, steps, caller)) as updates:
            found: SweepEstimate = await anext(updates)
        return found

    async def _updates(self, served: Served, steps: Steps[Any, None], caller: Caller) -> AsyncGenerator[Any, None]:
        loop, there = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
            with suppress(RuntimeError):  # The event loop has ended, so nothing waits for this.
                loop.call_soon_threadsafe(there.set)

        job: Job[Any] = Job(served.model, steps, served.pace, notify, caller.principal)
        self._scheduler.add(job)
        try:
            while True:
                await there.wait()
                there.clear()
                ended = job.ended  # Cleared before updates are taken: later updates set it again.
                for update in job.take():
                    yield update
                if ended:
                    return
                self._scheduler.wake()
        finally:
            job.close()
            self._scheduler.wake()
