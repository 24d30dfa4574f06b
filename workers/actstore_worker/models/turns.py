"""Turns at a model that several threads share.

Hooks and the attention implementation are set on a module, so they affect every thread that runs it. Therefore only the
thread whose turn it is can get the module of a shared model.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from types import TracebackType

from torch import nn

from actstore_worker.models.model import LanguageModel
from actstore_worker.models.used import Usage, Used


class Turns:
    """A lock that is shared fairly. `threading.Lock` may go to the thread that just released it, again and again.

    Principals take turns, however many threads work for each. Of a principal's threads it goes in turn to the one that
    has waited longest, so that all get on, and to one that has used it least, so that a short question does not wait
    for a turn of each long one. Less than twice as much use counts as equal.

    A thread that takes its turn several times keeps it until it has released it as often.
    """

    def __init__(self, usage: Usage | None = None) -> None:
        """`usage` is told of each turn that has ended."""
        self._usage = usage or Usage()
        self._guard = threading.Lock()
        self._taken = False
        self._waiting: list[_Waiting] = []
        self._order = _Order()
        # The thread whose turn it is; None between turns.
        self._owner: int | None = None
        self._depth = 0
        self._use = _Use()

    @property
    def mine(self) -> bool:
        """Whether it is the calling thread's turn."""
        return self._owner == threading.get_ident()

    def begin(self, principal: str = "") -> None:
        """Begins other work on this thread, which has used nothing yet."""
        self._use.seconds = 0.0
        self.work_for(principal)

    def work_for(self, *principals: str) -> None:
        """Says for whom this thread's next turns are: they are the first one's, and all share what is used."""
        self._use.principals = principals

    def ran(self, tokens: int, principal: str | None = None) -> None:
        """Counts tokens that the model ran on, for a principal of this thread's."""
        self._usage.add(self._use.principals[0] if principal is None else principal, Used(tokens))

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
        self._count(time.monotonic() - self._use.since)
        with self._guard:
            self._owner = None
            if self._waiting:
                self._order.next(self._waiting).turn.set()  # It stays taken, by the next thread.
            else:
                self._taken = False

    def _count(self, seconds: float) -> None:
        self._use.seconds += seconds
        for principal in self._use.principals:
            self._usage.add(principal, Used(device_seconds=seconds / len(self._use.principals)))

    def _wait(self) -> None:
        with self._guard:
            mine = _Waiting(threading.Event(), self._use.principals[0], self._use.level)
            if not self._taken:
                self._taken = True
                self._order.went_to(mine.principal, [])
                return
            self._waiting.append(mine)
        mine.turn.wait()


class _Use(threading.local):
    """For whom this thread works, and how long it has had turns for its present work."""

    principals: tuple[str, ...] = ("",)
    seconds = since = 0.0

    @property
    def level(self) -> int:
        """0 below a second, and one more for each doubling."""
        return int(self.seconds).bit_length()


@dataclass(frozen=True)
class _Waiting:
    turn: threading.Event
    principal: str
    level: int


class _Order:
    """Whose turn is next: the principal's whose last turn is longest ago. One that had none comes first."""

    def __init__(self) -> None:
        self._turns = 0
        self._last: dict[str, int] = {}  # By principal.
        self._least_next: set[str] = set()  # Whose next turn is for the thread that has used it least.

    def next(self, waiting: list[_Waiting]) -> _Waiting:
        """Takes the next one out of those that wait, of which there is one, in the order in which they came."""
        principal = min(waiting, key=lambda one: self._last.get(one.principal, 0)).principal
        own = [one for one in waiting if one.principal == principal]
        found = own[0] if principal not in self._least_next else min(own, key=lambda one: one.level)
        self._least_next ^= {principal}
        waiting.remove(found)
        self.went_to(principal, waiting)
        return found

    def went_to(self, principal: str, waiting: Sequence[_Waiting]) -> None:
        """Notes a turn. Principals are forgotten once all that wait had a turn after theirs, so that nobody gains by
        leaving and coming back.
        """
        self._turns += 1
        self._last[principal] = self._turns
        first = min((self._last.get(one.principal, 0) for one in waiting), default=self._turns)
        self._last = {name: turn for name, turn in self._last.items() if turn >= first}
        self._least_next &= self._last.keys()


class Speed:
    """The highest speed at which a model was seen to run, so that what is estimated by it is not too long."""

    seconds_per_token = 0.0  # Nothing was measured.

    def observe(self, tokens: int, seconds: float) -> None:
        if tokens:
            measured = seconds / tokens
            self.seconds_per_token = min(self.seconds_per_token or measured, measured)


@dataclass(frozen=True)
class SharedModel(LanguageModel):
    """A model that several threads run. `turns` may be shared with other models."""

    turns: Turns = field(repr=False)
    speed: Speed = field(default_factory=Speed, repr=False)

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
