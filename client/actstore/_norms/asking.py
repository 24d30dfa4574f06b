"""What a caller asks about norms, checked."""

from collections.abc import Iterable
from typing import Any, Literal, get_args

from actstore import _checks
from actstore._errors import refused
from actstore._norms.answer import SIZES, ExcludedFromNorms, NormSize, left_out
from actstore._norms.layers import layer_range
from actstore._where import stretch
from actstore_api.records.norm import FitGrowth, GetNormProfile, GetSeparability, GrowthAxis, NormQuantity

# What a row of a profile is of.
NormGrouping = Literal["layer", "site", "token_class", "position", "document"]


def profile_question(
    runs: tuple[str, ...],
    sites: Iterable[str] | str | None,
    by: NormGrouping,
    quantity: NormQuantity,
    exclude: ExcludedFromNorms,
    quantiles: Iterable[float] | None,
    histogram: int | Iterable[float] | None,
    exact: bool,
    steps: tuple[float, ...] = (),
) -> GetNormProfile:
    """Makes the question for the profile that these arguments ask for. Errors: BadRequest with the argument's name."""
    bins, edges = _histogram(histogram)
    return GetNormProfile(
        runs,
        steps=steps,
        sites=_checks.some_names(sites, "sites"),
        **left_out(exclude),
        quantiles=_quantiles(quantiles),
        quantity=_checks.one_of(quantity, "quantity", get_args(NormQuantity)),
        by=_checks.one_of(by, "by", get_args(NormGrouping)),
        bins=bins,
        edges=edges,
        exact=_checks.switch(exact, "exact"),
    )


def token_question(
    run: str,
    sequences: range | slice | None,
    sites: Iterable[str] | str | None,
    quantity: NormQuantity,
    exclude: ExcludedFromNorms,
) -> GetNormProfile:
    """Makes the question for norms of single tokens. Errors: BadRequest with the argument's name."""
    return GetNormProfile(
        (run,),
        sites=_checks.some_names(sites, "sites"),
        **left_out(exclude),
        quantity=_checks.one_of(quantity, "quantity", get_args(NormQuantity)),
        by="token",
        sequences=stretch(sequences, "sequences"),
        quantiles=(),
    )


def growth_question(
    runs: tuple[str, ...],
    site: str,
    layers: Iterable[int] | None,
    exclude: ExcludedFromNorms,
    quantity: NormSize,
    resamples: int,
    seed: int,
) -> FitGrowth:
    """Makes the question for growth over layers that these arguments ask for. Errors: BadRequest with the argument's
    name.
    """
    return FitGrowth(
        runs,
        **left_out(exclude),
        axis="layer",
        site=_checks.text(site, "site"),
        layers=layer_range(layers),
        quantity=_checks.one_of(quantity, "quantity", SIZES),
        resamples=_checks.count(resamples, "resamples"),
        seed=_checks.seed(seed),
    )


def growth_axis(axis: GrowthAxis) -> GrowthAxis:
    """Checks along what growth is followed."""
    return _checks.one_of(axis, "axis", get_args(GrowthAxis))


def separability_question(
    runs: tuple[str, ...],
    steps: tuple[float, ...],
    site: str,
    layers: Iterable[int] | None,
    exclude: ExcludedFromNorms,
    quantity: NormSize,
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
    """Checks places in training. None: the numbers at the ends of the revisions' names."""
    if not isinstance(values, Iterable | None):
        raise refused(f"steps must be a list of numbers, not {values!r}", "steps", repr(values), f"steps=[{values!r}]")
    found = tuple(_checks.number(step, "steps") for step in (() if values is None else values))
    return _checks.some(found, values, "steps")


def _quantiles(quantiles: Any) -> tuple[float, ...]:
    if quantiles is None:
        return GetNormProfile.quantiles
    if isinstance(quantiles, str) or not isinstance(quantiles, Iterable):
        message = f"quantiles must be a list of numbers, not {quantiles!r}"
        raise refused(message, "quantiles", repr(quantiles), "numbers between 0 and 1, or none")
    return tuple(_checks.number(quantile, "quantiles") for quantile in quantiles)


def _histogram(histogram: int | Iterable[float] | None) -> tuple[int, tuple[float, ...]]:
    """So many bins, or edges; neither: none is asked for."""
    if histogram is None:
        return 0, ()
    if isinstance(histogram, Iterable):
        return 0, _checks.some(tuple(_checks.number(edge, "histogram") for edge in histogram), histogram, "histogram")
    return _checks.count(histogram, "histogram"), ()
