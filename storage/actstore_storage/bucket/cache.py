"""A cache in memory of what was read from a bucket, up to a limit of bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar, cast

from actstore_storage.errors import BadRequest

# What a key and its place take, so that many small values are bounded, too.
_ENTRY = 512
Value = TypeVar("Value")
Found = TypeVar("Found")


class ByteCache(Generic[Value]):
    """Values by key, for any number of threads; the least recently used leave first. With 0 bytes it caches nothing.

    Whoever reads a value says how many bytes it takes.
    """

    def __init__(self, bytes_max: int) -> None:
        if bytes_max < 0:
            message = f"{bytes_max} is not a valid size of a cache"
            raise BadRequest(message, field="bytes_max", value=bytes_max, allowed="0 or more")
        self.bytes_max = bytes_max
        self.bytes_held = 0
        # Requests that found their value here, and others.
        self.found = self.missed = 0
        self._held: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, key: Hashable) -> Value | None:
        """The value that is kept under the key, if there is one."""
        with self._lock:
            if key not in self._held:
                self.missed += 1
                return None
            self._held.move_to_end(key)
            self.found += 1
            return self._held[key][0]

    def holds(self, key: Hashable) -> bool:
        """Whether there is a value under the key, which then stays for longer. It counts as no request."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return key in self._held

    def read(self, key: Hashable, read: Callable[[], Value], bytes_of: Callable[[Value], int]) -> Value:
        """The kept value, or one that is read now. Two threads that request the same at once may both read it."""
        found = self.find(key)
        if found is None:
            found = read()
            self.keep(key, found, bytes_of(found))
        return found

    def keep(self, key: Hashable, value: Value, n_bytes: int) -> None:
        """Keeps a value instead of the key's former one, unless it is larger than the whole cache."""
        with self._lock:
            self._forget(key)
            if n_bytes > self.bytes_max:
                return
            self._held[key] = value, n_bytes
            self.bytes_held += n_bytes
            while self.bytes_held > self.bytes_max:
                self.bytes_held -= self._held.popitem(last=False)[1][1]

    def forget(self, key: Hashable) -> None:
        with self._lock:
            self._forget(key)

    def _forget(self, key: Hashable) -> None:
        _, n_bytes = self._held.pop(key, (None, 0))
        self.bytes_held -= n_bytes


class Memory:
    """What is kept of one opened run, in a cache that it shares with other runs."""

    def __init__(self, cache: ByteCache[object]) -> None:
        self._cache = cache

    def read(self, what: Hashable, read: Callable[[], Found], bytes_of: Callable[[Found], int]) -> Found:
        """The kept value, or one that is read now. `what` names the value among those of this run."""
        return cast(
            "Found", self._cache.read((self, what), read, lambda found: bytes_of(cast("Found", found)) + _ENTRY)
        )

    def find(self, what: Hashable) -> object | None:
        return self._cache.find((self, what))

    def keep(self, what: Hashable, value: object, n_bytes: int) -> None:
        self._cache.keep((self, what), value, n_bytes + _ENTRY)
