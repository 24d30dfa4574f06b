"""What principals used of a device, as counted where it happened."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Used:
    """Tokens that a model ran on, each as often as it did, and the seconds in which a device was had."""

    tokens: int = 0
    device_seconds: float = 0.0

    def __add__(self, other: "Used") -> "Used":
        return Used(self.tokens + other.tokens, self.device_seconds + other.device_seconds)


class Usage:
    """What was used since it was last taken, by principal. Any number of threads may add to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used: dict[str, Used] = {}

    def add(self, principal: str, used: Used) -> None:
        with self._lock:
            self._used[principal] = self._used.get(principal, Used()) + used

    def take(self) -> Mapping[str, Used]:
        with self._lock:
            taken, self._used = self._used, {}
        return taken
