"""Chooses which activations of a feature become examples: the strongest, or some by rank, range, quantile or at random.

Top examples alone mislead: a feature that looks like one word at its strongest may mean something else over most of its
range. Each method is exact on a snapshot, and depends only on it and on `seed`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from actstore_storage.errors import BadRequest, check_limit
from actstore_storage.features.entries import Entries
from actstore_storage.features.examples import Window, examples_table
from actstore_storage.features.ranking import Ranking
from actstore_storage.features.reader import FeatureReader
from actstore_storage.format.commit import Commit
from actstore_storage.format.keys import features_product
from actstore_storage.format.tokens import DEFAULT_EXCLUSION, kept_rows
from actstore_storage.parquet.reading import open_product
from actstore_storage.parquet.row_cache import NO_CACHE, RowCache
from actstore_storage.parquet.row_groups import read_between
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.token_filter import TokenFilter
from actstore_storage.runs.tokens import shard_tokens

METHODS = ("top", "range", "rank", "quantile", "activating", "positions")
EXAMPLES_MAX = 1000
SEED_MAX = 2**32 - 1
# For one question.
FEATURES_AT_ONCE_MAX, EXAMPLES_AT_ONCE_MAX = 256, 10_000
# Tokens of all windows of one question; their texts take most of its answer.
WINDOWS_TOKENS_MAX = 4_000_000
# How many more than k are read at first, because several of the strongest may be in one sequence.
_HEAD_FACTOR = 2


@dataclass(frozen=True)
class Sample:
    """How examples are chosen among a feature's activations above 0, on tokens that are not excluded.

    top         the k strongest, at most one from a sequence.
    range       one activation, at random, from each of k bins of equal width between 0 and the maximum, if the bin has
                any; strongest bin first. (Cunningham et al. 2023, "uniform"; there over all tokens, zeros included.)
    rank        those at k evenly spaced ranks, from the strongest (rank 0) to the weakest.
    quantile    k activations, drawn without replacement, from each of `bins` quantile bins, strongest first.
    activating  k activations, drawn without replacement among those above `threshold`, strongest first.
    positions   k tokens, drawn without replacement among all that are not excluded, in order of (sequence, position).
                The feature is 0 on most of them.
    """

    method: str
    k: int = 20
    bins: int = 10
    threshold: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            message = f"examples cannot be chosen by method {self.method!r}"
            raise BadRequest(message, field="method", value=self.method, allowed=METHODS)
        check_limit(self.k, EXAMPLES_MAX, "k")
        check_limit(self.bins, EXAMPLES_MAX, "bins")
        check_limit(self.seed, SEED_MAX, "seed", least=0)
        if self.method == "quantile":
            check_limit(self.k * self.bins, EXAMPLES_MAX, "k * bins")
        if not 0 <= self.threshold < np.inf:
            raise BadRequest(
                f"threshold is {self.threshold}", field="threshold", value=self.threshold, allowed="0 or more"
            )


def sample_examples(
    snapshot: Snapshot,
    sae: str,
    feature: int,
    sample: Sample,
    *,
    window: Window | None = None,
    exclude: frozenset[str] = DEFAULT_EXCLUSION,
    keep: TokenFilter | None = None,
) -> pa.Table:
    """Chooses examples of a feature, and adds the text around them. Columns are as in `top_examples`; empty for a
    feature that never fires, except with the method positions.
    """
    return _examples(FeatureReader(snapshot, sae), feature, sample, window or Window(), exclude, keep)


def sample_many(
    snapshot: Snapshot,
    sae: str,
    features: Sequence[int],
    sample: Sample,
    *,
    window: Window | None = None,
    exclude: frozenset[str] = DEFAULT_EXCLUSION,
    keep: TokenFilter | None = None,
    cache: RowCache = NO_CACHE,
) -> pa.Table:
    """Chooses examples of several features, one after another; a first column `feature` says which."""
    check_limit(len(features), FEATURES_AT_ONCE_MAX, "features")
    each = sample.k * (sample.bins if sample.method == "quantile" else 1)
    check_limit(len(features) * each, EXAMPLES_AT_ONCE_MAX, "features * examples")
    shown = (window or Window()).tokens_of(snapshot.record.specification.context_length)
    check_limit(len(features) * each * shown, WINDOWS_TOKENS_MAX, "features * examples * tokens of a window")
    reader = FeatureReader(snapshot, sae, cache)
    tables = []
    for feature in features:
        table = _examples(reader, feature, sample, window or Window(), exclude, keep)
        column = pa.array([feature] * len(table), pa.int32())
        tables.append(table.add_column(0, pa.field("feature", pa.int32()), column))
    return pa.concat_tables(tables)


def _examples(
    reader: FeatureReader,
    feature: int,
    sample: Sample,
    window: Window,
    exclude: frozenset[str],
    keep: TokenFilter | None,
) -> pa.Table:
    if sample.method == "positions":
        entries = _at_positions(reader, feature, sample, exclude, keep)
    else:
        entries = sampled(reader.ranking(feature, exclude, keep), sample)
    return examples_table(reader, feature, entries, window)


def strongest(ranking: Ranking, k: int) -> Entries:
    """Takes the k strongest activations, each from another sequence."""
    wanted = k * _HEAD_FACTOR
    while True:
        head = ranking.head(wanted)
        _, firsts = np.unique(head.sequence, return_index=True)
        if len(firsts) >= k or wanted >= ranking.total:
            return head.take(np.sort(firsts)[:k])
        wanted *= 4


def sampled(ranking: Ranking, sample: Sample) -> Entries:
    """As `Sample` says, except for positions."""
    rng = np.random.default_rng(sample.seed)
    if not ranking.total:
        ranks = np.empty(0, np.int64)
    elif sample.method == "top":
        return strongest(ranking, sample.k)
    elif sample.method == "range":
        edges = np.linspace(0.0, ranking.maximum, sample.k + 1)
        above = [ranking.above(float(edge)) for edge in edges]
        ranks = _one_of_each(above[::-1], rng)
    elif sample.method == "rank":
        ranks = np.unique(np.round(np.linspace(0, ranking.total - 1, sample.k)).astype(np.int64))
    elif sample.method == "quantile":
        ends = np.round(np.linspace(0, ranking.total, sample.bins + 1)).astype(np.int64)
        bins = zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
        ranks = np.concatenate([first + _without_repeats(rng, last - first, sample.k) for first, last in bins])
    else:
        ranks = _without_repeats(rng, ranking.above(sample.threshold), sample.k)
    return ranking.at_ranks(ranks)


def _one_of_each(ends: list[int], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """One rank from each interval between neighbors in `ends`, which ascend; none from an empty one."""
    return np.array([int(rng.integers(first, last)) for first, last in pairwise(ends) if first < last], np.int64)


def _without_repeats(rng: np.random.Generator, total: int, k: int) -> npt.NDArray[np.int64]:
    return np.sort(rng.choice(total, min(k, total), replace=False)).astype(np.int64)


def _at_positions(
    reader: FeatureReader, feature: int, sample: Sample, exclude: frozenset[str], keep: TokenFilter | None
) -> Entries:
    """Tokens are numbered in order of (sequence, position) as in the shards. Excluded ones are drawn, too, and skipped,
    so that shards without a draw need not be read.
    """
    reader.check(feature)
    if keep is not None:
        keep.check(reader.snapshot.record)
    commits = reader.snapshot.commits
    ends = np.cumsum(commits.token_counts)
    total = int(ends[-1]) if len(ends) else 0
    rng = np.random.default_rng(sample.seed)
    found: list[Entries] = []
    drawn: set[int] = set()
    while sum(map(len, found)) < sample.k and len(drawn) < total:
        fresh = _draw(rng, total, drawn, 2 * sample.k)
        rows_by_shard: dict[int, list[int]] = {}
        for row in fresh:
            place = int(np.searchsorted(ends, row, side="right"))
            rows_by_shard.setdefault(place, []).append(row - (int(ends[place - 1]) if place else 0))
        kept = {
            (place, row): entry
            for place, rows in rows_by_shard.items()
            for row, entry in _counted(reader, commits[place], feature, sorted(rows), exclude, keep)
        }
        for row in fresh:
            place = int(np.searchsorted(ends, row, side="right"))
            entry = kept.get((place, row - (int(ends[place - 1]) if place else 0)))
            found += [entry] if entry is not None else []
    entries = Entries.concatenated(found[: sample.k])
    return entries.take(np.lexsort((entries.position, entries.sequence)))


def _draw(rng: np.random.Generator, total: int, drawn: set[int], count: int) -> list[int]:
    """Draws this many new numbers below `total`, or those that are left; in the order of the draw."""
    if 2 * (len(drawn) + count) >= total:
        left = np.setdiff1d(np.arange(total), np.array(sorted(drawn), np.int64))
        fresh = [int(number) for number in rng.permutation(left)]
    else:
        fresh = []
        while len(fresh) < count:
            number = int(rng.integers(total))
            if number not in drawn:
                fresh.append(number)
                drawn.add(number)
    drawn.update(fresh)
    return fresh


def _counted(
    reader: FeatureReader,
    commit: Commit,
    feature: int,
    rows: list[int],
    exclude: frozenset[str],
    keep: TokenFilter | None,
) -> list[tuple[int, Entries]]:
    """Those of a shard's rows that are not excluded, each with the feature's activation."""
    tokens = shard_tokens(reader.snapshot.bucket, commit).take(pa.array(rows))
    values = np.zeros(len(rows), np.float32)
    held: dict[int, pa.Table] = {}
    with open_product(reader.snapshot.bucket, commit, features_product(reader.sae)) as file:
        for i, row in enumerate(rows):
            _, near = read_between(file, "row", row, row, ("row", "feature", "activation"), held)
            here = (near["row"].to_numpy() == row) & (near["feature"].to_numpy() == feature)
            values[i] = near["activation"].to_numpy()[here].sum()
    columns = (tokens[name].to_numpy() for name in ("sequence", "position", "document", "token", "flags"))
    entries = Entries(values, *columns)
    counts = kept_rows(entries.flags, exclude)
    if keep is not None:
        counts &= keep.mask_of(entries)
    return [(row, entries.take(slice(i, i + 1))) for i, row in enumerate(rows) if counts[i]]
