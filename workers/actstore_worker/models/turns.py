"""Turns at a model that several threads share.

Hooks, and the kind of attention, are set on a module and are seen by every thread that runs it. So of a shared model
nobody has the module but the thread whose turn it is.
"""

import threading
from collections import deque
from dataclasses import dataclass, field, fields
from types import TracebackType

from torch import nn

from actstore_worker.models.model import LanguageModel


class Turns:
    """A lock that goes to who has waited longest. `threading.Lock` may go to who just gave it back, again and again.

    A thread that has the turn and takes it again keeps it until it has given it back as often.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Event] = deque()
        # Of the thread whose turn it is; nobody's between one thread's turn and the next one's.
        self._owner: int | None = None
        self._depth = 0

    @property
    def mine(self) -> bool:
        """Whether it is the turn of the thread that asks."""
        return self._owner == threading.get_ident()

    def __enter__(self) -> None:
        if not self.mine:
            self._wait()
            self._owner = threading.get_ident()
        self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth:
            return
        with self._guard:
            self._owner = None
            if self._waiting:
                self._waiting.popleft().set()  # it stays taken, by the next
            else:
                self._taken = False

    def _wait(self) -> None:
        with self._guard:
            if not self._taken:
                self._taken = True
                return
            mine = threading.Event()
            self._waiting.append(mine)
        mine.wait()


@dataclass(frozen=True)
class SharedModel(LanguageModel):
    """A model that several threads want to run. `turns` may be those of other models too."""

    turns: Turns = field(repr=False)

    @property
    def module(self) -> nn.Module:
        """Errors: RuntimeError for a thread whose turn it is not. It must not keep the module beyond its turn."""
        if not self.turns.mine:
            raise RuntimeError(f"the module of {self.name!r} is shared, and this thread has not taken its turn")
        return self._module


def share(model: LanguageModel, turns: Turns) -> SharedModel:
    """Whoever calls this gives its own `model` away: from now on the module is used in turns."""
    known = {item.name: getattr(model, item.name) for item in fields(LanguageModel)}
    return SharedModel(**known, turns=turns)
