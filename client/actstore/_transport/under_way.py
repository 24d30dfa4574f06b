"""Which RPCs a question has under way, so that another thread can cancel them."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Protocol

from actstore._errors import Cancelled


class Call(Protocol):
    """Something that a thread waits for, and that another thread can end: an RPC, or a future."""

    def cancel(self) -> object:
        """Ends the call. Does nothing where it has ended."""


class UnderWay:
    """The calls that one question waits for. A thread asks the question; any other thread may cancel it."""

    def __init__(self) -> None:
        self._calls: set[Call] = set()
        self._cancelled = False
        self._lock = Lock()

    def cancel(self) -> None:
        """Cancels the calls that are under way, and every call that the question begins from now on."""
        with self._lock:
            self._cancelled = True
            calls = tuple(self._calls)
        for call in calls:
            call.cancel()

    def check(self) -> None:
        """Raises Cancelled if the question was cancelled before it began."""
        if self._cancelled:
            raise cancelled()

    def begin(self, call: Call) -> None:
        """Notes that the question waits for a call."""
        with self._lock:
            self._calls.add(call)
            too_late = self._cancelled
        if too_late:
            call.cancel()

    def end(self, call: Call) -> None:
        """Notes that the question no longer waits for a call."""
        with self._lock:
            self._calls.discard(call)


# The question that runs in this context. None: nobody else can cancel it.
QUESTION: ContextVar[UnderWay | None] = ContextVar("QUESTION", default=None)


@contextmanager
def cancellable(call: Call) -> Iterator[None]:
    """Lets other threads cancel a call while the block waits for it. The call has ended when the block has."""
    question = QUESTION.get() or UnderWay()
    question.begin(call)
    try:
        yield
    finally:
        question.end(call)
        call.cancel()  # nobody waits for it any more


def cancelled() -> Cancelled:
    """Makes the error of a question that this program itself cancelled."""
    return Cancelled("the question was cancelled before it was answered", reason="CANCELLED")
