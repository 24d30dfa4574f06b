"""Questions of one AsyncLab: each runs in a thread, and ends when the task that awaits it is cancelled."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from inspect import isawaitable
from typing import Any, TypeVar

from actstore._errors import Cancelled, refused
from actstore._transport.under_way import QUESTION, UnderWay, cancellable, cancelled

# How many questions of a lab run at once; others wait for their turn. Each takes a thread, which waits for the service.
QUESTIONS_AT_ONCE = 32
# The same for calls that wait for work to end: captures and sweeps. They may take days, and must not hold up questions.
WATCHES_AT_ONCE = 256

R = TypeVar("R")
_END: Any = object()


class Question:
    """One question: the context that its threads run in, and the calls by which it can be cancelled."""

    def __init__(self) -> None:
        self._under_way = UnderWay()
        self._context = copy_context()
        self._context.run(QUESTION.set, self._under_way)

    def run(self, work: Callable[[], R]) -> R:
        """Runs a part of the question in the calling thread."""
        self._under_way.check()
        return self._context.run(work)

    def cancel(self) -> None:
        """Cancels the calls of the question, and those that it would begin later."""
        self._under_way.cancel()


class Questions:
    """The threads that ask the questions of one lab."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._short = ThreadPoolExecutor(QUESTIONS_AT_ONCE, "actstore-question")
        self._lasting = ThreadPoolExecutor(WATCHES_AT_ONCE, "actstore-watch")
        self._open: set[Question] = set()
        self.closed = False

    async def ask(self, work: Callable[[], R], lasting: bool) -> R:
        """Runs `work` in a thread. If the awaiting task is cancelled, the calls of `work` are cancelled, too.

        Args:
            work: A call of a method that blocks.
            lasting: Whether the call waits for a capture or a sweep to end.

        Raises:
            BadRequest: The lab is closed.
            Cancelled: The lab was closed meanwhile.
            ActstoreError: Whatever `work` raises.
        """
        with self._asked() as question:
            return await self._in_thread(question, work, lasting)

    async def each(self, begin: Callable[[], Iterator[R]]) -> AsyncIterator[R]:
        """Gives the items of an iterator that blocks. It holds a thread only while somebody waits for an item."""
        with self._asked() as question:
            items = await self._in_thread(question, begin, True)
            while (item := await self._in_thread(question, partial(next, items, _END), True)) is not _END:
                yield item

    async def close(self) -> None:
        """Cancels the questions that are under way, and waits for their threads."""
        self.closed = True
        for question in tuple(self._open):
            question.cancel()
        await asyncio.to_thread(self._shut)

    def _shut(self) -> None:
        for pool in (self._short, self._lasting):
            pool.shutdown()

    @contextmanager
    def _asked(self) -> Iterator[Question]:
        if self.closed:
            allowed = "a lab that is open: connect again"
            raise refused(f"this lab of {self._address} is closed", "lab", "closed", allowed)
        question = Question()
        self._open.add(question)
        try:
            yield question
        except Cancelled as error:
            raise self._closing() if self.closed else error from None
        finally:
            self._open.discard(question)
            question.cancel()  # of a stream that its reader left

    async def _in_thread(self, question: Question, work: Callable[[], R], lasting: bool) -> R:
        pool = self._lasting if lasting else self._short
        try:
            return await asyncio.wrap_future(pool.submit(question.run, work))
        except asyncio.CancelledError:
            question.cancel()
            raise

    def _closing(self) -> Cancelled:
        message = f"the lab of {self._address} was closed while this question was under way"
        return Cancelled(message, reason="CANCELLED")


def in_this_loop(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Makes the functions among a call's arguments run in the running event loop, whichever thread calls them."""
    loop = asyncio.get_running_loop()
    return {name: partial(_call_in, loop, value) if callable(value) else value for name, value in arguments.items()}


def _call_in(loop: asyncio.AbstractEventLoop, told: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a loop and waits for what it returns; a coroutine is awaited there."""
    called = asyncio.run_coroutine_threadsafe(_awaited(told, arguments), loop)
    with cancellable(called):
        try:
            return called.result()
        except CancelledError:
            raise cancelled() from None


async def _awaited(told: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    found = told(*arguments)
    return await found if isawaitable(found) else found
