"""Which tokens of a run a question is about."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar, get_args

from actstore import _checks
from actstore._errors import refused
from actstore_api.records.activation import TokenSelection
from actstore_api.records.terms import DEFAULT_EXCLUSION, Range, TokenClass

Item = TypeVar("Item")
# Token classes that do not count: one, several, or None for the default.
Excluded = Iterable[TokenClass] | TokenClass | None


@dataclass(frozen=True)
class Where:
    """Which tokens of a run a question looks at: those that every given part selects.

    Args:
        sequences: Numbers of sequences, from 0, as a range or slice with step 1. None: all.
        positions: Positions in a sequence, from 0, likewise. None: all.
        documents: Numbers of documents in the dataset. None: all. An empty collection is refused.
        tokens: Token ids. None: all. An empty collection is refused.
    """

    sequences: range | slice | None = None
    positions: range | slice | None = None
    documents: Iterable[int] | None = None
    tokens: Iterable[int] | None = None

    def __post_init__(self) -> None:
        for name in ("documents", "tokens"):
            if isinstance(values := getattr(self, name), Iterator):
                object.__setattr__(self, name, tuple(values))  # a page asks several questions of the same tokens

    def selection(self) -> TokenSelection:
        """Return the same as a record of the contract.

        Raises:
            BadRequest: A part is of another type, out of range or empty.
        """
        return TokenSelection(
            sequences=stretch(self.sequences, "sequences"),
            positions=stretch(self.positions, "positions"),
            documents=numbers(self.documents, "documents", 2**63 - 1),
            tokens=numbers(self.tokens, "tokens", _checks.MAXIMUM_TOKEN),
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


def numbers(values: Iterable[int] | None, field: str, maximum: int = _checks.MAXIMUM_COUNT) -> tuple[int, ...]:
    """Several whole numbers. None stands for all, which the contract says by none; an empty collection is refused."""
    return some(_checks.whole_numbers(values, field, maximum), values, field)


def names(values: Iterable[str] | str | None, field: str) -> tuple[str, ...]:
    """Several names. None stands for all, which the contract says by none; an empty collection is refused."""
    return some(_checks.names(values, field), values, field)


def some(found: tuple[Item, ...], given: object, field: str) -> tuple[Item, ...]:
    """What was found in a collection, where it is not empty; nothing where None was given.

    An empty collection names nothing. The contract takes one for everything, so that a list that came out empty would
    silently become a question about all.
    """
    if given is not None and not found:
        raise refused(f"{field} is empty, and so names nothing", field, "()", "one or more, or None for all")
    return found


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
