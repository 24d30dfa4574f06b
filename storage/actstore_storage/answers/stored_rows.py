"""Reads stored rows batch by batch: vectors, tokens, a feature's activations."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from actstore_api.records.activation import ReadActivations, ReadTokens
from actstore_api.records.feature import ReadFeature
from actstore_api.records.terms import Provenance
from actstore_storage.answers.selection import chosen_tokens, token_filter
from actstore_storage.answers.store import Store
from actstore_storage.errors import BadRequest
from actstore_storage.features.statistics import feature_rows
from actstore_storage.rows.reading import read_activations, read_tokens

Rows = tuple[Provenance, Iterator[pa.RecordBatch]]


def activations(store: Store, question: ReadActivations) -> Rows:
    """Vectors of dense sites. One site's are in the column `activation`; for several, each has a column under its own
    name.
    """
    if not question.sites:
        raise BadRequest("no site was given", field="sites", value="none", allowed="one dense site or more")
    snapshot = store.snapshot(question.run)
    sites = question.sites[0] if len(question.sites) == 1 else question.sites
    keep = token_filter(question.where, question.exclude)
    return snapshot.provenance(), read_activations(snapshot, sites, keep, question.columns, store.row_cache)


def tokens(store: Store, question: ReadTokens) -> Rows:
    """Tokens and their texts."""
    snapshot = store.snapshot(question.run)
    return snapshot.provenance(), read_tokens(snapshot, token_filter(question.where, question.exclude), store.row_cache)


def feature(store: Store, question: ReadFeature) -> Rows:
    """A feature's activations, strongest first."""
    snapshot = store.snapshot(question.run)
    batches = feature_rows(
        snapshot,
        question.sae,
        question.feature,
        threshold=question.threshold,
        exclude=question.exclude,
        keep=chosen_tokens(question.where),
    )
    return snapshot.provenance((question.sae,)), batches


ROWS: Mapping[type, Callable[[Store, Any], Rows]] = {
    ReadActivations: activations,
    ReadTokens: tokens,
    ReadFeature: feature,
}
