"""How large the residual stream is, and how it grows."""

from collections.abc import Mapping
from typing import Any

import grpc

from actstore_api.v1 import norm_pb2
from actstore_api.v1.service_pb2_grpc import NormServiceServicer
from actstore_service import wire
from actstore_service.gateway import Gateway
from actstore_storage import growth_shapes
from actstore_storage.bucket import Bucket
from actstore_storage.errors import BadRequest
from actstore_storage.growth import CHECKPOINT, LAYER, Bootstrap, Growth, fit_growth, fit_growth_over_checkpoints
from actstore_storage.norm_columns import L2
from actstore_storage.norms import DEFAULT_QUANTILES, ProfileQuestion, norm_histogram, norm_profile
from actstore_storage.runs import open_run
from actstore_storage.snapshot import Snapshot

_AXES: Mapping[str, Any] = {LAYER: norm_pb2.GROWTH_AXIS_LAYER, CHECKPOINT: norm_pb2.GROWTH_AXIS_CHECKPOINT}
_VERDICTS: Mapping[str, Any] = {
    growth_shapes.EXPONENTIAL: norm_pb2.GROWTH_VERDICT_EXPONENTIAL,
    growth_shapes.FASTER: norm_pb2.GROWTH_VERDICT_FASTER,
    growth_shapes.SLOWER: norm_pb2.GROWTH_VERDICT_SLOWER,
    growth_shapes.NONE: norm_pb2.GROWTH_VERDICT_NONE,
}


class NormService(NormServiceServicer):
    def __init__(self, bucket: Bucket, gateway: Gateway) -> None:
        self._bucket, self._gateway = bucket, gateway

    def GetNormProfile(
        self, request: norm_pb2.GetNormProfileRequest, context: grpc.ServicerContext
    ) -> norm_pb2.GetNormProfileResponse:
        snapshot = open_run(self._bucket, request.run)
        question = _profile_question(request)
        histogram = None
        if request.bins or request.edges:
            found = norm_histogram(snapshot, question, bins=request.bins, edges=tuple(request.edges))
            histogram = wire.table_message(found)
        return norm_pb2.GetNormProfileResponse(
            profile=wire.table_message(norm_profile(snapshot, question)),
            excluded=wire.token_classes(question.exclude),
            provenance=wire.provenance_message(snapshot.provenance()),
            histogram=histogram,
            excluded_position_0=question.exclude_position_0,
            from_statistics=question.from_statistics and not question.quantiles and histogram is None,
        )

    def FitGrowth(
        self, request: norm_pb2.FitGrowthRequest, context: grpc.ServicerContext
    ) -> norm_pb2.FitGrowthResponse:
        first = open_run(self._bucket, request.run)
        exclude = wire.excluded_classes(request)
        growth = self._growth_over_checkpoints(first, request, exclude)
        if growth is None:
            layers = (request.layers.first, request.layers.last) if request.HasField("layers") else None
            chosen = {"site": request.site} if request.site else {}
            growth = fit_growth(first, layers=layers, exclude=exclude, bootstrap=_bootstrap(request), **chosen)
        fit = growth.fit
        return norm_pb2.FitGrowthResponse(
            site=growth.site,
            layers=norm_pb2.LayerRange(first=growth.first_layer, last=growth.last_layer),
            rate=fit.rate,
            r_squared=fit.r_squared,
            points=wire.table_message(growth.points),
            excluded=wire.token_classes(exclude),
            provenance=wire.provenance_message(first.provenance()),
            axis=_AXES[growth.axis],
            rate_interval=_interval(fit.rate_interval),
            curvature=fit.curvature,
            curvature_interval=_interval(fit.curvature_interval),
            bend=fit.bend,
            verdict=_VERDICTS[fit.verdict],
            shapes=wire.table_message(fit.shapes),
            block=growth.block,
            resamples=growth.bootstrap.resamples,
            seed=growth.bootstrap.seed,
            sequences=growth.sequences,
        )

    def GetWeightNorms(
        self, request: norm_pb2.GetWeightNormsRequest, context: grpc.ServicerContext
    ) -> norm_pb2.GetWeightNormsResponse:
        answer: norm_pb2.GetWeightNormsResponse = self._gateway.answer(
            self._gateway.norm.GetWeightNorms, request, context
        )
        return answer

    def _growth_over_checkpoints(
        self, first: Snapshot, request: norm_pb2.FitGrowthRequest, exclude: frozenset[str]
    ) -> Growth | None:
        """None where another axis is asked for."""
        axis = request.axis or norm_pb2.GROWTH_AXIS_LAYER
        if axis not in _AXES.values():
            raise BadRequest(f"axis {axis} is not known", field="axis", value=axis, allowed=list(_AXES))
        if axis == norm_pb2.GROWTH_AXIS_LAYER:
            return None
        return fit_growth_over_checkpoints(
            [first, *(open_run(self._bucket, run) for run in request.more_runs)],
            site=request.site,
            steps=tuple(request.steps),
            exclude=exclude,
            bootstrap=_bootstrap(request),
        )


def _profile_question(request: norm_pb2.GetNormProfileRequest) -> ProfileQuestion:
    quantiles = () if request.without_quantiles else tuple(request.quantiles) or DEFAULT_QUANTILES
    return ProfileQuestion(
        sites=tuple(request.sites),
        quantity=_named(norm_pb2.NormQuantity, request.quantity, "quantity", L2),
        by=_named(norm_pb2.NormGrouping, request.by, "by", LAYER),
        quantiles=quantiles,
        exclude=wire.excluded_classes(request),
        exclude_position_0=request.exclude_position_0,
    )


def _named(enum: Any, number: int, field: str, default: str) -> str:
    """Storage's word for a number of the enum, which is its name without the enum's; unspecified is the default."""
    if number not in enum.values():
        raise BadRequest(f"{field} {number} is not known", field=field, value=number, allowed=enum.keys())
    prefix = enum.Name(0).removesuffix("UNSPECIFIED")
    return enum.Name(number).removeprefix(prefix).lower() if number else default


def _bootstrap(request: norm_pb2.FitGrowthRequest) -> Bootstrap:
    return Bootstrap(seed=request.seed, **wire.given(request, "resamples"))


def _interval(found: tuple[float, float] | None) -> norm_pb2.Interval | None:
    return None if found is None else norm_pb2.Interval(low=found[0], high=found[1])
