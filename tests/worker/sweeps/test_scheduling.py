"""Several sweeps on one model: who waits for whom, and that nobody sees any of it in the numbers."""

import asyncio
import itertools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from actstore_api.codec import encode
from actstore_api.records.patching import (
    PromptPair,
    RunSweep,
    RunSweepAnswer,
    Screen,
    SweepCells,
    SweepProgress,
    SweepResult,
)
from actstore_api.records.terms import ModelReference
from actstore_storage.bucket.local import LocalBucket
from actstore_storage.errors import ActstoreError, BadRequest
from actstore_worker.caller import Caller
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.models.loading import load_model
from actstore_worker.models.model import LanguageModel
from actstore_worker.models.turns import Turns, share
from actstore_worker.models.used import Usage
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.inputs.supplies import Supplies
from actstore_worker.patching.kernels.full import FullForward, Patch
from actstore_worker.patching.serving.failover import ProcessDied, going_on
from actstore_worker.patching.serving.scheduler import FIRST_TOKEN_LAYERS, UPDATES_MAX, Job, Pace, Scheduler
from actstore_worker.patching.serving.sweeps import Served, Sweeps
from actstore_worker.patching.steps import Logits, drive
from actstore_worker.patching.sweep import Kernels, WholeSweep, fastest_kernel, run_sweep, sweep_steps
from actstore_worker.patching.updates import NOTHING_FINISHED, CheckedCells, Finished, SweepUpdate
from tests.made_models.random_models import CONTEXT_LENGTH, save_model
from tests.worker.patching.sweeping import assert_same, cells

PAIR = PromptPair("When Mary and John went , Mary gave", "When Mary and John went , John gave", "John", "Mary")
OTHER = PromptPair("When John and Mary went , John gave", "When John and Mary went , Mary gave", "Mary", "John")
BIG = RunSweep(ModelReference("neox"), (PAIR,), sites=("resid_pre", "attn_out", "z", "mlp_out"), source="zero")
ONE = replace(BIG, pairs=(OTHER,), sites=("z",), layers=(1,), heads=(2,), only_positions=(7,), directions=("noise",))
SCREENED = replace(BIG, source="prompt", sites=("z",), screen=Screen(5))
LIMITS = PatchingLimits(tokens_per_slice=180)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "neox", "neox")
    return load_model(ModelCatalog((folder,)).find_model("neox"), device=torch.device("cpu"))


class Side:
    """Sweeps on one scheduler, turn by turn."""

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.scheduler = share(model, Turns()), Scheduler(tokens_per_slice=10_000)
        with self.model.turns:
            self.kernels = Kernels(fastest_kernel(self.model), FullForward(self.model))
        self.pace = Pace(0.25)

    def add(self, request: RunSweep, kernels: Kernels | None = None, principal: str = "") -> Job[Any]:
        steps = sweep_steps(self.model, request, LIMITS, kernels or self.kernels, budget=lambda: 100.0)
        job: Job[Any] = Job(self.model, steps, self.pace, lambda: None, principal)
        self.scheduler.add(job)
        return job

    def finish(self, *jobs: Job[Any]) -> list[list[SweepUpdate]]:
        found: list[list[SweepUpdate]] = [[] for _ in jobs]
        for _ in range(10_000):
            for updates, job in zip(found, jobs, strict=True):
                updates.extend(job.take())
            if all(job.ended for job in jobs):
                return found
            self.scheduler.turn()
        raise AssertionError("the sweeps do not end")


def alone(model: LanguageModel, request: RunSweep) -> WholeSweep:
    *_, result = run_sweep(model, request, LIMITS)
    assert isinstance(result, WholeSweep)
    return result


def test_one_cell_behind_a_large_sweep_answers_within_a_few_batches(model: LanguageModel) -> None:
    side = Side(model)
    large = side.add(BIG)
    for _ in range(5):
        side.scheduler.turn()
    before = side.scheduler.batches
    small = side.add(ONE)
    while not small.ended:
        list(large.take())
        side.scheduler.turn()
    assert side.scheduler.batches - before <= 4  # its cell and control, its audit, and the large sweep's in between
    assert not large.ended
    assert_same(cells(list(small.take())), alone(model, ONE).cells)


def test_who_runs_many_sweeps_is_not_served_more_often_than_who_runs_one(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sweep in batches of its own, as those of different models are."""
    side, served = Side(model), list[str]()
    monkeypatch.setattr(side.scheduler, "_tokens_per_slice", 1)
    honest = side.scheduler._run
    monkeypatch.setattr(side.scheduler, "_run", lambda batch: served.append(batch[0].principal) or honest(batch))
    jobs = [side.add(BIG, principal="ann") for _ in range(3)]
    jobs.append(side.add(BIG, principal="bob"))
    for _ in range(20):
        for job in jobs:
            list(job.take())
        side.scheduler.turn()
    assert served == ["ann", "bob"] * 10
    jobs[-1].close()  # bob leaves and comes back, which gains nothing
    side.scheduler.turn()
    late = side.add(BIG, principal="bob")
    for _ in range(9):
        for job in (*jobs, late):
            list(job.take())
        side.scheduler.turn()
    assert abs(served[20:].count("bob") - 5) <= 1
    assert all(one != other for one, other in itertools.pairwise(served[21:]))


def test_sweeps_of_one_model_share_batches_and_their_numbers_stay(model: LanguageModel) -> None:
    apart = 0
    for request in (BIG, replace(BIG, pairs=(OTHER,))):
        by_itself = Side(model)
        by_itself.finish(by_itself.add(request))
        apart += by_itself.scheduler.batches
    side = Side(model)
    found = side.finish(side.add(BIG), side.add(replace(BIG, pairs=(OTHER,))))
    assert side.scheduler.batches < 0.6 * apart
    for updates, request in zip(found, (BIG, replace(BIG, pairs=(OTHER,))), strict=True):
        expected = alone(model, request)
        assert_same(cells(updates), expected.cells)
        end = updates[-1]
        assert isinstance(end, SweepResult)
        assert end.audit.token_layers == expected.audit.token_layers
        assert end.audit.token_layers_full == expected.audit.token_layers_full
        assert end.audit.audited_cells == expected.audit.audited_cells


def test_what_is_counted_for_sweeps_that_share_is_what_was_computed(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it, but the runs in which cells are replaced by what is there."""
    side = Side(model)
    kernel, run, controls = side.kernels.fast, side.kernels.fast.run, []

    def watched(patches: Sequence[Patch]) -> Tensor:
        own = [patch for patch in patches if patch.source is patch.base]
        controls.extend(kernel.price(patch.cells, len(patch.base.tokens)) for patch in own)
        return run(patches)

    monkeypatch.setattr(kernel, "run", watched)
    ended = [updates[-1] for updates in side.finish(side.add(BIG), side.add(ONE))]
    counted = sum(end.audit.token_layers for end in ended if isinstance(end, SweepResult))
    assert controls
    assert counted == pytest.approx(kernel.count.computed - sum(controls), rel=1e-6)


def test_prompts_of_other_lengths_do_not_share(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it tried: a batch of both would fail, and each be run by itself, with the same answers."""
    short = replace(BIG, pairs=(PromptPair("Mary gave", "John gave", "John", "Mary"),))
    side = Side(model)
    kernel, run, lengths = side.kernels.fast, side.kernels.fast.run, []

    def watched(patches: Sequence[Patch]) -> Tensor:
        lengths.append({len(patch.base.tokens) for patch in patches})
        return run(patches)

    monkeypatch.setattr(kernel, "run", watched)
    for updates, request in zip(side.finish(side.add(BIG), side.add(short)), (BIG, short), strict=True):
        assert_same(cells(updates), alone(model, request).cells)
    assert {frozenset(of_batch) for of_batch in lengths} == {frozenset({3}), frozenset({9})}


def test_a_sweep_that_was_closed_takes_no_more_batches(model: LanguageModel) -> None:
    side = Side(model)
    job = side.add(BIG)
    side.scheduler.turn()
    before = side.scheduler.batches
    job.close()
    for _ in range(3):
        side.scheduler.turn()
    assert (side.scheduler.batches, job.ended, side.pace.sweeps) == (before, True, 0)
    assert all(not part._forward_hooks and not part._forward_pre_hooks for part in model.module.modules())


def test_a_sweep_whose_updates_nobody_takes_waits(model: LanguageModel) -> None:
    side = Side(model)
    job = side.add(replace(BIG, pairs=(PAIR, OTHER)))
    for _ in range(200):
        side.scheduler.turn()
    waiting = side.scheduler.batches
    for _ in range(5):
        side.scheduler.turn()
    assert side.scheduler.batches == waiting
    assert len(list(job.take())) == UPDATES_MAX
    side.scheduler.turn()
    assert side.scheduler.batches > waiting


class Failing(FullForward):
    """Fails on patches of one prompt."""

    def __init__(self, model: LanguageModel, tokens: Sequence[int]) -> None:
        super().__init__(model)
        self._tokens = list(tokens)

    def run(self, patches: Sequence[Patch]) -> Logits:
        if any(patch.base.tokens.tolist() == self._tokens for patch in patches):
            raise RuntimeError("no memory")
        return super().run(patches)


def test_a_batch_that_fails_ends_only_the_sweep_whose_fault_it_is(model: LanguageModel) -> None:
    words = model.tokenizer(OTHER.clean, add_special_tokens=False)["input_ids"]
    side = Side(model)
    kernels = Kernels(Failing(model, [0, *words]), FullForward(model))
    good, bad = side.add(replace(ONE, pairs=(PAIR,)), kernels), side.add(ONE, kernels)
    (updates,) = side.finish(good)
    assert isinstance(updates[-1], SweepResult)
    with pytest.raises(RuntimeError, match="no memory"):
        list(bad.take())


def test_a_refusal_reaches_who_asked(model: LanguageModel) -> None:
    side = Side(model)
    job = side.add(replace(BIG, layers=(9,)))
    side.scheduler.turn()
    with pytest.raises(ActstoreError, match="layer"):
        list(job.take())


def test_a_slice_is_what_fits_into_its_time_for_all_sweeps_together() -> None:
    pace = Pace(0.25)
    assert (pace.seconds_per_token_layer, pace.budget()) == (None, FIRST_TOKEN_LAYERS)
    pace.observe(1000, 0.5)
    assert pace.budget() == pytest.approx(500)
    pace.sweeps = 2
    assert pace.budget() == pytest.approx(250)
    for _ in range(20):
        pace.observe(1000, 0.1)
    assert pace.budget() == pytest.approx(1250, rel=1e-3)
    pace.observe(0, 60.0)  # of no layer
    assert pace.budget() == pytest.approx(1250, rel=1e-3)


def test_what_was_measured_before_counts_half_at_each_slice() -> None:
    """So that one slice that was slow, as while another process had the machine, makes none tiny by itself."""
    pace = Pace(0.25)
    for token_layers, seconds in ((1000, 0.1), (3000, 0.3), (200, 1.0)):
        pace.observe(token_layers, seconds)
    assert pace.seconds_per_token_layer == pytest.approx((0.1 / 4 + 0.3 / 2 + 1.0) / (1000 / 4 + 3000 / 2 + 200))


def test_a_budget_that_is_smaller_than_a_cell_still_runs_one(model: LanguageModel) -> None:
    kernels = Kernels(fastest_kernel(model), FullForward(model))
    side = Side(model)
    steps = sweep_steps(model, BIG, LIMITS, kernels, budget=lambda: 1e-9)
    job: Job[Any] = Job(side.model, steps, side.pace, lambda: None)
    side.scheduler.add(job)
    (updates,) = side.finish(job)
    expected = alone(model, BIG)
    assert_same(cells(updates), expected.cells)
    end = updates[-1]
    assert isinstance(end, SweepResult)
    assert end.audit.audited_cells == expected.audit.audited_cells


def test_who_has_waited_longest_is_next() -> None:
    turns, order = Turns(), []

    def take(name: int) -> None:
        with turns:
            order.append(name)

    threads = [threading.Thread(target=take, args=(name,)) for name in range(5)]
    with turns:
        for number, thread in enumerate(threads):
            thread.start()
            while len(turns._waiting) <= number:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]
    with turns:
        order.append(5)
    assert order[-1] == 5


def test_a_short_question_waits_for_one_turn_of_all_long_ones() -> None:
    turns, order = Turns(), []

    def take(name: str, used: float) -> None:
        turns.begin()
        turns._use.seconds = used
        with turns:
            order.append(name)

    asked = [*((f"long {number}", 60.0) for number in range(4)), ("short", 0.0)]
    threads = [threading.Thread(target=take, args=each) for each in asked]
    with turns:
        for number, thread in enumerate(threads):
            thread.start()
            while len(turns._waiting) <= number:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    # Every other turn is of the one that has waited longest.
    assert order.index("short") <= 1
    assert [name for name in order if name != "short"] == [name for name, _ in asked[:4]]


def test_a_short_question_waits_for_one_turn_of_another_principal_however_many_threads_that_has() -> None:
    turns, order = Turns(), []

    def take(principal: str) -> None:
        turns.begin(principal)
        with turns:
            order.append(principal)

    threads = [threading.Thread(target=take, args=(name,)) for name in ("ann",) * 6 + ("bob", "bob", "cid")]
    turns.work_for("ann")
    with turns:
        for number, thread in enumerate(threads):
            thread.start()
            while len(turns._waiting) <= number:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == ["bob", "cid", "ann", "bob", *["ann"] * 5]


def test_what_is_used_in_turns_is_counted_for_those_who_share_them() -> None:
    usage = Usage()
    turns = Turns(usage)
    turns.work_for("ann", "bob")
    with turns, turns:
        turns.ran(5)
        turns.ran(7, "bob")
    used = usage.take()
    assert (used["ann"].tokens, used["bob"].tokens) == (5, 7)
    assert used["ann"].device_seconds == used["bob"].device_seconds > 0
    assert not usage.take()


def test_a_module_is_for_the_thread_whose_turn_it_is(model: LanguageModel) -> None:
    shared = share(model, Turns())
    with ThreadPoolExecutor(1) as other, shared.turns:
        with shared.turns:  # again: it waits for nobody, and gives nothing back too early
            assert shared.module is model.module
        assert shared.module is model.module
        for use in (lambda: shared.module, lambda: shared.layers):
            with pytest.raises(RuntimeError, match="this thread has not taken its turn"):
                other.submit(use).result()
        waiting = other.submit(lambda: shared.turns.__enter__() or shared.module)
        with pytest.raises(TimeoutError):
            waiting.result(0.05)
    assert waiting.result() is model.module
    with pytest.raises(RuntimeError, match="this thread has not taken its turn"):
        _ = shared.module


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Sweeps:
    def find_sae(name: str) -> Any:
        raise AssertionError(name)

    return Sweeps(LIMITS, Supplies(LocalBucket(tmp_path_factory.mktemp("store")), find_sae))


async def updates_of(sweeps: Sweeps, served: Served, request: RunSweep) -> list[SweepUpdate]:
    return [update async for update in sweeps.run(served, request, NOTHING_FINISHED)]


def test_sweeps_are_served_side_by_side(model: LanguageModel, sweeps: Sweeps) -> None:
    async def both() -> list[list[SweepUpdate]]:
        served = sweeps.serve(share(model, Turns()))
        asked = (BIG, ONE, BIG)
        return list(await asyncio.gather(*(updates_of(sweeps, served, request) for request in asked)))

    for updates, request in zip(asyncio.run(both()), (BIG, ONE, BIG), strict=True):
        assert_same(cells(updates), alone(model, request).cells)
        progress = [update for update in updates if isinstance(update, SweepProgress)]
        assert progress[-1].cells_done == progress[-1].cells_total == cells(updates).num_rows


def test_a_sweep_that_takes_longer_than_its_caller_waits_is_refused_with_both_numbers(
    model: LanguageModel, sweeps: Sweeps
) -> None:
    fresh = replace(BIG, fresh=True)

    async def ask(served: Served, seconds_left: float | None) -> list[SweepUpdate]:
        caller = Caller("ann", seconds_left)
        return [update async for update in sweeps.run(served, fresh, NOTHING_FINISHED, caller)]

    async def work() -> None:
        served = sweeps.serve(share(model, Turns()))
        await ask(served, 1e-9)  # nothing was measured yet, so it runs
        with pytest.raises(BadRequest, match=r"the sweep would take about .* s, and its deadline is in 0 s") as refusal:
            await ask(served, 1e-9)
        assert (refusal.value.reason, refusal.value.details["field"]) == ("LIMIT_EXCEEDED", "deadline_seconds")
        assert refusal.value.details["allowed"].startswith("at most 0.0")
        for seconds_left in (None, 3600.0):
            assert_same(cells(await ask(served, seconds_left)), alone(model, BIG).cells)

    asyncio.run(work())


def test_leaving_a_stream_frees_the_model(model: LanguageModel, sweeps: Sweeps) -> None:
    async def leave() -> int:
        served = sweeps.serve(share(model, Turns()))
        async with aclosing(sweeps.run(served, replace(BIG, fresh=True), NOTHING_FINISHED)) as updates:
            async for _ in updates:
                break
        await updates_of(sweeps, served, replace(ONE, fresh=True))  # the scheduler has come by
        before = sweeps._scheduler.batches
        await asyncio.sleep(0.2)
        return sweeps._scheduler.batches - before

    assert asyncio.run(leave()) == 0


@pytest.mark.parametrize(("request_", "dies_after"), [(BIG, 0), (BIG, 1), (BIG, 7), (SCREENED, 0), (SCREENED, 1)])
def test_a_sweep_whose_process_dies_goes_on_without_computing_a_row_twice(
    model: LanguageModel, sweeps: Sweeps, request_: RunSweep, dies_after: int
) -> None:
    served, begun, request_ = sweeps.serve(share(model, Turns())), [], replace(request_, fresh=True)

    async def start(finished: Finished, _: float) -> Any:
        begun.append(finished)
        parts = 0
        yield SweepProgress(0, 0, "a model replica")  # as the gateway does, which does not count cells
        async with aclosing(sweeps.run(served, request_, finished)) as updates:
            async for update in updates:
                if len(begun) == 1 and parts == dies_after:
                    raise ProcessDied
                yield update
                parts += isinstance(update, CheckedCells)

    async def everything() -> list[SweepProgress | SweepCells | SweepResult]:
        return [update async for update in going_on(start, most_tries=3)]

    updates = asyncio.run(everything())
    expected = alone(model, request_)
    assert [found.rows is not None for found in begun] == [False, dies_after > 0]
    told = [update for update in updates if isinstance(update, SweepProgress)]
    assert [one.cells_done for one in told] == sorted(one.cells_done for one in told)
    assert (told[0], sum(bool(one.waits_for) for one in told)) == (SweepProgress(0, 0, "a model replica"), 2)
    assert_same(cells(updates), expected.cells)
    end = updates[-1]
    assert isinstance(end, SweepResult)
    assert end.audit.token_layers == expected.audit.token_layers
    assert end.audit.audited_cells == expected.audit.audited_cells
    assert (end.audit.rank_agreement is None) == (expected.audit.rank_agreement is None)
    if end.audit.rank_agreement is not None:
        assert end.audit.rank_agreement == pytest.approx(expected.audit.rank_agreement)
    assert end.baselines.equals(expected.baselines)
    assert end.direct.equals(expected.direct)


def test_no_message_grows_with_the_sweep(model: LanguageModel) -> None:
    """Nearly 200,000 cells. The prompts differ in their last token alone, so that few of them cost anything."""
    words = " ".join(["When"] * (CONTEXT_LENGTH - 2))
    pairs = tuple(PromptPair(f"{words} Mary", f"{words} {other}", "John", "Mary") for other in ("John", "went") * 27)
    sites = ("resid_pre", "attn_out", "mlp_out", "resid_post", "z", "q", "k", "v", "pattern")
    request = RunSweep(ModelReference("neox"), pairs, sites=sites)
    kernels, limits = Kernels(fastest_kernel(model), FullForward(model)), PatchingLimits()
    rows, updates = 0, drive(sweep_steps(model, request, limits, kernels))
    for update in updates:
        told = SweepCells(update.rows) if isinstance(update, CheckedCells) else update
        assert encode(RunSweepAnswer(told)).ByteSize() < 2 << 20
        if isinstance(update, CheckedCells):
            rows += update.rows.num_rows
    assert rows == 54 * 2 * 3 * CONTEXT_LENGTH * (4 + 5 * 3)
    assert limits.cells * 0.94 < rows <= limits.cells


def test_a_sweep_that_kills_every_process_ends() -> None:
    begun = []

    async def start(finished: Finished, late: float) -> Any:
        begun.append((finished, late))
        await asyncio.sleep(0.01)
        raise ProcessDied
        yield

    async def everything() -> None:
        async for _ in going_on(start, most_tries=3):
            pass

    with pytest.raises(ActstoreError) as refusal:
        asyncio.run(everything())
    assert refusal.value.reason == "WORKERS_UNAVAILABLE"
    lates = [late for _, late in begun]
    assert len(lates) == 3
    # Each has less time than the one before.
    assert all(later - sooner >= 0.009 for sooner, later in itertools.pairwise(lates))
