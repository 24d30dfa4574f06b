"""What a caller asks about norms, checked."""

from collections.abc import Iterable, Sequence

from actstore import _arguments
from actstore._norms import GROUPINGS, POSITION_0, QUANTITIES, ProfileQuestion


def profile_question(
    run: str,
    sites: Iterable[str] | str | None,
    exclude: Iterable[str] | str | None,
    quantiles: Sequence[float] | None,
    by: str,
    quantity: str,
    histogram: int | Sequence[float] | None,
    exact: bool,
) -> ProfileQuestion:
    """Errors: BadRequest with the argument's name."""
    left_out = _left_out(exclude)
    bins, edges = _histogram(histogram)
    return ProfileQuestion(
        run,
        sites=_arguments.names(sites, "sites"),
        exclude=frozenset(left_out - {POSITION_0}),
        exclude_position_0=POSITION_0 in left_out,
        quantiles=None if quantiles is None else _arguments.fractions(quantiles, "quantiles"),
        quantity=_arguments.chosen(quantity, "quantity", QUANTITIES),
        by=_arguments.chosen(by, "by", GROUPINGS),
        bins=bins,
        edges=edges,
        exact=_arguments.switch(exact, "exact"),
    )


def _left_out(exclude: Iterable[str] | str | None) -> set[str]:
    if exclude is None:
        return set(_arguments.DEFAULT_EXCLUSION)
    return set(_arguments.choices(exclude, "exclude", (*_arguments.TOKEN_CLASSES, POSITION_0)))


def _histogram(histogram: int | Sequence[float] | None) -> tuple[int, tuple[float, ...]]:
    if histogram is None:
        return 0, ()
    if isinstance(histogram, Iterable):
        return 0, tuple(_arguments.number(edge, "histogram") for edge in histogram)
    return _arguments.count(histogram, "histogram"), ()
