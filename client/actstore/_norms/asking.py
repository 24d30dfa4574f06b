"""What a caller asks about norms, checked."""

from collections.abc import Iterable, Sequence
from typing import get_args

from actstore import _checks
from actstore._errors import refused
from actstore._norms.answer import SIZES, TOKEN, left_out
from actstore._norms.layers import layer_range
from actstore._where import Excluded, stretch
from actstore_api.records.norm import FitGrowth, GetNormProfile, GetSeparability, GrowthAxis, NormGrouping, NormQuantity

# Of a fit, which draws its resamples with 64 bits.
MAXIMUM_SEED = 2**64 - 1


def profile_question(
    runs: tuple[str, ...],
    sites: Iterable[str] | str | None,
    exclude: Excluded,
    quantiles: Sequence[float] | None,
    by: str,
    quantity: str,
    histogram: int | Sequence[float] | None,
    exact: bool,
    sequences: range | slice | None = None,
    steps: tuple[float, ...] = (),
) -> GetNormProfile:
    """Makes the question for the profile that these arguments ask for. Errors: BadRequest with the argument's name."""
    bins, edges = _histogram(histogram)
    if by == TOKEN and quantiles:
        raise refused("a single token has no quantiles", "quantiles", repr(quantiles), "none by token")
    return GetNormProfile(
        runs,
        steps=steps,
        sites=_checks.names(sites, "sites"),
        **left_out(exclude),
        quantiles=GetNormProfile.quantiles if quantiles is None else _checks.fractions(quantiles, "quantiles"),
        quantity=_checks.one_of(quantity, "quantity", get_args(NormQuantity)),
        by=_checks.one_of(by, "by", get_args(NormGrouping)),
        bins=bins,
        edges=edges,
        exact=_checks.switch(exact, "exact"),
        sequences=stretch(sequences, "sequences"),
    )


def growth_question(
    runs: tuple[str, ...],
    axis: str,
    site: str,
    layers: Sequence[int] | None,
    exclude: Excluded,
    quantity: str,
    resamples: int,
    seed: int,
) -> FitGrowth:
    """Makes the question for the fit that these arguments ask for. Errors: BadRequest with the argument's name."""
    return FitGrowth(
        runs,
        **left_out(exclude),
        axis=_checks.one_of(axis, "axis", get_args(GrowthAxis)),
        site=_checks.text(site, "site"),
        layers=layer_range(layers),
        quantity=_checks.one_of(quantity, "quantity", SIZES),
        resamples=_checks.count(resamples, "resamples"),
        seed=_checks.count(seed, "seed", maximum=MAXIMUM_SEED),
    )


def separability_question(
    runs: tuple[str, ...],
    steps: tuple[float, ...],
    site: str,
    layers: Sequence[int] | None,
    exclude: Excluded,
    quantity: str,
) -> GetSeparability:
    """Makes the question for the analysis that these arguments ask for. Errors: BadRequest with the argument's name."""
    return GetSeparability(
        runs,
        **left_out(exclude),
        steps=steps,
        site=_checks.text(site, "site"),
        layers=layer_range(layers),
        quantity=_checks.one_of(quantity, "quantity", SIZES),
    )


def steps_of(values: Iterable[float] | None) -> tuple[float, ...]:
    """Checks places in training; none: the numbers at the ends of the revisions' names."""
    return tuple(_checks.number(step, "steps") for step in values or ())


def _histogram(histogram: int | Sequence[float] | None) -> tuple[int, tuple[float, ...]]:
    """So many bins, or edges; neither: none is asked for."""
    if histogram is None:
        return 0, ()
    if isinstance(histogram, Iterable):
        return 0, tuple(_checks.number(edge, "histogram") for edge in histogram)
    return _checks.count(histogram, "histogram"), ()
