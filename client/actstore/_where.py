"""Which tokens of a stored run a question is about, and which it takes rows or text from."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, get_args

from actstore import _checks
from actstore._errors import refused
from actstore_api.records.activation import TokenSelection
from actstore_api.records.patching import StoredSource
from actstore_api.records.terms import DEFAULT_EXCLUSION, Range, StoredSample, TokenClass

# Token classes that do not count: one, several, or None for the default.
Excluded = Iterable[TokenClass] | TokenClass | None


class NamedRun(Protocol):
    """A run: what `lab.run` gives."""

    @property
    def name(self) -> str:
        """The name under which it is stored."""


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

    def _selection(self) -> TokenSelection:
        """Return the same as a record of the contract.

        Raises:
            BadRequest: A part is of another type, out of range or empty.
        """
        return TokenSelection(
            sequences=stretch(self.sequences, "sequences"),
            positions=stretch(self.positions, "positions"),
            documents=_checks.some_numbers(self.documents, "documents", 2**63 - 1),
            tokens=_checks.some_numbers(self.tokens, "tokens", _checks.MAXIMUM_TOKEN),
        )


def chosen_tokens(where: object) -> TokenSelection | None:
    """None: every token. Errors: BadRequest for what is no Where."""
    if where is None:
        return None
    if not isinstance(where, Where):
        allowed = "actstore.Where(sequences=, positions=, documents=, tokens=)"
        raise refused(f"where cannot be {where!r}", "where", repr(where), allowed)
    return where._selection()


def exclusion(values: Excluded, field: str = "exclude") -> frozenset[TokenClass]:
    """Token classes that do not count: None is the default, BOS; an empty collection leaves nothing out."""
    return DEFAULT_EXCLUSION if values is None else frozenset(_checks.several_of(values, field, get_args(TokenClass)))


def stretch(values: object, field: str) -> Range | None:
    """The numbers in a range or slice with step 1; None: all of them."""
    if values is None:
        return None
    if not isinstance(values, range | slice):
        message = f"{field} must be a range or a slice, such as range(10)"
        raise refused(message, field, repr(values), "range or slice")
    if values.step not in (None, 1):
        raise refused(f"{field} {values} has a step other than 1", field, repr(values), "step 1")
    first = _checks.count(values.start or 0, field)
    if values.stop is None:
        return Range(first)
    if (end := _checks.count(values.stop, field)) <= first:
        raise refused(f"there are no {field} in {values}", field, repr(values), f"an end above its first, {first}")
    return Range(first, end)


@dataclass(frozen=True)
class StoredRows:
    """Stored activations of a run, which a sweep patches in: their mean, or rows drawn at random.

    Args:
        run: The run, or its name. It is of the model's weights and stores the sites that are patched.
        exclude: Classes of tokens whose rows are left out: "bos", "special", "sink". None: BOS; empty: none is.
        seed: Which rows are drawn for the source "resample": the same seed draws the same rows. 0 to 2^32 - 1.
    """

    run: NamedRun | str
    exclude: Excluded = None
    seed: int = StoredSource.seed

    def __post_init__(self) -> None:
        if isinstance(self.exclude, Iterator):
            object.__setattr__(self, "exclude", tuple(self.exclude))  # two sweeps may ask for the same rows
        self._source()

    def _source(self) -> StoredSource:
        """The same in the contract's words. Errors: BadRequest with the field's name."""
        return StoredSource(run_name(self.run, "run"), exclusion(self.exclude), _checks.seed(self.seed))


@dataclass(frozen=True)
class StoredText:
    """A sample of the text of a stored run, which the model reads again: whole sequences, spread evenly over the run.

    Args:
        run: The run, or its name. It is of this model.
        n_tokens: About how many tokens are read.
    """

    run: NamedRun | str
    n_tokens: int = StoredSample.tokens

    def __post_init__(self) -> None:
        self._sample()

    def _sample(self) -> StoredSample:
        """The same in the contract's words. Errors: BadRequest with the field's name."""
        return StoredSample(run_name(self.run, "run"), _checks.count(self.n_tokens, "n_tokens"))


def stored_rows(given: StoredRows | NamedRun | str | None) -> StoredSource | None:
    """Checks rows that are given as they are, or as the run alone."""
    if given is None:
        return None
    if isinstance(given, StoredRows):
        return given._source()
    return StoredRows(run_name(given, "stored", "a run, its name, or actstore.StoredRows"))._source()


def stored_text(given: StoredText | NamedRun | str | None) -> StoredSample | None:
    """Checks `stored`: a StoredText, or a run or its name."""
    if given is None:
        return None
    if isinstance(given, StoredText):
        return given._sample()
    return StoredText(run_name(given, "stored", "a run, its name, or actstore.StoredText"))._sample()


def run_name(run: object, field: str, allowed: str = "a run, or its name") -> str:
    """The name of a run that is given as a run or by its name."""
    name = run if isinstance(run, str) else getattr(run, "name", None)
    if not isinstance(name, str) or not name:
        raise refused(f"{field} must be a run or its name, not {run!r}", field, repr(run), allowed)
    return _checks.text(name, field)
