"""What makes a feature fire hardest, and how often it fires at all."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from actstore_storage.entries import Entries
from actstore_storage.exclusion import DEFAULT_EXCLUSION, check_limit, kept_classes
from actstore_storage.feature_reader import FeatureReader
from actstore_storage.ranking import Ranking
from actstore_storage.rows import TokenFilter
from actstore_storage.snapshot import Snapshot
from actstore_storage.windows import Window, examples_table

EXAMPLES_MAX = 1000
BINS_MAX = 10_000
# How many more than k are read at first where several of the strongest may lie in one sequence.
_HEAD_FACTOR = 2


@dataclass(frozen=True)
class FeatureStatistics:
    """As in feature.proto. `histogram` has columns low, high, count: bin i holds low < activation <= high."""

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
    """A row an example, strongest first and at most one from a sequence; ties by sequence, then position.

    `rank` counts from 1. Excluded tokens, and those that `keep` leaves out, start no example, and are shown in windows
    all the same.
    """
    check_limit(k, EXAMPLES_MAX, "k")
    window = Window(tokens_before, tokens_after)
    reader = FeatureReader(snapshot, sae)
    return examples_table(reader, feature, strongest(reader.ranking(feature, exclude, keep), k), window)


def strongest(ranking: Ranking, k: int) -> Entries:
    """The k strongest, each of another sequence."""
    wanted = k * _HEAD_FACTOR
    while True:
        head = ranking.head(wanted)
        _, firsts = np.unique(head.sequence, return_index=True)
        if len(firsts) >= k or wanted >= ranking.total:
            return head.take(np.sort(firsts)[:k])
        wanted *= 4


def feature_statistics(
    snapshot: Snapshot,
    sae: str,
    feature: int,
    *,
    bins: int = 40,
    exclude: frozenset[str] = DEFAULT_EXCLUSION,
) -> FeatureStatistics:
    """`bins` equal bins between 0 and the maximum. All numbers are 0 for a feature that never fires."""
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


def histogram(ranking: Ranking, bins: int) -> pa.Table:
    """Columns low, high, count; no rows where there is no activation."""
    edges = np.linspace(0.0, ranking.maximum, bins + 1) if ranking.total else np.zeros(1)
    above = np.array([ranking.above(float(edge)) for edge in edges], np.int64)
    counts = above[:-1] - above[1:]
    return pa.table({"low": pa.array(edges[:-1]), "high": pa.array(edges[1:]), "count": pa.array(counts)})
