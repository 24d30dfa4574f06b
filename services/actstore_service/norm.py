"""How large the residual stream is, and how it grows."""

from typing import Any

import grpc

from actstore_api.v1 import norm_pb2
from actstore_api.v1.service_pb2_grpc import NormServiceServicer
from actstore_service import wire
from actstore_storage.bucket import Bucket
from actstore_storage.growth import fit_growth
from actstore_storage.norms import norm_profile
from actstore_storage.runs import open_run


class NormService(NormServiceServicer):
    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def GetNormProfile(
        self, request: norm_pb2.GetNormProfileRequest, context: grpc.ServicerContext
    ) -> norm_pb2.GetNormProfileResponse:
        snapshot = open_run(self._bucket, request.run)
        exclude = wire.excluded_classes(request)
        chosen: dict[str, Any] = {"quantiles": tuple(request.quantiles)} if request.quantiles else {}
        profile = norm_profile(snapshot, sites=tuple(request.sites), exclude=exclude, **chosen)
        return norm_pb2.GetNormProfileResponse(
            profile=wire.table_message(profile),
            excluded=wire.token_classes(exclude),
            provenance=wire.provenance_message(snapshot.provenance()),
        )

    def FitGrowth(
        self, request: norm_pb2.FitGrowthRequest, context: grpc.ServicerContext
    ) -> norm_pb2.FitGrowthResponse:
        snapshot = open_run(self._bucket, request.run)
        exclude = wire.excluded_classes(request)
        layers = (request.layers.first, request.layers.last) if request.HasField("layers") else None
        chosen = {"site": request.site} if request.site else {}
        growth = fit_growth(snapshot, layers=layers, exclude=exclude, **chosen)
        return norm_pb2.FitGrowthResponse(
            site=growth.site,
            layers=norm_pb2.LayerRange(first=growth.first_layer, last=growth.last_layer),
            rate=growth.rate,
            r_squared=growth.r_squared,
            points=wire.table_message(growth.points),
            excluded=wire.token_classes(exclude),
            provenance=wire.provenance_message(snapshot.provenance()),
        )
