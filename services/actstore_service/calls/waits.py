"""Ends what waits for a client for too long. One timer for all waits, because a timer for each call costs a tenth of a
small answer's time.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

# How late a wait may end, in parts of its time, and at most.
_LATE, _LATE_SECONDS = 0.25, 1.0


class Wait:
    """One task that waits for its client with some bytes. `ended` once it was cut off."""

    def __init__(self, task: "asyncio.Task[object]", began: float, n_bytes: int) -> None:
        self.task, self.began, self.n_bytes = task, began, n_bytes
        self.ended = False

    def end(self) -> None:
        self.ended = True
        self.task.cancel()


class Waits:
    """The waits of one kind, oldest first. Each is ended after `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waits: OrderedDict[Wait, None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self.n_bytes = 0

    def __len__(self) -> int:
        return len(self._waits)

    @contextmanager
    def waiting(self, n_bytes: int = 0) -> Iterator[None]:
        """For the block of the current task. Errors: TimeoutError where it takes too long."""
        wait = self.begin(n_bytes)
        try:
            yield
        except asyncio.CancelledError:
            # If the caller has left as well, the task is to be cancelled in any case.
            if wait.ended and not wait.task.uncancel():
                raise TimeoutError from None
            raise
        finally:
            self.finish(wait)

    def begin(self, n_bytes: int) -> Wait:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        if task is None:
            raise RuntimeError("only a task waits for a client")
        wait = Wait(task, loop.time(), n_bytes)
        self._waits[wait] = None
        self.n_bytes += n_bytes
        if self._timer is None:
            self._timer = loop.call_later(self._pause(), self._look)
        return wait

    def finish(self, wait: Wait) -> None:
        del self._waits[wait]
        self.n_bytes -= wait.n_bytes

    def oldest(self) -> Iterator[Wait]:
        """Those that are not ended yet, oldest first."""
        return (wait for wait in self._waits if not wait.ended)

    def end_older(self, seconds: float, bytes_max: int = 0) -> None:
        """Ends waits that are older, the oldest first, as long as there are more than `bytes_max` bytes."""
        before = asyncio.get_running_loop().time() - seconds
        left = self.n_bytes
        for wait in self.oldest():
            if wait.began > before or (bytes_max and left <= bytes_max):
                return
            wait.end()
            left -= wait.n_bytes

    def _pause(self) -> float:
        return min(_LATE * self._seconds, _LATE_SECONDS)

    def _look(self) -> None:
        self.end_older(self._seconds)
        again = asyncio.get_running_loop().call_later
        self._timer = again(self._pause(), self._look) if self._waits else None
