"""The largest value of the last seconds, of a value that is set now and then."""

from collections import deque


class Peak:
    """A value and the largest that it was in the last `seconds`. Each step takes constant time on average."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.value = 0
        # Earlier values, each with the time until which it held: the later, the smaller.
        self._earlier: deque[tuple[float, int]] = deque()

    def set(self, value: int, now: float) -> None:
        if value < self.value:
            while self._earlier and self._earlier[-1][1] <= self.value:
                self._earlier.pop()
            self._earlier.append((now, self.value))
        self.value = value

    def at(self, now: float) -> int:
        """The largest value since `seconds` before now."""
        self._forget(now)
        return max(self.value, self._earlier[0][1]) if self._earlier else self.value

    def falls_in(self, now: float) -> float | None:
        """The seconds until the largest value may be a smaller one. None: it stays as long as the value does."""
        self._forget(now)
        return max(0.0, self._earlier[0][0] + self.seconds - now) if self._earlier else None

    def _forget(self, now: float) -> None:
        while self._earlier and (self._earlier[0][0] + self.seconds <= now or self._earlier[0][1] <= self.value):
            self._earlier.popleft()
