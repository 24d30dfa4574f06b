"""What makes a feature fire, and how often."""

from collections.abc import Iterator
from typing import Any

import grpc

from actstore_api.v1 import feature_pb2
from actstore_api.v1.service_pb2_grpc import FeatureServiceServicer
from actstore_service import wire
from actstore_service.encoded import row_messages
from actstore_storage.bucket import Bucket
from actstore_storage.errors import BadRequest
from actstore_storage.features.coactivity import active_features, cofiring_features
from actstore_storage.features.examples import Window
from actstore_storage.features.sampling import METHODS, Sample, sample_many
from actstore_storage.features.statistics import feature_rows, feature_statistics, top_examples
from actstore_storage.features.table import FeatureSearch, feature_table
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.token_filter import EVERY_ROW

_METHODS = {feature_pb2.SampleMethod.Value(f"SAMPLE_METHOD_{name.upper()}"): name for name in METHODS}


class FeatureService(FeatureServiceServicer):
    def __init__(self, bucket: Bucket, batch_bytes: int) -> None:
        self._bucket, self._batch_bytes = bucket, batch_bytes

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
            keep=wire.token_selection(request),
            **wire.given(request, "k", "tokens_before", "tokens_after"),
        )
        return feature_pb2.GetTopExamplesResponse(
            examples=wire.table_message(examples),
            **_origin(snapshot, reference.sae, exclude),
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
            **_origin(snapshot, reference.sae, exclude),
        )

    def SampleExamples(
        self, request: feature_pb2.SampleExamplesRequest, context: grpc.ServicerContext
    ) -> feature_pb2.SampleExamplesResponse:
        snapshot = open_run(self._bucket, request.run)
        exclude = wire.excluded_classes(request)
        sample = Sample(
            _method(request.method),
            threshold=request.threshold,
            seed=request.seed,
            **wire.given(request, "k", "bins"),
        )
        examples = sample_many(
            snapshot,
            request.sae,
            request.features,
            sample,
            window=Window(**wire.given(request, "tokens_before", "tokens_after")),
            exclude=exclude,
            keep=wire.token_selection(request),
        )
        return feature_pb2.SampleExamplesResponse(
            examples=wire.table_message(examples), **_origin(snapshot, request.sae, exclude)
        )

    def ReadFeature(
        self, request: feature_pb2.ReadFeatureRequest, context: grpc.ServicerContext
    ) -> Iterator[feature_pb2.ReadFeatureResponse]:
        asked = request.feature
        snapshot = open_run(self._bucket, asked.run)
        batches = feature_rows(
            snapshot,
            asked.sae,
            asked.feature,
            threshold=request.threshold,
            exclude=wire.excluded_classes(request),
            keep=wire.token_selection(request),
        )
        return row_messages(snapshot, batches, self._batch_bytes, feature_pb2.ReadFeatureResponse, (asked.sae,))

    def FindFeatures(
        self, request: feature_pb2.FindFeaturesRequest, context: grpc.ServicerContext
    ) -> feature_pb2.FindFeaturesResponse:
        snapshot = open_run(self._bucket, request.run)
        exclude = wire.excluded_classes(request)
        search = FeatureSearch(
            {bound.statistic: _bound(bound) for bound in request.bounds},
            order=request.order or FeatureSearch.order,
            ascending=request.ascending,
            features=tuple(request.features),
            with_token_r2=request.with_token_r2,
            **wire.given(request, "k"),
        )
        found = feature_table(snapshot, request.sae, search, exclude=exclude)
        return feature_pb2.FindFeaturesResponse(
            features=wire.table_message(found), **_origin(snapshot, request.sae, exclude)
        )

    def GetActiveFeatures(
        self, request: feature_pb2.GetActiveFeaturesRequest, context: grpc.ServicerContext
    ) -> feature_pb2.GetActiveFeaturesResponse:
        snapshot = open_run(self._bucket, request.run)
        exclude = wire.excluded_classes(request)
        found = active_features(
            snapshot,
            request.sae,
            wire.token_selection(request) or EVERY_ROW,
            order=request.order or "mean",
            exclude=exclude,
            **wire.given(request, "k"),
        )
        return feature_pb2.GetActiveFeaturesResponse(
            features=wire.table_message(found), **_origin(snapshot, request.sae, exclude)
        )

    def GetCofiringFeatures(
        self, request: feature_pb2.GetCofiringFeaturesRequest, context: grpc.ServicerContext
    ) -> feature_pb2.GetCofiringFeaturesResponse:
        asked = request.feature
        snapshot = open_run(self._bucket, asked.run)
        exclude = wire.excluded_classes(request)
        found = cofiring_features(
            snapshot, asked.sae, asked.feature, exclude=exclude, **wire.given(request, "k", "least_tokens")
        )
        return feature_pb2.GetCofiringFeaturesResponse(
            features=wire.table_message(found), **_origin(snapshot, asked.sae, exclude)
        )


def _origin(snapshot: Snapshot, sae: str, exclude: frozenset[str]) -> dict[str, Any]:
    provenance = wire.provenance_message(snapshot.provenance((sae,)))
    return {"excluded": wire.token_classes(exclude), "provenance": provenance}


def _method(number: int) -> str:
    if number == feature_pb2.SAMPLE_METHOD_UNSPECIFIED:
        return "top"
    if number not in _METHODS:
        allowed = [feature_pb2.SampleMethod.Name(known) for known in _METHODS]
        raise BadRequest(f"sample method {number} is not known", field="method", value=number, allowed=allowed)
    return _METHODS[number]


def _bound(bound: feature_pb2.StatisticBound) -> tuple[float | None, float | None]:
    given = wire.given(bound, "low", "high")
    return given.get("low"), given.get("high")
