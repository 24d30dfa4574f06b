"""Makes a stream's messages on threads, ahead of the client that takes them, and never further than some bytes.

A thread makes a few messages and is free again. It comes back when the client has taken half of them: a client that
takes none holds no thread. Threads hand over messages through the event loop, so nothing here needs a lock.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress

from actstore_service.answers.work import Threads
from actstore_service.calls.call import Call
from actstore_service.calls.outbox import SMALL_BYTES, Outbox

# Messages that are made while one is sent.
_AHEAD = 4
_DOUBLINGS = 16


class Pace:
    """How large a stream's messages are: they begin small and double with each one that its client takes, so that
    little is made for a client that does not read.
    """

    def __init__(self, outbox: Outbox, bytes_max: int) -> None:
        self._outbox, self._bytes_max = outbox, bytes_max
        self._taken = 0

    def message_bytes(self) -> int:
        return self._outbox.share(min(self._bytes_max, SMALL_BYTES << min(self._taken, _DOUBLINGS)))

    def took(self) -> None:
        self._taken += 1

    def hold(self, n_bytes: int) -> None:
        self._outbox.bytes_held += n_bytes


class Ahead:
    """`next` returns one message after the other and None at the end, or raises what the making raised. `close` must
    follow; `done` is called once no thread works for the stream any more.
    """

    def __init__(
        self,
        call: Call,
        messages: Generator[bytes, None, None],
        pace: Pace,
        threads: Threads,
        done: Callable[[], None],
    ) -> None:
        self._call, self._messages, self._pace, self._threads, self._done = call, messages, pace, threads, done
        self._loop = asyncio.get_running_loop()
        self._made: deque[bytes] = deque()
        self._bytes_held = 0
        self._making = self._ended = self._closed = False
        self._error: Exception | None = None
        self._news = asyncio.Event()

    async def next(self) -> bytes | None:
        while not self._made and not self._ended:
            self._go_on()
            self._news.clear()
            await self._news.wait()
        if self._made:
            return self._take()
        if self._error is not None:
            raise self._error
        return None

    def close(self) -> None:
        self._call.over.set()
        self._closed = True
        if not self._making:
            self._finish()

    def _take(self) -> bytes:
        message = self._made.popleft()
        self._hold(-len(message))
        self._pace.took()
        self._go_on()
        return message

    def _go_on(self) -> None:
        bytes_max = _AHEAD * self._pace.message_bytes()
        if self._making or self._ended or 2 * self._bytes_held > bytes_max:
            return
        self._making = True
        self._threads.submit(lambda: self._make(bytes_max - self._bytes_held))

    def _make(self, room: int) -> None:
        """In a thread: makes messages until they fill the room. One that is larger is made nevertheless."""
        try:
            while room > 0 and not self._call.over.is_set():
                message = next(self._messages)
                room -= len(message)
                self._tell(self._arrived, message)
        except StopIteration:
            self._tell(self._over, None)
        except Exception as error:  # noqa: BLE001  raised where the messages are wanted
            self._tell(self._over, error)
        self._tell(self._paused)

    def _tell(self, news: Callable[..., None], *said: object) -> None:
        self._loop.call_soon_threadsafe(news, *said)

    def _arrived(self, message: bytes) -> None:
        self._made.append(message)
        self._hold(len(message))
        self._news.set()

    def _over(self, error: Exception | None) -> None:
        self._ended, self._error = True, error
        self._news.set()

    def _paused(self) -> None:
        self._making = False
        self._news.set()
        if self._closed:
            self._finish()

    def _hold(self, n_bytes: int) -> None:
        self._bytes_held += n_bytes
        self._pace.hold(n_bytes)

    def _finish(self) -> None:
        """Lets a thread close what storage has open."""
        self._hold(-self._bytes_held)
        self._made.clear()
        self._threads.submit(self._end)

    def _end(self) -> None:
        with suppress(Exception):
            self._messages.close()
        self._tell(self._done)
