"""Answers questions about features: how often and when they fire."""

from collections.abc import Callable, Mapping
from typing import Any

from actstore_api.records.feature import (
    FindFeatures,
    FindFeaturesAnswer,
    GetActiveFeatures,
    GetActiveFeaturesAnswer,
    GetCofiringFeatures,
    GetCofiringFeaturesAnswer,
    GetFeatureStatistics,
    GetFeatureStatisticsAnswer,
    SampleExamples,
    SampleExamplesAnswer,
)
from actstore_storage.answers.selection import chosen_tokens, token_filter
from actstore_storage.answers.store import Store
from actstore_storage.features.coactivity import active_features, cofiring_features
from actstore_storage.features.examples import Window
from actstore_storage.features.sampling import Sample, sample_many
from actstore_storage.features.statistics import feature_statistics
from actstore_storage.features.table import FeatureSearch, feature_table
from actstore_storage.runs.snapshot import Snapshot


def statistics(store: Store, question: GetFeatureStatistics) -> GetFeatureStatisticsAnswer:
    """How often a feature fires, and how strongly."""
    snapshot = store.snapshot(question.run)
    found = feature_statistics(snapshot, question.sae, question.feature, bins=question.bins, exclude=question.exclude)
    return GetFeatureStatisticsAnswer(
        tokens=found.tokens,
        active_tokens=found.active_tokens,
        density=found.density,
        maximum=found.maximum,
        mean_when_active=found.mean_when_active,
        histogram=found.histogram,
        **_origin(snapshot, question),
    )


def sample(store: Store, question: SampleExamples) -> SampleExamplesAnswer:
    """Examples of features in their context, chosen by the question's method."""
    snapshot = store.snapshot(question.run)
    how = Sample(question.method, question.k, question.bins, question.threshold, question.seed)
    examples = sample_many(
        snapshot,
        question.sae,
        question.features,
        how,
        window=Window(question.tokens_before, question.tokens_after),
        exclude=question.exclude,
        keep=chosen_tokens(question.where),
        cache=store.row_cache,
    )
    return SampleExamplesAnswer(examples=examples, **_origin(snapshot, question))


def find(store: Store, question: FindFeatures) -> FindFeaturesAnswer:
    """Features within bounds of their statistics."""
    snapshot = store.snapshot(question.run)
    search = FeatureSearch(
        {bound.statistic: (bound.low, bound.high) for bound in question.bounds},
        order=question.order,
        ascending=question.ascending,
        k=question.k,
        features=question.features,
        with_token_r2=question.with_token_r2,
    )
    found = feature_table(snapshot, question.sae, search, exclude=question.exclude)
    return FindFeaturesAnswer(features=found, **_origin(snapshot, question))


def active(store: Store, question: GetActiveFeatures) -> GetActiveFeaturesAnswer:
    """Features that fire on chosen tokens."""
    snapshot = store.snapshot(question.run)
    found = active_features(
        snapshot,
        question.sae,
        token_filter(question.where),
        k=question.k,
        order=question.order,
        exclude=question.exclude,
    )
    return GetActiveFeaturesAnswer(features=found, **_origin(snapshot, question))


def cofiring(store: Store, question: GetCofiringFeatures) -> GetCofiringFeaturesAnswer:
    """Features that fire on the same tokens as a given one."""
    snapshot = store.snapshot(question.run)
    found = cofiring_features(
        snapshot,
        question.sae,
        question.feature,
        k=question.k,
        least_tokens=question.least_tokens,
        exclude=question.exclude,
    )
    return GetCofiringFeaturesAnswer(features=found, **_origin(snapshot, question))


ANSWERS: Mapping[type, Callable[[Store, Any], Any]] = {
    GetFeatureStatistics: statistics,
    SampleExamples: sample,
    FindFeatures: find,
    GetActiveFeatures: active,
    GetCofiringFeatures: cofiring,
}


def _origin(snapshot: Snapshot, question: Any) -> dict[str, Any]:
    return {"excluded": question.exclude, "provenance": snapshot.provenance((question.sae,))}
