"""Threads for blocking work, by class of calls."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

Found = TypeVar("Found")


class Threads:
    """The threads of one class. They are made when they are needed."""

    def __init__(self, name: str, threads_max: int) -> None:
        self._pool = ThreadPoolExecutor(threads_max, thread_name_prefix=name)

    async def run(self, work: Callable[[], Found], done: Callable[[], None]) -> Found:
        """The result of `work`. `done` is called in the event loop once the thread is free again: that may be later,
        because a call that is cancelled does not wait for its thread.
        """
        # By hand, as run_in_executor under a shield wakes the loop three times for each answer.
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Found] = loop.create_future()

        def ended(tell: Callable[[], None]) -> None:
            done()
            if not result.done():
                tell()

        def make() -> None:
            try:
                found = work()
            except BaseException as error:  # noqa: BLE001  raised where the result is wanted
                loop.call_soon_threadsafe(ended, lambda error=error: result.set_exception(error))
            else:
                loop.call_soon_threadsafe(ended, lambda: result.set_result(found))

        self.submit(make)
        return await result

    def submit(self, work: Callable[[], None]) -> None:
        self._pool.submit(copy_context().run, work)

    def close(self) -> None:
        """Takes no further work. Does not wait for what still runs."""
        self._pool.shutdown(wait=False, cancel_futures=True)
