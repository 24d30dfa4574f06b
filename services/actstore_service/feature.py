"""What makes a feature fire, and how often."""

import grpc

from actstore_api.v1 import feature_pb2
from actstore_api.v1.service_pb2_grpc import FeatureServiceServicer
from actstore_service import wire
from actstore_storage.bucket import Bucket
from actstore_storage.features import feature_statistics, top_examples
from actstore_storage.runs import open_run


class FeatureService(FeatureServiceServicer):
    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def GetTopExamples(
        self, request: feature_pb2.GetTopExamplesRequest, context: grpc.ServicerContext
    ) -> feature_pb2.GetTopExamplesResponse:
        reference = request.feature
        snapshot = open_run(self._bucket, reference.run)
        exclude = wire.excluded_classes(request)
        examples = top_examples(
            snapshot,
            reference.sae,
            reference.feature,
            exclude=exclude,
            **wire.given(request, "k", "tokens_before", "tokens_after"),
        )
        return feature_pb2.GetTopExamplesResponse(
            examples=wire.table_message(examples),
            excluded=wire.token_classes(exclude),
            provenance=wire.provenance_message(snapshot.provenance((reference.sae,))),
        )

    def GetFeatureStatistics(
        self, request: feature_pb2.GetFeatureStatisticsRequest, context: grpc.ServicerContext
    ) -> feature_pb2.GetFeatureStatisticsResponse:
        reference = request.feature
        snapshot = open_run(self._bucket, reference.run)
        exclude = wire.excluded_classes(request)
        statistics = feature_statistics(
            snapshot, reference.sae, reference.feature, exclude=exclude, **wire.given(request, "bins")
        )
        return feature_pb2.GetFeatureStatisticsResponse(
            tokens=statistics.tokens,
            active_tokens=statistics.active_tokens,
            density=statistics.density,
            maximum=statistics.maximum,
            mean_when_active=statistics.mean_when_active,
            histogram=wire.table_message(statistics.histogram),
            excluded=wire.token_classes(exclude),
            provenance=wire.provenance_message(snapshot.provenance((reference.sae,))),
        )
