"""Which tokens of a run a question is about."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import get_args

from actstore import _checks
from actstore._errors import refused
from actstore_api.records.activation import TokenSelection
from actstore_api.records.terms import DEFAULT_EXCLUSION, Range, TokenClass

# Token classes that do not count: one, several, or None for the default.
Excluded = Iterable[str] | str | None


@dataclass(frozen=True)
class Where:
    """Which tokens a question looks at: those that pass every part that is given. `tokens` are ids."""

    sequences: range | slice | None = None
    positions: range | slice | None = None
    documents: Iterable[int] | None = None
    tokens: Iterable[int] | None = None

    def __post_init__(self) -> None:
        for name in ("documents", "tokens"):
            if isinstance(values := getattr(self, name), Iterator):
                object.__setattr__(self, name, tuple(values))  # a page asks several questions of the same tokens

    def selection(self) -> TokenSelection:
        """The same in the contract's words. Errors: BadRequest for what the wire cannot carry."""
        return TokenSelection(
            sequences=stretch(self.sequences, "sequences"),
            positions=stretch(self.positions, "positions"),
            documents=_checks.whole_numbers(self.documents, "documents", 2**63 - 1),
            tokens=_checks.whole_numbers(self.tokens, "tokens", _checks.MAXIMUM_TOKEN),
        )


def chosen_tokens(where: object) -> TokenSelection | None:
    """None: every token. Errors: BadRequest for what is no Where."""
    if where is None:
        return None
    if not isinstance(where, Where):
        allowed = "actstore.Where(sequences=, positions=, documents=, tokens=)"
        raise refused(f"where cannot be {where!r}", "where", repr(where), allowed)
    return where.selection()


def exclusion(values: Excluded, field: str = "exclude") -> frozenset[TokenClass]:
    """Token classes that do not count: None is the default, BOS; an empty collection leaves nothing out."""
    return DEFAULT_EXCLUSION if values is None else frozenset(_checks.several_of(values, field, get_args(TokenClass)))


def stretch(values: object, field: str) -> Range | None:
    """The numbers in a range or slice with step 1; None: all of them."""
    if values is None:
        return None
    if not isinstance(values, range | slice):
        message = f"{field} is a range or a slice, such as range(10)"
        raise refused(message, field, repr(values), "range or slice")
    if values.step not in (None, 1):
        raise refused(f"{field} {values} has a step other than 1", field, repr(values), "step 1")
    first = _checks.count(values.start or 0, field)
    if values.stop is None:
        return Range(first)
    if (end := _checks.count(values.stop, field)) <= first:
        raise refused(f"there are no {field} in {values}", field, repr(values), f"an end above its first, {first}")
    return Range(first, end)
