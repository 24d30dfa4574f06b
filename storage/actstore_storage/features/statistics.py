"""One feature's statistics: how often it fires, how strongly, its top examples, and each of its activations."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from actstore_storage.errors import BadRequest, check_limit
from actstore_storage.features.entries import COLUMNS
from actstore_storage.features.examples import Window
from actstore_storage.features.ranking import Ranking
from actstore_storage.features.reader import FeatureReader
from actstore_storage.features.sampling import Sample, sample_examples
from actstore_storage.format.products import SEGMENT_FORMAT
from actstore_storage.format.tokens import DEFAULT_EXCLUSION, kept_classes
from actstore_storage.parquet.reading import at_least_one
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.token_filter import TokenFilter

BINS_MAX = 10_000
ROWS_AT_ONCE = 65_536
ENTRIES = pa.schema([SEGMENT_FORMAT.schema.field(name) for name in COLUMNS])


@dataclass(frozen=True)
class FeatureStatistics:
    """How often and how strongly one feature fires, as in feature.proto. `histogram` has columns low, high, count: bin
    i holds low < activation <= high.
    """

    tokens: int
    active_tokens: int
    density: float
    maximum: float
    mean_when_active: float
    histogram: pa.Table


def top_examples(
    snapshot: Snapshot,
    sae: str,
    feature: int,
    *,
    k: int = 20,
    tokens_before: int = 12,
    tokens_after: int = 6,
    exclude: frozenset[str] = DEFAULT_EXCLUSION,
    keep: TokenFilter | None = None,
) -> pa.Table:
    """Finds the strongest examples of a feature. One row per example, strongest first and at most one from a sequence;
    ties by sequence, then position.

    `rank` counts from 1. Excluded tokens, and those that `keep` leaves out, cannot be examples, but appear in windows.
    """
    window = Window(tokens_before, tokens_after)
    return sample_examples(snapshot, sae, feature, Sample("top", k=k), window=window, exclude=exclude, keep=keep)


def feature_statistics(
    snapshot: Snapshot,
    sae: str,
    feature: int,
    *,
    bins: int = 40,
    exclude: frozenset[str] = DEFAULT_EXCLUSION,
) -> FeatureStatistics:
    """Returns how often and how strongly a feature fires. `bins` equal bins between 0 and the maximum. All numbers are
    0 for a feature that never fires.
    """
    check_limit(bins, BINS_MAX, "bins")
    kept = kept_classes(exclude)
    reader = FeatureReader(snapshot, sae)
    tokens = sum(snapshot.tokens_by_class.get(name, 0) for name in kept)
    active, maximum, total = reader.counts(feature, exclude)
    return FeatureStatistics(
        tokens=tokens,
        active_tokens=active,
        density=active / tokens if tokens else 0.0,
        maximum=maximum,
        mean_when_active=total / active if active else 0.0,
        histogram=histogram(reader.ranking(feature, exclude), bins),
    )


def feature_rows(
    snapshot: Snapshot,
    sae: str,
    feature: int,
    *,
    threshold: float = 0.0,
    exclude: frozenset[str] = DEFAULT_EXCLUSION,
    keep: TokenFilter | None = None,
) -> Iterator[pa.RecordBatch]:
    """Reads every activation greater than `threshold`, strongest first, with the columns of ENTRIES. One empty batch if
    there are none.
    """
    if not 0 <= threshold < np.inf:
        raise BadRequest(f"threshold is {threshold}", field="threshold", value=threshold, allowed="0 or more")
    ranking = FeatureReader(snapshot, sae).ranking(feature, exclude, keep)

    def batches() -> Iterator[pa.RecordBatch]:
        for entries in ranking.chunks(threshold, ROWS_AT_ONCE):
            yield pa.RecordBatch.from_arrays(
                [pa.array(getattr(entries, name)) for name in ENTRIES.names], schema=ENTRIES
            )

    return at_least_one(batches(), ENTRIES)


def histogram(ranking: Ranking, bins: int) -> pa.Table:
    """Counts a feature's activations in equal bins from 0 to the largest. Columns low, high, count; no rows if there
    are no activations.
    """
    edges = np.linspace(0.0, ranking.maximum, bins + 1) if ranking.total else np.zeros(1)
    above = np.array([ranking.above(float(edge)) for edge in edges], np.int64)
    counts = above[:-1] - above[1:]
    return pa.table({"low": pa.array(edges[:-1]), "high": pa.array(edges[1:]), "count": pa.array(counts)})
