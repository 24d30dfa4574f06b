"""What makes a feature fire, and how often. Read off the by-feature index: only row groups that hold the feature."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from actstore_storage.commit import Commit
from actstore_storage.errors import BadRequest
from actstore_storage.exclusion import DEFAULT_EXCLUSION, check_limit, kept_classes, kept_rows
from actstore_storage.layout import index_product, statistics_product
from actstore_storage.reading import open_product
from actstore_storage.registry import token_texts
from actstore_storage.rows import shard_tokens
from actstore_storage.snapshot import Snapshot

EXAMPLES_MAX = 1000
WINDOW_TOKENS_MAX = 1024
BINS_MAX = 10_000

_EXAMPLES = pa.schema(
    [
        ("rank", pa.int32()),
        ("activation", pa.float32()),
        ("sequence", pa.int64()),
        ("position", pa.int32()),
        ("document", pa.int64()),
        ("first_position", pa.int32()),
        ("tokens", pa.list_(pa.int32())),
        ("texts", pa.list_(pa.string())),
        ("activations", pa.list_(pa.float32())),
    ]
)


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
) -> pa.Table:
    """A row an example, strongest first and at most one from a sequence; ties by sequence, then position.

    `rank` counts from 1. Excluded tokens start no example, and are shown in windows all the same.
    """
    _check_feature(snapshot, sae, feature)
    check_limit(k, EXAMPLES_MAX, "k")
    check_limit(tokens_before, WINDOW_TOKENS_MAX, "tokens_before", least=0)
    check_limit(tokens_after, WINDOW_TOKENS_MAX, "tokens_after", least=0)
    texts = token_texts(snapshot.bucket, snapshot.record.specification.tokenizer_sha256)
    best: list[_Example] = []  # which keep nothing of their shards alive
    for summary in sorted(_summaries(snapshot, sae, feature, exclude), key=lambda summary: -summary.maximum):
        if len(best) == k and summary.maximum < -best[-1].order[0]:
            break  # no shard that follows has anything stronger
        shard = _read_shard(snapshot, summary.commit, sae, feature)
        found = [
            _Example(order, shard.window(row, tokens_before, tokens_after, texts))
            for row, order in shard.strongest(k, exclude)
            if len(best) < k or order < best[-1].order
        ]
        best = sorted([*best, *found], key=lambda example: example.order)[:k]
    rows = [{"rank": rank} | example.shown for rank, example in enumerate(best, start=1)]
    return pa.Table.from_pylist(rows, _EXAMPLES)


def feature_statistics(
    snapshot: Snapshot, sae: str, feature: int, *, bins: int = 40, exclude: frozenset[str] = DEFAULT_EXCLUSION
) -> FeatureStatistics:
    """`bins` equal bins between 0 and the maximum. All numbers are 0 for a feature that never fires."""
    _check_feature(snapshot, sae, feature)
    check_limit(bins, BINS_MAX, "bins")
    kept = kept_classes(exclude)
    tokens = sum(snapshot.tokens_by_class.get(name, 0) for name in kept)
    summaries = list(_summaries(snapshot, sae, feature, exclude))
    active = sum(summary.count for summary in summaries)
    maximum = max((summary.maximum for summary in summaries), default=0.0)
    edges = np.linspace(0.0, maximum, bins + 1) if active else np.zeros(1)
    counts = np.zeros(len(edges) - 1, np.int64)
    for summary in summaries:
        entries = _read_entries(snapshot, summary.commit, sae, feature)
        values = entries.activation[kept_rows(entries.flags, exclude)].astype(np.float64)
        counts += np.bincount(np.searchsorted(edges, values) - 1, minlength=len(counts))
    return FeatureStatistics(
        tokens=tokens,
        active_tokens=active,
        density=active / tokens if tokens else 0.0,
        maximum=maximum,
        mean_when_active=sum(summary.sum for summary in summaries) / active if active else 0.0,
        histogram=pa.table({"low": pa.array(edges[:-1]), "high": pa.array(edges[1:]), "count": pa.array(counts)}),
    )


@dataclass(frozen=True)
class _Summary:
    """What one shard says of a feature over the tokens that count, where it fires at all."""

    commit: Commit
    count: int
    maximum: float
    sum: float


@dataclass(frozen=True)
class _Entries:
    """A feature's nonzeros in a shard, strongest first, ties by row."""

    activation: npt.NDArray[np.float32]
    row: npt.NDArray[np.int32]
    flags: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class _Shard:
    """A feature's nonzeros in a shard, and the shard's tokens."""

    entries: _Entries
    sequence: npt.NDArray[np.int64]
    position: npt.NDArray[np.int32]
    document: npt.NDArray[np.int64]
    token: npt.NDArray[np.int32]

    def strongest(self, k: int, exclude: frozenset[str]) -> "Iterator[tuple[int, _Order]]":
        """The rows of the k strongest, each of another sequence, and their places among all."""
        kept = kept_rows(self.entries.flags, exclude)
        rows, activations = self.entries.row[kept], self.entries.activation[kept]
        _, firsts = np.unique(self.sequence[rows], return_index=True)
        for i in np.sort(firsts)[:k]:
            row = int(rows[i])
            yield row, (-float(activations[i]), int(self.sequence[row]), int(self.position[row]))

    def window(self, row: int, before: int, after: int, texts: tuple[str, ...]) -> dict[str, object]:
        begin, end = np.searchsorted(self.sequence, [self.sequence[row], self.sequence[row] + 1])
        shown = np.arange(max(begin, row - before), min(end, row + after + 1))
        activations = np.zeros(len(shown), np.float32)
        inside = (self.entries.row >= shown[0]) & (self.entries.row <= shown[-1])
        activations[self.entries.row[inside] - shown[0]] = self.entries.activation[inside]
        tokens = self.token[shown].tolist()
        return {
            "activation": activations[row - shown[0]],
            "sequence": self.sequence[row],
            "position": self.position[row],
            "document": self.document[row],
            "first_position": self.position[shown[0]],
            "tokens": tokens,
            "texts": [texts[token] for token in tokens],
            "activations": activations.tolist(),
        }


# Strongest first, ties by sequence, then position.
_Order = tuple[float, int, int]


@dataclass(frozen=True)
class _Example:
    order: _Order
    shown: dict[str, object]


def _check_feature(snapshot: Snapshot, sae: str, feature: int) -> None:
    d_sae = snapshot.sae(sae).d_sae
    if not 0 <= feature < d_sae:
        raise BadRequest(
            f"SAE {sae} has no feature {feature}",
            reason="FEATURE_OUT_OF_RANGE",
            field="feature",
            value=feature,
            allowed=f"0 to {d_sae - 1}",
        )


def _summaries(snapshot: Snapshot, sae: str, feature: int, exclude: frozenset[str]) -> Iterator[_Summary]:
    kept = kept_classes(exclude)
    for commit in snapshot.commits:
        with open_product(snapshot.bucket, commit, statistics_product(sae)) as file:
            found = _rows_of_feature(file, feature)
        found = found.filter(pc.is_in(found["token_class"], pa.array(kept)))
        if found.num_rows:
            counts, maxima, sums = (found[name].to_numpy() for name in ("count", "maximum", "sum"))
            yield _Summary(commit, int(counts.sum()), float(maxima.max()), float(sums.sum()))


def _read_entries(snapshot: Snapshot, commit: Commit, sae: str, feature: int) -> _Entries:
    with open_product(snapshot.bucket, commit, index_product(sae)) as file:
        found = _rows_of_feature(file, feature)
    return _Entries(*(found[name].to_numpy() for name in ("activation", "row", "flags")))


def _read_shard(snapshot: Snapshot, commit: Commit, sae: str, feature: int) -> _Shard:
    tokens = shard_tokens(snapshot.bucket, commit)
    columns = (tokens[name].to_numpy() for name in ("sequence", "position", "document", "token"))
    return _Shard(_read_entries(snapshot, commit, sae, feature), *columns)


def _rows_of_feature(file: pq.ParquetFile, feature: int) -> pa.Table:
    """From a file sorted by `feature`, its first column: reads only row groups whose statistics admit the feature."""

    def bounds(group: int) -> pq.Statistics:
        return file.metadata.row_group(group).column(0).statistics

    groups = range(file.num_row_groups)
    first = bisect_left(groups, feature, key=lambda group: bounds(group).max)
    end = bisect_right(groups, feature, key=lambda group: bounds(group).min)
    table = file.read_row_groups(list(groups[first:end]), use_threads=False)
    return table.filter(pc.equal(table["feature"], feature))
