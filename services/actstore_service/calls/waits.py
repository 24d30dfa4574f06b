"""Ends what waits for a client for too long. One timer for all waits, because a timer for each call costs a tenth of a
small answer's time.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

# How late a wait may end, in parts of its time, and at most.
_LATE, _LATE_SECONDS = 0.25, 1.0


class Ending:
    """A block of the current task that something else may end, with the error that the block then raises."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("only a task can be ended")
        self._task = task
        self.error: Exception | None = None

    def end(self, error: Exception) -> None:
        self.error = error
        self._task.cancel()

    @contextmanager
    def block(self) -> Iterator[None]:
        """Errors: that of `end`."""
        try:
            yield
        except asyncio.CancelledError:
            # If the caller has left as well, the task is to be cancelled in any case.
            if self.error is not None and not self._task.uncancel():
                raise self.error from None
            raise


class _Wait(Ending):
    def __init__(self, began: float) -> None:
        super().__init__()
        self.began = began


class Waits:
    """The waits of one kind. Each is ended after `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waits: OrderedDict[_Wait, None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waits)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For the block of the current task. Errors: TimeoutError where it is ended."""
        wait = self._begin()
        try:
            with wait.block():
                yield
        finally:
            del self._waits[wait]

    def end_oldest(self) -> None:
        for wait in self._waits:
            if wait.error is None:
                wait.end(TimeoutError())
                return

    def _begin(self) -> _Wait:
        loop = asyncio.get_running_loop()
        wait = _Wait(loop.time())
        self._waits[wait] = None
        if self._timer is None:
            self._timer = loop.call_later(self._pause(), self._look)
        return wait

    def _pause(self) -> float:
        return min(_LATE * self._seconds, _LATE_SECONDS)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        for wait in self._waits:  # the oldest first
            if wait.began + self._seconds > loop.time():
                break
            if wait.error is None:
                wait.end(TimeoutError())
        self._timer = loop.call_later(self._pause(), self._look) if self._waits else None
