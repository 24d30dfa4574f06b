"""Sums of norms sequence by sequence, and the shards that they are drawn from, against a look at every token."""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actstore_storage.bucket import Bucket
from actstore_storage.format.sites import Site
from actstore_storage.norms import sequence_sums as sums_module
from actstore_storage.norms.rows import KeptTokens
from actstore_storage.norms.sequence_sums import Measured, SequenceSums, evenly_spread, paired_sums, sequence_sums
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.snapshot import Snapshot
from tests.storage.random_run import RandomRun, make_run, write_run

SITES = [Site(layer, "resid_post") for layer in (0, 2, 3)]


def stored(bucket: Bucket, run: RandomRun, name: str, shards: tuple[int, ...] | None = None) -> Snapshot:
    write_run(bucket, replace(run, record=replace(run.record, run=name)), shards)
    return open_run(bucket, name)


def slow_sums(run: RandomRun, sequences: list[int], kept: np.ndarray) -> tuple[list, list]:
    """[sequence, site]: of the finite norms of tokens that count, their sum, and how many there are."""
    sums, counts = [], []
    for sequence in sequences:
        here = kept & (run.tokens.sequence == sequence)
        own = [run.norms[str(site)][here].astype(np.float64) for site in SITES]
        sums.append([values[np.isfinite(values)].sum() for values in own])
        counts.append([np.isfinite(values).sum() for values in own])
    return sums, counts


def assert_same(found: SequenceSums, sums: list, counts: list) -> None:
    assert len(found) == len(sums)
    np.testing.assert_allclose(found.sums, sums, rtol=1e-12)
    np.testing.assert_array_equal(found.counts, counts)


def test_sums_are_those_of_the_finite_norms_that_count(local_bucket: Bucket) -> None:
    run = make_run(4, sequences=11, longest=9)
    run.norms["resid_post.2"][::7] = np.nan
    run.norms["resid_post.3"][3::5] = np.inf
    snapshot = stored(local_bucket, run, "run")
    for kept, counted in (
        (KeptTokens(frozenset()), np.ones(len(run.tokens.token), bool)),
        (KeptTokens(frozenset({"bos", "special"})), run.kept(frozenset({"bos", "special"}))),
        (KeptTokens(frozenset(), True), run.tokens.position > 0),
    ):
        measured = Measured(SITES, "l2", kept)
        assert_same(sequence_sums(snapshot, [0, 1, 2, 3], measured), *slow_sums(run, list(range(11)), counted))
        assert_same(sequence_sums(snapshot, [3, 1], measured), *slow_sums(run, [9, 10, 3, 4, 5], counted))


def test_pairs_are_of_the_sequences_that_all_runs_have(local_bucket: Bucket) -> None:
    runs = [make_run(4, sequences=11, longest=9) for _ in range(3)]
    for scale, run in enumerate(runs, start=1):
        for norms in run.norms.values():
            norms *= scale
    shards = [None, (0, 2, 3), (3, 1, 2)]
    snapshots = [stored(local_bucket, run, f"run{i}", shards[i]) for i, run in enumerate(runs)]
    measured = Measured(SITES[:1], "l2", KeptTokens(frozenset()))
    everything = np.ones(len(runs[0].tokens.token), bool)
    each = [slow_sums(run, [6, 7, 8, 9, 10], everything) for run in runs]
    found = paired_sums(snapshots, measured)
    expected = [np.stack([np.array(one[part])[:, 0] for one in each], axis=1) for part in (0, 1)]
    assert_same(found, *(part.tolist() for part in expected))


def test_runs_that_share_no_shard_have_no_pairs(local_bucket: Bucket) -> None:
    """Nor have those whose shards are of other sizes."""
    run, larger = (make_run(4, sequences=11, longest=9, sequences_per_shard=size) for size in (3, 4))
    first, second = stored(local_bucket, run, "first", (0, 2)), stored(local_bucket, run, "second", (1, 3))
    other = stored(local_bucket, larger, "other")
    measured = Measured(SITES[:1], "l2", KeptTokens(frozenset()))
    for snapshots in ([first, second], [first, other], [first, other, second]):
        found = paired_sums(snapshots, measured)
        assert found.sums.shape == found.counts.shape == (0, len(snapshots))
    assert len(paired_sums([first, first], measured)) == 6


def of_shards(tokens_total: int, sequences_total: int, sequences_per_shard: int) -> Any:
    specification = SimpleNamespace(sequences_per_shard=sequences_per_shard)
    return SimpleNamespace(
        record=SimpleNamespace(tokens_total=tokens_total, sequences_total=sequences_total, specification=specification)
    )


@pytest.mark.parametrize("shards", [1, 2, 7, 100])
@pytest.mark.parametrize("sequences_per_shard", [1, 10, 64])
@pytest.mark.parametrize("length", [0, 1, 37, 1000])
def test_shards_are_as_many_as_an_interval_is_computed_from(
    shards: int, sequences_per_shard: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sums_module, "INTERVAL_TOKENS", 9_000)
    monkeypatch.setattr(sums_module, "INTERVAL_SEQUENCES", 100)
    snapshot = of_shards(length * 500, 500, sequences_per_shard)
    numbers = 3 * np.arange(shards)
    chosen = evenly_spread(snapshot, numbers)

    def fits(count: int) -> bool:
        return count * sequences_per_shard <= 100 and count * sequences_per_shard * length <= 9_000

    assert 1 <= len(chosen) <= shards
    assert fits(len(chosen)) or len(chosen) == 1
    assert len(chosen) == shards or not fits(len(chosen) + 1)
    places = np.searchsorted(numbers, chosen).tolist()
    assert numbers[places].tolist() == chosen
    gaps = [after - before for before, after in pairwise([*places, shards])]
    assert places[0] == 0
    assert max(gaps) - min(gaps) <= 1


def test_of_no_shards_none_is_chosen() -> None:
    assert evenly_spread(of_shards(10, 10, 1), np.empty(0, np.int64)) == []


def test_an_interval_is_of_a_million_tokens_or_of_twenty_thousand_sequences() -> None:
    """Of 1000 shards of 1000 sequences, which have 64 tokens each, or 10."""
    for length, shards in ((64, 15), (10, 20)):
        found = evenly_spread(of_shards(length * 1_000_000, 1_000_000, 1000), np.arange(1000))
        assert len(found) == shards
