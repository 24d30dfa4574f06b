"""How far something is, on one line of a terminal."""

import time
from collections.abc import Callable
from typing import TextIO

BAR_CHARACTERS = 24


class Bar:
    """One line that redraws itself; silent if the stream is no terminal."""

    def __init__(
        self, stream: TextIO, title: str, *, enabled: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._title = title
        self._drawn = False
        self._enabled = enabled and stream.isatty()
        self._clock = clock
        self._first: tuple[float, int] | None = None

    def draw(self, done: int, total: int, detail: str, unit: str) -> None:
        if not self._enabled:
            return
        filled = BAR_CHARACTERS * done // total if total else 0
        bar = "█" * filled + "░" * (BAR_CHARACTERS - filled)
        share = f"{done / total:4.0%}" if total else "    "
        line = f"{self._title} {bar} {share} · {detail} · {done:,}/{total:,} {unit}{self._pace(done, total, unit)}"
        self._stream.write(f"\r{line}\x1b[K")
        self._stream.flush()
        self._drawn = True

    def close(self) -> None:
        if self._drawn:
            self._stream.write("\n")
            self._drawn = False

    def _pace(self, done: int, total: int, unit: str) -> str:
        """Since the first drawing: what was done before someone looked says nothing about the pace now."""
        now = self._clock()
        if self._first is None:
            self._first = now, done
        elapsed_seconds, gained = now - self._first[0], done - self._first[1]
        if gained <= 0 or elapsed_seconds <= 0:
            return ""
        rate = gained / elapsed_seconds
        return f" · {rate:,.0f} {unit}/s · {duration((total - done) / rate)} left"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
