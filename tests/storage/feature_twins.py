"""Questions about features, answered by a slow look at every token-major row: the twins of the fast answers."""

from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest

from actstore_storage.features.coactivity import active_features, cofiring_features
from actstore_storage.features.examples import Window
from actstore_storage.features.sampling import Sample, sample_many
from actstore_storage.features.statistics import feature_rows, feature_statistics
from actstore_storage.features.table import FeatureSearch, feature_table
from actstore_storage.runs.shard_writer import TokenRows
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.token_filter import TokenFilter
from tests.storage.random_run import SAE, RandomRun

EXCLUSIONS = [frozenset[str](), frozenset({"bos"}), frozenset({"bos", "special"})]
# One beside each exclusion.
FILTERS = [
    TokenFilter(tokens=tuple(range(9)), end_position=10),
    TokenFilter(documents=(4, 5, 9), exclude=frozenset({"special"})),
    TokenFilter(first_sequence=3, end_sequence=12, first_position=1),
]
Entry = tuple[float, int, int]


def slow_entries(run: RandomRun, feature: int, exclude: frozenset[str], keep: TokenFilter | None = None) -> list[Entry]:
    """(activation, sequence, position), in order."""
    counts = counted(run, exclude, keep)
    values = run.features[:, feature]
    rows = [row for row in range(len(values)) if counts[row] and values[row] > 0]
    found = [(float(values[row]), int(run.tokens.sequence[row]), int(run.tokens.position[row])) for row in rows]
    return sorted(found, key=lambda entry: (-entry[0], entry[1], entry[2]))


def counted(run: RandomRun, exclude: frozenset[str], keep: TokenFilter | None = None) -> np.ndarray:
    """Which rows count."""
    if keep is None:
        return run.kept(exclude)
    return run.kept(exclude | keep.exclude) & keep.mask_of(run.tokens)


def slow_sample(entries: list[Entry], sample: Sample) -> list[Entry]:
    rng = np.random.default_rng(sample.seed)
    if not entries:
        return []
    if sample.method == "top":
        firsts: dict[int, Entry] = {}
        for entry in entries:
            firsts.setdefault(entry[1], entry)
        return list(firsts.values())[: sample.k]
    if sample.method == "range":
        edges = np.linspace(0, entries[0][0], sample.k + 1)
        bins = [[entry for entry in entries if low < entry[0] <= high] for low, high in pairwise(edges)]
        found, before = [], 0
        for members in reversed(bins):
            if members:
                found.append(entries[int(rng.integers(before, before + len(members)))])
            before += len(members)
        return found
    if sample.method == "rank":
        return [entries[i] for i in sorted({round(i) for i in np.linspace(0, len(entries) - 1, sample.k)})]
    if sample.method == "quantile":
        ends = [round(i) for i in np.linspace(0, len(entries), sample.bins + 1)]
        parts = [entries[first:last] for first, last in pairwise(ends)]
        return [
            part[i] for part in parts for i in sorted(rng.choice(len(part), min(sample.k, len(part)), replace=False))
        ]
    active = [entry for entry in entries if entry[0] > sample.threshold]
    return [active[i] for i in sorted(rng.choice(len(active), min(sample.k, len(active)), replace=False))]


def slow_r2(run: RandomRun, feature: int, exclude: frozenset[str]) -> tuple[float, float]:
    """Raw and corrected."""
    kept = run.kept(exclude)
    values, tokens = run.features[kept, feature].astype(np.float64), run.tokens.token[kept]
    means = {token: values[tokens == token].mean() for token in set(tokens.tolist())}
    explained = np.var([means[token] for token in tokens.tolist()])
    raw = explained / values.var() if values.var() else float("nan")
    count, distinct = len(values), len(means)
    return raw, 1 - (1 - raw) * (count - 1) / (count - distinct) if count > distinct else float("nan")


def row_numbers(run: RandomRun) -> dict[tuple[int, int], int]:
    """By (sequence, position)."""
    places = zip(run.tokens.sequence.tolist(), run.tokens.position.tolist(), strict=True)
    return {place: row for row, place in enumerate(places)}


def part_of(run: RandomRun, shards: np.ndarray) -> RandomRun:
    """The rows of these shards alone."""
    chosen = np.isin(run.tokens.sequence // run.record.specification.sequences_per_shard, shards)
    tokens, dense, norms, _ = run.part(chosen)
    return RandomRun(run.record, tokens, dense, norms, run.features[chosen])


def read_back(snapshot: Snapshot, sae: str) -> RandomRun:
    """A run's token-major rows, as any Parquet reader finds them; without dense rows and norms."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in TokenRows.__dataclass_fields__}
    features = []
    for commit in snapshot.commits:
        with snapshot.bucket.open(commit.objects["tokens"].key) as source:
            tokens = pq.read_table(source)
        with snapshot.bucket.open(commit.objects[f"features-{sae}"].key) as source:
            nonzeros = pq.read_table(source)
        for name, parts in columns.items():
            parts.append(tokens[name].to_numpy())
        values = np.zeros((len(tokens), snapshot.sae(sae).d_sae), np.float32)
        values[nonzeros["row"].to_numpy(), nonzeros["feature"].to_numpy()] = nonzeros["activation"].to_numpy()
        features.append(values)
    rows = TokenRows(*(np.concatenate(parts) for parts in columns.values()))
    return RandomRun(snapshot.record, rows, {}, {}, np.concatenate(features))


def assert_every_answer(snapshot: Snapshot, run: RandomRun, features: tuple[int, ...], sae: str = SAE) -> None:
    """Of a snapshot whose rows are those of `run`: every stored question about features, as its twin answers it."""
    for exclude, each in zip(EXCLUSIONS, FILTERS, strict=True):
        for keep in (None, each):
            assert_samples(snapshot, run, features, exclude, keep, sae)
            assert_rows(snapshot, run, features, exclude, keep, sae)
        assert_active(snapshot, run, exclude, each, sae)
        assert_statistics(snapshot, run, features, exclude, sae)
        assert_cofiring(snapshot, run, features, exclude, sae)


def assert_samples(
    snapshot: Snapshot,
    run: RandomRun,
    features: tuple[int, ...],
    exclude: frozenset[str],
    keep: TokenFilter | None,
    sae: str,
) -> None:
    entries = {feature: slow_entries(run, feature, exclude, keep) for feature in features}
    for method in ("top", "range", "rank", "quantile", "activating"):
        sample = Sample(method, k=6, bins=3, threshold=0.4, seed=7)
        found = sample_many(snapshot, sae, features, sample, window=Window(0, 0), exclude=exclude, keep=keep)
        expected = [(feature, *entry) for feature in features for entry in slow_sample(entries[feature], sample)]
        names = ("feature", "activation", "sequence", "position")
        assert [tuple(row[name] for name in names) for row in found.to_pylist()] == expected
    counts = counted(run, exclude, keep)
    place = row_numbers(run)
    for feature in features:
        drawn = sample_many(snapshot, sae, (feature,), Sample("positions", k=8, seed=3), exclude=exclude, keep=keep)
        rows = [place[row["sequence"], row["position"]] for row in drawn.to_pylist()]
        assert len(rows) == min(8, counts.sum())
        assert rows == sorted(set(rows))
        assert counts[rows].all()
        assert drawn["activation"].to_pylist() == run.features[rows, feature].tolist()


def assert_rows(
    snapshot: Snapshot,
    run: RandomRun,
    features: tuple[int, ...],
    exclude: frozenset[str],
    keep: TokenFilter | None,
    sae: str,
) -> None:
    place = row_numbers(run)
    for feature in features:
        for threshold in (0.0, 0.6):
            batches = feature_rows(snapshot, sae, feature, threshold=threshold, exclude=exclude, keep=keep)
            found = [row for batch in batches for row in batch.to_pylist()]
            expected = [entry for entry in slow_entries(run, feature, exclude, keep) if entry[0] > threshold]
            assert [(row["activation"], row["sequence"], row["position"]) for row in found] == expected
            here = [place[row["sequence"], row["position"]] for row in found]
            for name in ("document", "token", "flags"):
                assert [row[name] for row in found] == getattr(run.tokens, name)[here].tolist()


def assert_statistics(
    snapshot: Snapshot, run: RandomRun, features: tuple[int, ...], exclude: frozenset[str], sae: str
) -> None:
    kept = run.kept(exclude)
    search = FeatureSearch(with_token_r2=True, features=features)
    table = {row["feature"]: row for row in feature_table(snapshot, sae, search, exclude=exclude).to_pylist()}
    for feature in features:
        values = run.features[kept, feature].astype(np.float64)
        active = values[values > 0]
        found = feature_statistics(snapshot, sae, feature, bins=7, exclude=exclude)
        largest = active.max(initial=0)
        for each in (table[feature], vars(found)):
            assert (each["active_tokens"], each["maximum"]) == (len(active), largest)
            assert each["density"] == len(active) / max(1, len(values))
            assert each["mean_when_active"] == pytest.approx(active.mean() if len(active) else 0, rel=1e-12)
        assert table[feature]["token_r2"] == pytest.approx(slow_r2(run, feature, exclude)[1], abs=1e-9, nan_ok=True)
        bins = pairwise(np.linspace(0, largest, 8)) if len(active) else ()
        expected = [int(((active > low) & (active <= high)).sum()) for low, high in bins]
        assert found.histogram["count"].to_pylist() == expected


def assert_active(snapshot: Snapshot, run: RandomRun, exclude: frozenset[str], keep: TokenFilter, sae: str) -> None:
    counts, chosen = run.kept(exclude), counted(run, exclude, keep)
    found = active_features(snapshot, sae, keep, k=1000, exclude=exclude).to_pylist()
    fires = np.flatnonzero((run.features[chosen] > 0).any(axis=0))
    assert {row["feature"] for row in found} == set(fires.tolist())
    for row in found:
        values = run.features[chosen, row["feature"]].astype(np.float64)
        density = (run.features[counts, row["feature"]] > 0).mean()
        assert (row["active_tokens"], row["maximum"]) == ((values > 0).sum(), values.max())
        assert row["mean"] == pytest.approx(values.mean(), rel=1e-9)
        assert row["lift"] == pytest.approx((values > 0).mean() / density, rel=1e-9)


def assert_cofiring(
    snapshot: Snapshot, run: RandomRun, features: tuple[int, ...], exclude: frozenset[str], sae: str
) -> None:
    fires = run.features[run.kept(exclude)] > 0
    for feature in features:
        found = cofiring_features(snapshot, sae, feature, k=1000, least_tokens=2, exclude=exclude).to_pylist()
        both = (fires & fires[:, [feature]]).sum(axis=0)
        both[feature] = 0
        assert {row["feature"]: row["both_tokens"] for row in found} == {g: n for g, n in enumerate(both) if n >= 2}
        for row in found:
            independent = fires[:, feature].mean() * fires[:, row["feature"]].mean()
            assert row["lift"] == pytest.approx(row["both_tokens"] / len(fires) / independent, rel=1e-9)
