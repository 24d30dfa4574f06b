"""The event loop of a process, in a thread of its own, for code that is not written for asyncio.

One for the whole process: gRPC's client and server for asyncio wake their loop through one socket of the process, which
several loops would take from each other.
"""

import asyncio
import threading
from collections.abc import Coroutine
from functools import cache
from typing import Any, TypeVar

Found = TypeVar("Found")


@cache
def the_loop() -> asyncio.AbstractEventLoop:
    """Runs from the first call until the process ends."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="event-loop", daemon=True).start()
    return loop


def run(work: Coroutine[Any, Any, Found], timeout_seconds: float | None = None) -> Found:
    """Runs in the loop, and returns the result to a thread outside of it."""
    return asyncio.run_coroutine_threadsafe(work, the_loop()).result(timeout_seconds)


def is_alive(seconds: float) -> bool:
    """Whether the loop gets round to new work within so many seconds."""
    turned = threading.Event()
    the_loop().call_soon_threadsafe(turned.set)
    return turned.wait(seconds)
