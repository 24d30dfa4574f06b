"""Doors to one store beside `actstore.connect(folder)`: through a service of its own, and through an event loop."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import actstore
from actstore import AsyncLab
from actstore._async.twins import Twin
from actstore_service.server import Service
from actstore_service.settings import Settings
from actstore_storage.bucket.opening import open_bucket

# For tests of what is answered, and not of who may ask.
OPEN_TO_ALL = {"listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0", "anonymous": ("reader", "writer", "admin")}


@contextmanager
def served(folder: Path) -> Iterator[actstore.Lab]:
    started = Service(open_bucket(str(folder)), Settings(**OPEN_TO_ALL))
    with actstore.connect(started.address) as lab:
        yield lab
    started.stop()


@contextmanager
def event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a thread of its own."""
    loop = asyncio.new_event_loop()
    running = threading.Thread(target=loop.run_forever)
    running.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        running.join()
        loop.close()


@contextmanager
def awaited(lab: AsyncLab) -> Iterator[Any]:
    """A lab whose every question goes through an AsyncLab, in an event loop."""
    with event_loop() as loop:
        yield Blocking(lab, loop)
        asyncio.run_coroutine_threadsafe(lab.close(), loop).result()


class Blocking:
    """Has the methods of an async twin, and waits for what they return."""

    def __init__(self, twin: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._twin, self._loop = twin, loop

    @property
    def _backend(self) -> "Blocking":
        """What a blocking lab asks, past the checks of its own methods."""
        return Blocking(_AskedBackend(self._twin), self._loop)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._twin, name)
        return partial(self._called, found) if callable(found) else self._known(found)

    def __getitem__(self, index: int) -> Any:
        return self._known(self._twin[index])

    def _called(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        found = method(*arguments, **options)
        if asyncio.iscoroutine(found):
            found = asyncio.run_coroutine_threadsafe(found, self._loop).result()
        return self._known(found)

    def _known(self, found: Any) -> Any:
        return Blocking(found, self._loop) if isinstance(found, Twin) else found


class _AskedBackend:
    def __init__(self, twin: Twin[Any]) -> None:
        self._twin = twin

    async def ask(self, question: object) -> Any:
        return await self._twin._questions.ask(partial(self._twin._blocking._backend.ask, question), False)

    async def rows(self, question: object) -> Any:
        return await self._twin._questions.ask(partial(self._twin._blocking._backend.rows, question), False)
