"""What the process does with memory that its answers no longer need: it is used again, and given back.

glibc keeps freed memory in its arenas, of which it makes eight a core, and gives it back when it is told to; with
several arenas much stays, so there is one. Arrow's usual pool keeps pages for each thread that ever used it, and cannot
be told to: so Arrow uses glibc's memory too (__init__.py). docs/decisions/0040-bounds-before-work.md has measurements.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

# From glibc's malloc.h. Rows are sent in messages of megabytes, for which malloc would map new memory each time: a
# third of a stream's time was spent on the kernel's clearing of pages. With these options memory is reused.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = (-1, 256 * 2**20), (-3, 32 * 2**20), (-8, 1)


def tune_memory() -> None:
    """Sets how much malloc keeps, and that all threads share an arena, before any thread has one."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # not if the C library is another one
        for name, value in (_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX):
            library.mallopt(name, value)


def give_back() -> None:
    """Gives memory that nothing uses back to the machine. It takes a few milliseconds a gigabyte."""
    pa.default_memory_pool().release_unused()
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


class _MallocInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc's malloc.h."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
        )
    )  # fmt: skip


def unused_bytes() -> int:
    """The memory of this process that is in RAM, but for what malloc says is in use. Programs, stacks and Python's own
    arenas are in it, too.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):  # an older glibc, or another C library
        return resident_bytes()
    library.mallinfo2.restype = _MallocInfo
    told = library.mallinfo2()
    return resident_bytes() - int(told.uordblks + told.hblkhd)


def resident_bytes() -> int:
    """The memory of this process that is in RAM; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


class MemoryKeeper:
    """A thread that gives memory back at intervals, if what is unused has grown by `growth_bytes` since the last time.

    What is in use does not count: a process that is large only while it answers would seem no larger afterwards.
    """

    def __init__(
        self,
        interval_seconds: float,
        growth_bytes: int,
        unused: Callable[[], int] = unused_bytes,
        give: Callable[[], None] = give_back,
    ) -> None:
        self._interval, self._growth = interval_seconds, growth_bytes
        self._unused, self._give = unused, give
        self._least = unused()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def look(self) -> None:
        """Gives memory back if enough is unused."""
        if self._unused() < self._least + self._growth:
            return
        self._give()
        self._least = self._unused()

    def _run(self) -> None:
        while not self._ended.wait(self._interval):
            self.look()
