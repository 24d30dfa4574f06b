"""Turns at planning, for callers that wait long enough."""

import asyncio

import pytest

from actstore_storage.errors import ActstoreError, BadRequest
from actstore_worker.caller import Caller
from actstore_worker.capture.queueing.planning import Planning


def test_who_would_be_planned_too_late_is_refused_at_once_with_both_numbers() -> None:
    async def work() -> None:
        planning = Planning(1)
        async with planning.turn(Caller("ann", 1e-3)):  # a place is free, and nothing was measured
            await asyncio.sleep(0.1)
        order: list[str] = []

        async def plan(caller: Caller) -> None:
            async with planning.turn(caller):
                order.append(caller.principal)

        async with planning.turn(Caller("ann")):
            patient = [asyncio.create_task(plan(Caller(name, left))) for name, left in (("bob", 60.0), ("cid", None))]
            await asyncio.sleep(0)
            with pytest.raises(BadRequest, match=r"would take about \d+ s, and its deadline is in 0 s") as refusal:
                async with planning.turn(Caller("dan", 0.15)):  # two wait, and each takes a tenth of a second
                    raise AssertionError
            assert (refusal.value.reason, refusal.value.details["field"]) == ("LIMIT_EXCEEDED", "deadline_seconds")
            assert float(refusal.value.details["value"]) >= 0.3
        await asyncio.gather(*patient)
        assert order == ["bob", "cid"]
        async with planning.turn(Caller("dan", 60.0)):
            pass

    asyncio.run(work())


def test_a_plan_is_not_begun_after_its_deadline() -> None:
    async def work() -> None:
        planning = Planning(1)

        async def plan(caller: Caller) -> None:
            async with planning.turn(caller):
                raise AssertionError

        async with planning.turn(Caller("ann")):
            late = asyncio.create_task(plan(Caller("bob", 1e-6)))  # nothing was measured, so it may wait
            await asyncio.sleep(0.01)
        with pytest.raises(ActstoreError) as over:
            await late
        assert over.value.reason == "CANCELLED"
        async with planning.turn(Caller("cid")):  # its place is free again
            pass

    asyncio.run(work())
