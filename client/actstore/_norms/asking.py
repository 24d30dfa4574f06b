"""What a caller asks about norms, checked."""

from collections.abc import Iterable, Sequence
from typing import Any

from actstore import _checks as _arguments
from actstore._errors import refused
from actstore._norms.profile import GROUPINGS, POSITION_0, QUANTITIES, TOKEN, ProfileQuestion


def profile_question(
    run: str,
    sites: Iterable[str] | str | None,
    exclude: Iterable[str] | str | None,
    quantiles: Sequence[float] | None,
    by: str,
    quantity: str,
    histogram: int | Sequence[float] | None,
    exact: bool,
    sequences: range | slice | None = None,
) -> ProfileQuestion:
    """Errors: BadRequest with the argument's name."""
    bins, edges = _histogram(histogram)
    if by == TOKEN and quantiles:
        raise refused("a single token has no quantiles", "quantiles", repr(quantiles), "none by token")
    return ProfileQuestion(
        run,
        sites=_arguments.names(sites, "sites"),
        **left_out(exclude),
        quantiles=None if quantiles is None else _arguments.fractions(quantiles, "quantiles"),
        quantity=_arguments.chosen(quantity, "quantity", QUANTITIES),
        by=_arguments.chosen(by, "by", GROUPINGS),
        bins=bins,
        edges=edges,
        exact=_arguments.switch(exact, "exact"),
        sequences=None if sequences is None else _arguments.stretch(sequences, "sequences"),
    )


def left_out(exclude: Iterable[str] | str | None) -> dict[str, Any]:
    """A question's fields `exclude` and `exclude_position_0`. None is the default, BOS."""
    found: set[str] = set(_arguments.DEFAULT_EXCLUSION)
    if exclude is not None:
        found = set(_arguments.choices(exclude, "exclude", (*_arguments.TOKEN_CLASSES, POSITION_0)))
    return {"exclude": frozenset(found - {POSITION_0}), "exclude_position_0": POSITION_0 in found}


def _histogram(histogram: int | Sequence[float] | None) -> tuple[int, tuple[float, ...]]:
    if histogram is None:
        return 0, ()
    if isinstance(histogram, Iterable):
        return 0, tuple(_arguments.number(edge, "histogram") for edge in histogram)
    return _arguments.count(histogram, "histogram"), ()
