"""Sweeps and live questions before the replicas: who is next, without any replica."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from actstore_api.records.patching import RunSweep, SweepProgress
from actstore_api.records.terms import ModelReference
from actstore_storage.errors import ActstoreError, BadRequest
from actstore_worker.caller import Caller
from actstore_worker.wire.live_places import FairModels, LivePlaces

SWEEP = RunSweep(ModelReference("tiny"), ())


class Replicas:
    """Remembers in which order work began, and ends none before it is told to."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}

    async def ask(self, question: str, caller: Caller) -> str:
        self.begun.append(question)
        await self._end(question).wait()
        return question

    async def run(self, request: RunSweep, caller: Caller) -> AsyncGenerator[Any, None]:
        name = f"sweep of {caller.principal}"
        self.begun.append(name)
        yield SweepProgress(0, 1)
        await self._end(name).wait()

    async def estimate(self, request: RunSweep, caller: Caller) -> Any:
        raise AssertionError

    def end(self, name: str) -> None:
        self._end(name).set()

    def _end(self, name: str) -> asyncio.Event:
        return self._ends.setdefault(name, asyncio.Event())


async def admitted(_: str) -> None:
    """Everybody."""


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def listen(models: FairModels, principal: str) -> None:
    async for _ in models.run(SWEEP, Caller(principal)):
        pass


def test_places_are_kept_for_those_who_have_none() -> None:
    async def work() -> None:
        replicas = Replicas()
        models = FairModels(replicas, LivePlaces(lambda: 8, 0.25), admitted)
        asked = [asyncio.create_task(models.ask(f"a{number}", Caller("ann"))) for number in range(20)]
        await settle()
        assert replicas.begun == [f"a{number}" for number in range(6)]
        asked += [asyncio.create_task(models.ask(name, Caller("bob"))) for name in ("b0", "b1")]
        await settle()
        assert replicas.begun[6:] == ["b0"]  # who has one waits while only those are free that are kept
        replicas.end("a0")
        replicas.end("a1")
        await settle()
        assert replicas.begun[7:] == ["b1"]  # she has five places, and he has one
        for one in asked:
            one.cancel()
        await asyncio.gather(*asked, return_exceptions=True)

    asyncio.run(work())


def test_principals_take_turns_and_a_question_comes_before_sweeps() -> None:
    async def work() -> None:
        replicas = Replicas()
        models = FairModels(replicas, LivePlaces(lambda: 1, 0.25), admitted)
        asked = [asyncio.create_task(listen(models, "ann")) for _ in range(16)]
        await settle()
        asked += [asyncio.create_task(listen(models, "cid")), asyncio.create_task(models.ask("b", Caller("bob")))]
        await settle()
        assert replicas.begun == ["sweep of ann"]
        replicas.end("b")
        replicas.end("sweep of ann")
        replicas.end("sweep of cid")
        await asyncio.gather(*asked)
        assert replicas.begun[:4] == ["sweep of ann", "b", "sweep of cid", "sweep of ann"]
        assert Counter(replicas.begun)["sweep of ann"] == 16

    asyncio.run(work())


def test_sweeps_keep_a_share_while_questions_wait() -> None:
    async def work() -> None:
        replicas = Replicas()
        models = FairModels(replicas, LivePlaces(lambda: 1, 0.25), admitted)
        asked = [asyncio.create_task(models.ask(f"a{number}", Caller("ann"))) for number in range(12)]
        asked += [asyncio.create_task(listen(models, "bob")) for _ in range(3)]
        await settle()
        for name in (*(f"a{number}" for number in range(12)), "sweep of bob"):
            replicas.end(name)
        await asyncio.gather(*asked)
        assert [name for name in replicas.begun[:9] if name == "sweep of bob"] == ["sweep of bob"] * 2

    asyncio.run(work())


def test_who_leaves_or_whose_deadline_is_over_takes_no_place() -> None:
    async def work() -> None:
        replicas, places = Replicas(), LivePlaces(lambda: 1, 0.25)
        models = FairModels(replicas, places, admitted)
        holder = asyncio.create_task(models.ask("a", Caller("ann")))
        await settle()
        leaving, late, last = (
            asyncio.create_task(models.ask(name, caller))
            for name, caller in (("left", Caller("bob")), ("late", Caller("cid", 1e-6)), ("last", Caller("dan", 60.0)))
        )
        await settle()
        assert places.waiting == 3
        leaving.cancel()
        replicas.end("a")
        replicas.end("last")
        assert await last == "last"
        with pytest.raises(ActstoreError) as over:
            await late
        assert over.value.reason == "CANCELLED"
        assert await holder == "a"
        assert replicas.begun == ["a", "last"]
        replicas.end("again")
        assert await models.ask("again", Caller("bob")) == "again"
        assert places.waiting == 0

    asyncio.run(work())


def test_places_that_come_later_are_noticed() -> None:
    async def work() -> None:
        replicas, there = Replicas(), [1]
        models = FairModels(replicas, LivePlaces(lambda: there[0], 0.25), admitted)
        asked = [asyncio.create_task(models.ask(name, Caller(name))) for name in ("ann", "bob")]
        await settle()
        assert replicas.begun == ["ann"]
        there[0] = 2
        replicas.end("bob")
        assert await asked[1] == "bob"
        replicas.end("ann")
        await asked[0]

    asyncio.run(work())


def test_who_is_beyond_a_quota_begins_nothing() -> None:
    async def refuse(principal: str) -> None:
        if principal == "ann":
            raise BadRequest("too much", reason="LIMIT_EXCEEDED")

    async def work() -> None:
        replicas = Replicas()
        models = FairModels(replicas, LivePlaces(lambda: 1, 0.25), refuse)
        with pytest.raises(BadRequest):
            await models.ask("a", Caller("ann"))
        with pytest.raises(BadRequest):
            await listen(models, "ann")
        with pytest.raises(BadRequest):
            await models.estimate(SWEEP, Caller("ann"))
        replicas.end("b")
        assert await models.ask("b", Caller("bob")) == "b"
        assert replicas.begun == ["b"]

    asyncio.run(work())
