"""A cache of decoded and verified row groups, up to a limit of bytes.

Objects have unique names and are never overwritten, so cached data stays valid.
"""

from collections.abc import Callable

import pyarrow as pa

from actstore_storage.bucket.cache import ByteCache


class RowCache(ByteCache[pa.Table]):
    """Tables of row groups, by object and number; one for a process."""

    def get(self, key: str, number: int, read: Callable[[], pa.Table]) -> pa.Table:
        """Part `number` of object `key`."""
        return self.read((key, number), read, lambda table: table.nbytes)


NO_CACHE = RowCache(0)
