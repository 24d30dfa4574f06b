"""Turns at a model that several threads share.

Hooks and the attention implementation are set on a module, so they affect every thread that runs it. Therefore only the
thread whose turn it is can get the module of a shared model.
"""

import threading
import time
from dataclasses import dataclass, field, fields
from types import TracebackType

from torch import nn

from actstore_worker.models.model import LanguageModel


class Turns:
    """A lock that is shared fairly. `threading.Lock` may go to the thread that just released it, again and again.

    In turn, it goes to the thread that has waited longest, so that all get on, and to one that has used it least, so
    that a short question does not wait for a turn of each long one. Less than twice as much use counts as equal.

    A thread that takes its turn several times keeps it until it has released it as often.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._taken = False
        self._waiting: list[_Waiting] = []
        self._longest_waiting = True
        # The thread whose turn it is; None between turns.
        self._owner: int | None = None
        self._depth = 0
        self._use = _Use()

    @property
    def mine(self) -> bool:
        """Whether it is the calling thread's turn."""
        return self._owner == threading.get_ident()

    def begin(self) -> None:
        """Begins other work on this thread, which has used nothing yet."""
        self._use.seconds = 0.0

    def __enter__(self) -> None:
        if not self.mine:
            self._wait()
            self._owner = threading.get_ident()
            self._use.since = time.monotonic()
        self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth:
            return
        self._use.seconds += time.monotonic() - self._use.since
        with self._guard:
            self._owner = None
            if self._waiting:
                self._next().turn.set()  # It stays taken, by the next thread.
            else:
                self._taken = False

    def _next(self) -> "_Waiting":
        self._longest_waiting = not self._longest_waiting
        if self._longest_waiting:
            return self._waiting.pop(0)
        least = min(range(len(self._waiting)), key=lambda place: self._waiting[place].level)
        return self._waiting.pop(least)

    def _wait(self) -> None:
        with self._guard:
            if not self._taken:
                self._taken = True
                return
            mine = _Waiting(threading.Event(), self._use.level)
            self._waiting.append(mine)
        mine.turn.wait()


class _Use(threading.local):
    """How long this thread has had turns for its present work."""

    seconds = since = 0.0

    @property
    def level(self) -> int:
        """0 below a second, and one more for each doubling."""
        return int(self.seconds).bit_length()


@dataclass(frozen=True)
class _Waiting:
    turn: threading.Event
    level: int


@dataclass(frozen=True)
class SharedModel(LanguageModel):
    """A model that several threads run. `turns` may be shared with other models."""

    turns: Turns = field(repr=False)

    @property
    def module(self) -> nn.Module:
        """The module. Errors: RuntimeError for a thread whose turn it is not. The thread must not keep the module after
        its turn.
        """
        if not self.turns.mine:
            raise RuntimeError(f"the module of {self.name!r} is shared, and this thread has not taken its turn")
        return self._module


def share(model: LanguageModel, turns: Turns) -> SharedModel:
    """Returns a shared model. The caller must not use its own `model` afterwards."""
    known = {item.name: getattr(model, item.name) for item in fields(LanguageModel)}
    return SharedModel(**known, turns=turns)
