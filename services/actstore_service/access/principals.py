"""A principal: a caller that the service knows, with roles and with the runs that its calls may name."""

from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """What a principal may do. Each method needs one role, and no role includes another."""

    READER = "reader"
    """Asks for what is stored, and asks live questions."""
    WRITER = "writer"
    """Starts and cancels captures."""
    ADMIN = "admin"
    """Sees what is told about all callers together."""


EVERY_ROLE = frozenset(Role)
# The prefix of every name.
EVERY_RUN = ("",)


@dataclass(frozen=True)
class Principal:
    """Args:
    name: What logs, metrics and quotas call it.
    roles: What it may do.
    run_prefixes: It may use runs whose name begins with one of these; the empty text is the beginning of every name.
    """

    name: str
    roles: frozenset[Role]
    run_prefixes: tuple[str, ...]

    def may_use(self, run: str) -> bool:
        """Whether its calls may name this run."""
        return run.startswith(self.run_prefixes)


def prefixes_of(words: list[str]) -> tuple[str, ...]:
    """Prefixes from words of a configuration or a claim: `*` stands for every run, and an empty word for none,
    because a value that is left empty by mistake must not open every run.
    """
    return EVERY_RUN if "*" in words else tuple(word for word in words if word)
