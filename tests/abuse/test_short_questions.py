"""A question does not wait for the end of others, whatever they wait for."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import torch

from actstore_storage.bucket.opening import open_bucket
from actstore_worker.caller import Caller
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.live.passes.limits import LiveLimits
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.replica import Replica
from tests.waiting import PATIENCE_SECONDS


class Waiting:
    """The answers of a replica, in the stead of real ones: a question waits until it may end."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Semaphore(0), threading.Event()
        self.stops: list[threading.Event] = []

    def answer(self, question: str, model: None, stop: threading.Event, _: Caller) -> str:
        if question == "long":
            self.stops.append(stop)
            self.begun.release()
            assert self.may_end.wait(PATIENCE_SECONDS)
        return question


def test_a_short_question_is_answered_beside_twelve_long_ones_and_a_caller_may_leave(tmp_path: Path) -> None:
    limits = LiveLimits(), PatchingLimits()
    replica: Any = Replica(ModelCatalog(()), open_bucket(str(tmp_path)), torch.device("cpu"), *limits, questions=13)
    replica.live = waiting = Waiting()

    async def ask() -> None:
        long = [asyncio.create_task(replica.ask("long", None)) for _ in range(12)]
        for _ in long:
            assert await asyncio.to_thread(waiting.begun.acquire, timeout=PATIENCE_SECONDS)
        assert await asyncio.wait_for(replica.ask("short", None), PATIENCE_SECONDS) == "short"
        long[0].cancel()
        await asyncio.wait(long[:1])
        assert sum(stop.is_set() for stop in waiting.stops) == 1
        waiting.may_end.set()
        assert await asyncio.gather(*long[1:]) == ["long"] * 11

    asyncio.run(ask())
