"""Runs blocking work on a class's threads, and stops it soon after its call is over."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import copy_context
from functools import partial
from typing import TypeVar

import pyarrow as pa

from actstore_service.calls.call import Call
from actstore_storage.bucket import Bucket
from actstore_storage.errors import ActstoreError, StoreError

Found = TypeVar("Found")


class Threads:
    """The threads of one class. They are made when they are needed."""

    def __init__(self, name: str, threads_max: int) -> None:
        self._pool = ThreadPoolExecutor(threads_max, thread_name_prefix=name)

    async def run(self, call: Call, work: Callable[[], Found], done: Callable[[], None]) -> Found:
        """The result of `work`. `done` is called in the event loop once the thread is free again, which may be after
        the call is over: a call that is cancelled does not wait for its thread.
        """
        in_context = partial(copy_context().run, work)  # its log lines have the call's id
        running = asyncio.get_running_loop().run_in_executor(self._pool, in_context)
        running.add_done_callback(lambda ended: (ended.cancelled() or ended.exception(), done()))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            call.over.set()
            raise

    def submit(self, work: Callable[[], None]) -> None:
        self._pool.submit(copy_context().run, work)

    def close(self) -> None:
        """Takes no further work. Does not wait for what still runs."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class InterruptibleBucket(Bucket):
    """A bucket for the work of one call: it is refused to read further once the call is over.

    All reading of storage passes here, also in threads of its own, so no other code has to look.
    """

    def __init__(self, bucket: Bucket, over: threading.Event) -> None:
        self._bucket, self._over = bucket, over

    @property
    def address(self) -> str:
        return self._bucket.address

    def get(self, key: str) -> bytes:
        return self._while_wanted().get(key)

    def open(self, key: str) -> pa.NativeFile:
        return self._while_wanted().open(key)

    def exists(self, key: str) -> bool:
        return self._while_wanted().exists(key)

    def keys(self, prefix: str, *, after: str | None = None, until: str | None = None) -> list[str]:
        return self._while_wanted().keys(prefix, after=after, until=until)

    def folders(self, prefix: str) -> list[str]:
        return self._while_wanted().folders(prefix)

    def top(self) -> tuple[list[str], list[str]]:
        return self._while_wanted().top()

    def put(self, key: str, data: bytes) -> None:
        self._while_wanted().put(key, data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return self._while_wanted().put_if_absent(key, data)

    def create(self, key: str) -> AbstractContextManager[pa.NativeFile]:
        return self._while_wanted().create(key)

    def delete(self, key: str) -> None:
        self._while_wanted().delete(key)

    def store_error(self, error: OSError) -> StoreError | None:
        return self._bucket.store_error(error)

    def _while_wanted(self) -> Bucket:
        check_wanted(self._over)
        return self._bucket


def check_wanted(over: threading.Event) -> None:
    if over.is_set():
        raise ActstoreError("the call is over, so its work has stopped", reason="CANCELLED")
