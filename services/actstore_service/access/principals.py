"""A principal: a caller that the service knows, with its roles and runs; and the error for a caller that is none."""

from dataclasses import dataclass
from enum import Enum

from actstore_storage.errors import ActstoreError


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
_UNKNOWN = {
    "wrong": "this service requires a token, and the call had none or a wrong one",
    "cut": "the token is not whole: a part of it is missing or mistyped",
    "expired": "the token has expired",
    "certificate": "the client's certificate is of nobody whom this service knows",
}


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


def refused(why: str) -> ActstoreError:
    """The error for a caller that is not known; it never says anything of what was presented."""
    details = {"field": "authorization", "allowed": "Bearer <token>"} if why != "certificate" else {}
    return ActstoreError(_UNKNOWN[why], reason="UNAUTHENTICATED", **details)
