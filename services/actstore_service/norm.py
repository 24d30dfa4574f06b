"""How large the residual stream is, and how it grows."""

from collections.abc import Mapping
from typing import Any

import grpc

from actstore_api.v1 import norm_pb2
from actstore_api.v1.service_pb2_grpc import NormServiceServicer
from actstore_service import wire
from actstore_service.gateway import Gateway
from actstore_storage.bucket import Bucket
from actstore_storage.errors import BadRequest
from actstore_storage.format.norm_columns import L2
from actstore_storage.norms import growth_shapes
from actstore_storage.norms.growth import CHECKPOINT, LAYER, Bootstrap, Growth, fit_growth, fit_growth_over_checkpoints
from actstore_storage.norms.profile import DEFAULT_QUANTILES, ProfileQuestion
from actstore_storage.norms.revisions import norms_of_runs
from actstore_storage.norms.separability import separability
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.snapshot import Snapshot

_AXES: Mapping[str, Any] = {LAYER: norm_pb2.GROWTH_AXIS_LAYER, CHECKPOINT: norm_pb2.GROWTH_AXIS_CHECKPOINT}
_VERDICTS: Mapping[str, Any] = {
    growth_shapes.EXPONENTIAL: norm_pb2.GROWTH_VERDICT_EXPONENTIAL,
    growth_shapes.FASTER: norm_pb2.GROWTH_VERDICT_FASTER,
    growth_shapes.SLOWER: norm_pb2.GROWTH_VERDICT_SLOWER,
    growth_shapes.IRREGULAR: norm_pb2.GROWTH_VERDICT_IRREGULAR,
    growth_shapes.NONE: norm_pb2.GROWTH_VERDICT_NONE,
}


class NormService(NormServiceServicer):
    def __init__(self, bucket: Bucket, gateway: Gateway) -> None:
        self._bucket, self._gateway = bucket, gateway

    def GetNormProfile(
        self, request: norm_pb2.GetNormProfileRequest, context: grpc.ServicerContext
    ) -> norm_pb2.GetNormProfileResponse:
        snapshots = self._snapshots(request)
        question = _profile_question(request)
        found = norms_of_runs(
            snapshots, question, steps=tuple(request.steps), bins=request.bins, edges=tuple(request.edges)
        )
        return norm_pb2.GetNormProfileResponse(
            profile=wire.table_message(found.profile),
            excluded=wire.token_classes(question.exclude),
            provenance=wire.provenance_message(snapshots[0].provenance()),
            histogram=None if found.histogram is None else wire.table_message(found.histogram),
            excluded_position_0=question.exclude_position_0,
            from_statistics=found.from_statistics,
            warnings=found.warnings,
        )

    def FitGrowth(
        self, request: norm_pb2.FitGrowthRequest, context: grpc.ServicerContext
    ) -> norm_pb2.FitGrowthResponse:
        first = open_run(self._bucket, request.run)
        growth = self._fitted(first, request)
        fit = growth.fit
        return norm_pb2.FitGrowthResponse(
            site=growth.site,
            layers=norm_pb2.LayerRange(first=growth.first_layer, last=growth.last_layer),
            rate=fit.rate,
            r_squared=fit.r_squared,
            points=wire.table_message(growth.points),
            excluded=wire.token_classes(wire.excluded_classes(request)),
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
            quantity=_quantity(growth.quantity),
            warnings=growth.warnings,
            excluded_position_0=request.exclude_position_0,
            median_ratio=fit.ratios.median,
        )

    def GetSeparability(
        self, request: norm_pb2.GetSeparabilityRequest, context: grpc.ServicerContext
    ) -> norm_pb2.GetSeparabilityResponse:
        snapshots = self._snapshots(request)
        layers = (request.layers.first, request.layers.last) if request.HasField("layers") else None
        found = separability(snapshots, layers=layers, steps=tuple(request.steps), **_means(request))
        shares, numbers = found.shares, found.cells["layer"]
        return norm_pb2.GetSeparabilityResponse(
            site=found.site,
            layers=norm_pb2.LayerRange(first=numbers[0].as_py(), last=numbers[-1].as_py()),
            quantity=_quantity(found.quantity),
            layer_share=shares.layer,
            checkpoint_share=shares.checkpoint,
            interaction_share=shares.interaction,
            explained=shares.explained,
            rank_one=shares.rank_one,
            miss=shares.miss,
            verdict=f"SEPARABILITY_VERDICT_{shares.verdict.upper()}",
            cells=wire.table_message(found.cells),
            excluded=wire.token_classes(wire.excluded_classes(request)),
            provenance=wire.provenance_message(snapshots[0].provenance()),
            warnings=found.warnings,
            excluded_position_0=request.exclude_position_0,
        )

    def GetWeightNorms(
        self, request: norm_pb2.GetWeightNormsRequest, context: grpc.ServicerContext
    ) -> norm_pb2.GetWeightNormsResponse:
        answer: norm_pb2.GetWeightNormsResponse = self._gateway.answer(
            self._gateway.norm.GetWeightNorms, request, context
        )
        return answer

    def _snapshots(self, request: Any) -> list[Snapshot]:
        return [open_run(self._bucket, run) for run in (request.run, *request.more_runs)]

    def _fitted(self, first: Snapshot, request: norm_pb2.FitGrowthRequest) -> Growth:
        axis = request.axis or norm_pb2.GROWTH_AXIS_LAYER
        if axis not in _AXES.values():
            raise BadRequest(f"axis {axis} is not known", field="axis", value=axis, allowed=list(_AXES))
        asked = {"bootstrap": _bootstrap(request), **_means(request)}
        if axis == norm_pb2.GROWTH_AXIS_LAYER:
            layers = (request.layers.first, request.layers.last) if request.HasField("layers") else None
            return fit_growth(first, layers=layers, **asked)
        snapshots = [first, *(open_run(self._bucket, run) for run in request.more_runs)]
        return fit_growth_over_checkpoints(snapshots, steps=tuple(request.steps), **asked)


def _means(request: Any) -> dict[str, Any]:
    """Which mean norms grow."""
    return {
        "exclude": wire.excluded_classes(request),
        "exclude_position_0": request.exclude_position_0,
        "quantity": _named(norm_pb2.NormQuantity, request.quantity, "quantity", L2),
        **({"site": request.site} if request.site else {}),
    }


def _profile_question(request: norm_pb2.GetNormProfileRequest) -> ProfileQuestion:
    quantiles = () if request.without_quantiles else tuple(request.quantiles) or DEFAULT_QUANTILES
    return ProfileQuestion(
        sites=tuple(request.sites),
        quantity=_named(norm_pb2.NormQuantity, request.quantity, "quantity", L2),
        by=_named(norm_pb2.NormGrouping, request.by, "by", LAYER),
        quantiles=quantiles,
        exclude=wire.excluded_classes(request),
        exclude_position_0=request.exclude_position_0,
        exact=request.exact,
        sequences=_sequences(request),
    )


def _sequences(request: norm_pb2.GetNormProfileRequest) -> tuple[int, int | None] | None:
    if not request.HasField("sequences"):
        return None
    return request.sequences.first, request.sequences.count if request.sequences.HasField("count") else None


def _named(enum: Any, number: int, field: str, default: str) -> str:
    """Storage's word for a number of the enum, which is its name without the enum's; unspecified is the default."""
    if number not in enum.values():
        raise BadRequest(f"{field} {number} is not known", field=field, value=number, allowed=enum.keys())
    prefix = enum.Name(0).removesuffix("UNSPECIFIED")
    return enum.Name(number).removeprefix(prefix).lower() if number else default


def _quantity(name: str) -> Any:
    return norm_pb2.NormQuantity.Value(f"NORM_QUANTITY_{name.upper()}")


def _bootstrap(request: norm_pb2.FitGrowthRequest) -> Bootstrap:
    return Bootstrap(seed=request.seed, **wire.given(request, "resamples"))


def _interval(found: tuple[float, float] | None) -> norm_pb2.Interval | None:
    return None if found is None else norm_pb2.Interval(low=found[0], high=found[1])
