"""Protobuf messages about norms and weights from and to the client's own types."""

from collections.abc import Callable, Mapping
from typing import Any

from actstore._norms.profile import POSITION_0, Growth, GrowthQuestion, NormProfile, ProfileQuestion
from actstore._norms.separability import Separability, SeparabilityQuestion
from actstore._transport import messages as _messages
from actstore_api.v1 import norm_pb2

_AXES: Mapping[str, Any] = {
    name: norm_pb2.GrowthAxis.Value(f"GROWTH_AXIS_{name.upper()}") for name in ("layer", "checkpoint")
}


def profile_out(question: ProfileQuestion) -> norm_pb2.GetNormProfileRequest:
    by: Any = norm_pb2.NormGrouping.Value(f"NORM_GROUPING_{question.by.upper()}")
    return norm_pb2.GetNormProfileRequest(
        run=question.run,
        sites=question.sites,
        exclude=_messages.exclusion_of(question.exclude),
        quantiles=question.quantiles or (),
        quantity=_quantity(question.quantity),
        by=by,
        without_quantiles=question.quantiles == (),
        exclude_position_0=question.exclude_position_0,
        bins=question.bins,
        edges=question.edges,
        more_runs=question.more_runs,
        steps=question.steps,
        exact=question.exact,
        sequences=_sequences(question.sequences),
    )


def _sequences(asked: tuple[int, int | None] | None) -> norm_pb2.SequenceRange | None:
    return None if asked is None else norm_pb2.SequenceRange(first=asked[0], count=asked[1])


def profile_of(
    answer: norm_pb2.GetNormProfileResponse, question: ProfileQuestion, fit: Callable[[GrowthQuestion], Growth]
) -> NormProfile:
    return NormProfile(
        table=_messages.table_of(answer.profile),
        run=question.run,
        quantity=question.quantity,
        by=question.by,
        histogram=_messages.table_of(answer.histogram) if answer.HasField("histogram") else None,
        from_statistics=answer.from_statistics,
        fit=fit,
        more_runs=question.more_runs,
        **_origin_of(answer),
    )


def growth_out(question: GrowthQuestion) -> norm_pb2.FitGrowthRequest:
    first, *more = question.runs
    request = norm_pb2.FitGrowthRequest(
        run=first,
        site=question.site,
        exclude=_messages.exclusion_of(question.exclude),
        axis=_AXES[question.axis],
        more_runs=more,
        steps=question.steps,
        resamples=question.resamples,
        seed=question.seed,
        layers=_layers(question.layers),
        exclude_position_0=question.exclude_position_0,
    )
    # What is usual stays unsaid, so that a service of before growth was of more than that is asked what it knows.
    if question.quantity != "l2":
        request.quantity = _quantity(question.quantity)
    return request


def growth_of(answer: norm_pb2.FitGrowthResponse) -> Growth:
    return Growth(
        table=_messages.table_of(answer.points),
        axis=norm_pb2.GrowthAxis.Name(answer.axis).removeprefix("GROWTH_AXIS_").lower(),
        site=answer.site,
        layers=(answer.layers.first, answer.layers.last),
        rate=answer.rate,
        r_squared=answer.r_squared,
        rate_interval=_interval(answer, "rate_interval"),
        curvature=answer.curvature,
        curvature_interval=_interval(answer, "curvature_interval"),
        bend=answer.bend,
        verdict=norm_pb2.GrowthVerdict.Name(answer.verdict).removeprefix("GROWTH_VERDICT_").lower(),
        shapes=_messages.table_of(answer.shapes),
        block=answer.block,
        resamples=answer.resamples,
        seed=answer.seed,
        sequences=answer.sequences,
        quantity=_quantity_of(answer.quantity),
        median_ratio=answer.median_ratio,
        **_origin_of(answer),
    )


def separability_out(question: SeparabilityQuestion) -> norm_pb2.GetSeparabilityRequest:
    first, *more = question.runs
    return norm_pb2.GetSeparabilityRequest(
        run=first,
        more_runs=more,
        steps=question.steps,
        site=question.site,
        layers=_layers(question.layers),
        exclude=_messages.exclusion_of(question.exclude),
        quantity=_quantity(question.quantity),
        exclude_position_0=question.exclude_position_0,
    )


def separability_of(answer: norm_pb2.GetSeparabilityResponse) -> Separability:
    numbers = ("layer_share", "checkpoint_share", "interaction_share", "explained", "rank_one", "miss")
    return Separability(
        table=_messages.table_of(answer.cells),
        site=answer.site,
        layers=(answer.layers.first, answer.layers.last),
        quantity=_quantity_of(answer.quantity),
        verdict=norm_pb2.SeparabilityVerdict.Name(answer.verdict).removeprefix("SEPARABILITY_VERDICT_").lower(),
        **{name: getattr(answer, name) for name in numbers},
        **_origin_of(answer),
    )


def _origin_of(answer: Any) -> dict[str, Any]:
    origin = _messages.origin_of(answer)
    by_position = {POSITION_0} if answer.excluded_position_0 else set()
    excluded = tuple(sorted({*origin["excluded"], *by_position}))
    return {**origin, "excluded": excluded, "warnings": tuple(answer.warnings)}


def _layers(layers: tuple[int, int] | None) -> norm_pb2.LayerRange | None:
    return None if layers is None else norm_pb2.LayerRange(first=layers[0], last=layers[1])


def _quantity(name: str) -> Any:
    return norm_pb2.NormQuantity.Value(f"NORM_QUANTITY_{name.upper()}")


def _quantity_of(number: Any) -> str:
    """Of a service that says none it is L2."""
    return norm_pb2.NormQuantity.Name(number).removeprefix("NORM_QUANTITY_").lower() if number else "l2"


def _interval(answer: norm_pb2.FitGrowthResponse, name: str) -> tuple[float, float] | None:
    found = getattr(answer, name)
    return (found.low, found.high) if answer.HasField(name) else None
