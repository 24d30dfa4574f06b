"""A cache of decoded and verified row groups, up to a limit of bytes.

Objects have unique names and are never overwritten, so cached data stays valid.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable

import pyarrow as pa

from actstore_storage.errors import BadRequest

Part = tuple[str, int]


class RowCache:
    """Tables of row groups, by object and number. One for a process, for any number of threads; the least recently used
    leave first. With 0 bytes it caches nothing.
    """

    def __init__(self, bytes_max: int) -> None:
        if bytes_max < 0:
            message = f"{bytes_max} is not a valid size of the row cache"
            raise BadRequest(message, field="held_row_bytes", value=bytes_max, allowed="0 or more")
        self.bytes_max = bytes_max
        self.bytes_held = 0
        # Requests that found their part here, and others.
        self.found = self.missed = 0
        self._held: OrderedDict[Part, pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str, number: int, read: Callable[[], pa.Table]) -> pa.Table:
        """Part `number` of object `key`. Two threads that request the same at once may both read it."""
        part = key, number
        with self._lock:
            if part in self._held:
                self._held.move_to_end(part)
                self.found += 1
                return self._held[part]
        found = read()
        with self._lock:
            self.missed += 1
            if part not in self._held and found.nbytes <= self.bytes_max:
                self._held[part] = found
                self.bytes_held += found.nbytes
                while self.bytes_held > self.bytes_max:
                    self.bytes_held -= self._held.popitem(last=False)[1].nbytes
        return found


NO_CACHE = RowCache(0)
