"""Ends what waits for a client for too long. One timer for all waits, because a timer for each call costs a tenth of a
small answer's time.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

# How late a wait may end, in parts of its time, and at most.
_LATE, _LATE_SECONDS = 0.25, 1.0


class _Wait:
    def __init__(self, task: "asyncio.Task[object]", began: float) -> None:
        self.task, self.began = task, began
        self.ended = False

    def end(self) -> None:
        self.ended = True
        self.task.cancel()


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
            yield
        except asyncio.CancelledError:
            # If the caller has left as well, the task is to be cancelled in any case.
            if wait.ended and not wait.task.uncancel():
                raise TimeoutError from None
            raise
        finally:
            del self._waits[wait]

    def end_oldest(self) -> None:
        for wait in self._waits:
            if not wait.ended:
                wait.end()
                return

    def _begin(self) -> _Wait:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        if task is None:
            raise RuntimeError("only a task waits for a client")
        wait = _Wait(task, loop.time())
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
            if not wait.ended:
                wait.end()
        self._timer = loop.call_later(self._pause(), self._look) if self._waits else None
