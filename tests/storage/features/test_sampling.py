"""Every way of choosing examples equals a slow look at all token-major rows, whatever the index is made of."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import ActstoreError
from actstore_storage.features.entries import Entries
from actstore_storage.features.examples import Window, examples_table
from actstore_storage.features.reader import FeatureReader
from actstore_storage.features.sampling import METHODS, Sample, sample_examples
from actstore_storage.features.segments import listed_segments
from actstore_storage.features.sources import token_counts
from actstore_storage.features.statistics import feature_statistics, top_examples
from actstore_storage.format.tokens import BOS, SPECIAL
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.token_filter import TokenFilter
from actstore_storage.upkeep import merging as index_merge
from actstore_storage.upkeep.fsck import check_runs
from actstore_storage.upkeep.merging import finish_merge, merge_part, plan_merges
from tests.run_state import merge_index
from tests.storage.feature_twins import EXCLUSIONS, part_of, slow_entries, slow_sample
from tests.storage.random_run import SAE, VOCABULARY, make_run, slow_top_examples, write_run, write_shard

# Large enough that a feature spans row groups of the merged index.
RUN = make_run(3, sequences=640, longest=44, sequences_per_shard=160)
# Each meets each number of examples, with another feature.
FILTERS = (None, TokenFilter(tokens=tuple(range(9)), end_position=30), TokenFilter(documents=(4, 5, 200)))


def merged_whole(bucket: Bucket) -> None:
    assert merge_index(bucket, "run", SAE, "merge", part_rows=20_000) == 1


def merged_in_part(bucket: Bucket) -> None:
    """As while a run is being captured: two shards in one segment, and two by themselves."""
    snapshot = open_run(bucket, "run")
    [merge] = plan_merges(snapshot, SAE, "merge", part_rows=9_000)
    part = index_merge.Merge(merge.run, SAE, 1, 3, "merge", merge.features)
    assert finish_merge(bucket, part, [merge_part(bucket, part, i) for i in range(len(part.features))])


STATES: dict[str, Callable[[Bucket], None]] = {
    "shards": lambda bucket: None,
    "both": merged_in_part,
    "merged": merged_whole,
}


@pytest.fixture(scope="module", params=STATES)
def snapshot(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    bucket = open_bucket(str(tmp_path_factory.mktemp("store")))
    write_run(bucket, RUN)
    STATES[request.param](bucket)
    return open_run(bucket, "run")


@pytest.mark.parametrize("exclude", EXCLUSIONS)
@pytest.mark.parametrize("feature", [0, 1, 3, 5])
def test_samples(snapshot: Snapshot, feature: int, exclude: frozenset[str]) -> None:
    for k, keep in zip((1, 7, 20), FILTERS[feature % 3 :] + FILTERS[: feature % 3], strict=True):
        entries = slow_entries(RUN, feature, exclude, keep)
        for method in METHODS[1:-1]:
            sample = Sample(method, k=k, bins=4, threshold=0.5, seed=k)
            found = sample_examples(snapshot, SAE, feature, sample, exclude=exclude, keep=keep, window=Window(0, 0))
            expected = slow_sample(entries, sample)
            assert places(found.to_pylist()) == expected
            assert found["rank"].to_pylist() == list(range(1, len(expected) + 1))
            if method == "range" and entries:
                width = entries[0][0] / k
                assert len({-(-entry[0] // width) for entry in expected}) == len(expected)


@pytest.mark.parametrize("exclude", EXCLUSIONS)
def test_random_positions(snapshot: Snapshot, exclude: frozenset[str]) -> None:
    counts = RUN.kept(exclude)
    rows = {(int(s), int(p)): i for i, (s, p) in enumerate(zip(RUN.tokens.sequence, RUN.tokens.position, strict=True))}
    drawn, draws = [], set()
    for seed in range(10):
        found = sample_examples(snapshot, SAE, 3, Sample("positions", k=100, seed=seed), exclude=exclude).to_pylist()
        assert len(found) == 100
        here = [rows[example["sequence"], example["position"]] for example in found]
        assert here == sorted(set(here))
        assert counts[here].all()
        assert [example["activation"] for example in found] == RUN.features[here, 3].tolist()
        drawn += here
        draws.add(tuple(here))
    assert len(draws) == 10  # each seed has its own
    # Uniform over all that count: the mean row of 1,000 draws lies within four standard errors of the middle.
    middle, spread = np.flatnonzero(counts).mean(), np.flatnonzero(counts).std() / np.sqrt(len(drawn))
    assert abs(np.mean(drawn) - middle) < 4 * spread


def test_every_position_of_a_small_filter_is_drawn(snapshot: Snapshot) -> None:
    keep = TokenFilter(first_sequence=7, end_sequence=8)
    sample = Sample("positions", k=900)
    found = sample_examples(snapshot, SAE, 3, sample, exclude=frozenset(), keep=keep).to_pylist()
    assert [example["position"] for example in found] == list(range(int((RUN.tokens.sequence == 7).sum())))


@pytest.mark.parametrize("few_entries", [0, 1 << 20])
def test_windows_are_the_same_from_the_index_and_from_the_shards(snapshot: Snapshot, few_entries: int) -> None:
    reader = FeatureReader(snapshot, SAE)
    for feature in (1, 4):
        expected = slow_top_examples(RUN, feature, 15, 9, 4, frozenset({"bos"}))
        rows = [(example["sequence"], example["position"]) for example in expected]
        every = reader.ranking(feature, frozenset()).all()
        place = {(int(s), int(p)): i for i, (s, p) in enumerate(zip(every.sequence, every.position, strict=True))}
        entries = every.take(np.array([place[int(s), int(p)] for s, p in rows]))
        assert examples_table(reader, feature, entries, Window(9, 4), few_entries).to_pylist() == expected
        alone = slow_top_examples(RUN, feature, 15, 0, 0, frozenset({"bos"}))
        assert examples_table(reader, feature, entries, Window(0, 0), few_entries).to_pylist() == alone


@pytest.mark.parametrize("exclude", EXCLUSIONS)
def test_top_and_statistics(snapshot: Snapshot, exclude: frozenset[str]) -> None:
    for feature in range(6):
        found = top_examples(snapshot, SAE, feature, k=12, exclude=exclude).to_pylist()
        assert found == slow_top_examples(RUN, feature, 12, 12, 6, exclude)
        values = [entry[0] for entry in slow_entries(RUN, feature, exclude)]
        statistics = feature_statistics(snapshot, SAE, feature, bins=9, exclude=exclude)
        assert statistics.active_tokens == len(values)
        assert statistics.maximum == max(values, default=0)
        edges = np.linspace(0, max(values, default=0), 10)
        expected = [sum(low < value <= high for value in values) for low, high in pairwise(edges)] if values else []
        assert statistics.histogram["count"].to_pylist() == expected


def test_everything_above_a_threshold(snapshot: Snapshot) -> None:
    for feature, threshold, size in ((5, 0.0, 1000), (5, 0.9, 77), (3, 1.1, 10_000), (0, 0.0, 5), (4, 99.0, 5)):
        ranking = FeatureReader(snapshot, SAE).ranking(feature, frozenset({"bos"}))
        found = [entry for chunk in ranking.chunks(threshold, size) for entry in rows_of(chunk)]
        expected = [entry for entry in slow_entries(RUN, feature, frozenset({"bos"})) if entry[0] > threshold]
        assert found == expected


def test_ranks_that_are_not_there(snapshot: Snapshot) -> None:
    ranking = FeatureReader(snapshot, SAE).ranking(5, frozenset())
    for rank in (-1, ranking.total):
        with pytest.raises(IndexError):
            ranking.at_ranks([rank])


def test_counts_of_tokens(snapshot: Snapshot) -> None:
    found = token_counts(snapshot, SAE)
    bos = RUN.tokens.flags & BOS != 0
    special = (RUN.tokens.flags & SPECIAL != 0) & ~bos
    for name, mask in (("bos", bos), ("special", special), ("text", ~bos & ~special)):
        expected = np.bincount(RUN.tokens.token[mask], minlength=VOCABULARY)
        assert np.array_equal(np.pad(found[name], (0, VOCABULARY - len(found[name]))), expected)


def test_a_running_capture_merges_and_answers_as_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each shard: merge what is due, and ask. Who opened before a merge gets his own snapshot's answer."""
    monkeypatch.setattr(index_merge, "FAN_IN", 2)
    run = make_run(5, sequences=27, sequences_per_shard=3)
    bucket = open_bucket(str(tmp_path))
    write_run(bucket, run, shards=())
    held: list[tuple[Snapshot, list[tuple]]] = []
    for shard in (1, 0, 3, 2, 5, 4, 7, 6, 8):
        write_shard(bucket, run, shard, "attempt")
        merge_index(bucket, "run", SAE, f"merge-{shard}", part_rows=50)
        snapshot = open_run(bucket, "run")
        held.append((snapshot, slow_entries(part_of(run, snapshot.shards), 4, frozenset({"bos"}))))
        for old, expected in held:
            assert rows_of(FeatureReader(old, SAE).ranking(4, frozenset({"bos"})).all()) == expected
    # Each block of two, four and eight shards once it was whole, and the whole run at the end.
    blocks = [range(first, first + size) for size in (2, 4, 8) for first in range(0, 8, size)]
    assert set(listed_segments(bucket, "run", SAE)) == {*blocks, range(9)}
    assert check_runs(bucket).sound


def test_a_feature_that_does_not_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is merged in pieces, out of shards and out of a segment, and every part has the same bytes."""
    bucket = open_bucket(str(tmp_path))
    write_run(bucket, RUN)
    [merge] = plan_merges(open_run(bucket, "run"), SAE, "whole", part_rows=1)
    whole = [merge_part(bucket, merge, number).object.sha256 for number in range(len(merge.features))]
    monkeypatch.setattr(index_merge, "PART_ROWS", 700)
    for state in ("shards", "both"):
        STATES[state](bucket)
        pieces = replace(merge, attempt=state)
        assert [merge_part(bucket, pieces, n).object.sha256 for n in range(len(merge.features))] == whole


def test_two_who_merge_the_same_leave_one(tmp_path: Path) -> None:
    bucket = open_bucket(str(tmp_path))
    write_run(bucket, RUN)
    merges = [plan_merges(open_run(bucket, "run"), SAE, attempt)[0] for attempt in ("a", "b")]
    won = [finish_merge(bucket, m, [merge_part(bucket, m, i) for i in range(len(m.features))]) for m in merges]
    assert won == [True, False]
    assert not [key for key in bucket.keys("runs/run/index") if "-b/" in key]
    assert merge_index(bucket, "run", SAE, "c") == 0
    verdict = check_runs(bucket)
    assert verdict.sound, verdict.findings
    assert not verdict.findings


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("method", {"method": "best"}),
        ("k", {"k": 0}),
        ("k", {"k": 1001}),
        ("bins", {"bins": 0}),
        ("k * bins", {"method": "quantile", "k": 200, "bins": 200}),
        ("threshold", {"threshold": -1.0}),
        ("threshold", {"threshold": float("nan")}),
        ("seed", {"seed": -1}),
    ],
)
def test_refused(field: str, wrong: dict) -> None:
    with pytest.raises(ActstoreError) as caught:
        Sample(**{"method": "range"} | wrong)
    assert caught.value.details["field"] == field


def places(examples: list[dict]) -> list[tuple]:
    return [(example["activation"], example["sequence"], example["position"]) for example in examples]


def rows_of(entries: Entries) -> list[tuple]:
    columns = entries.activation.tolist(), entries.sequence.tolist(), entries.position.tolist()
    return list(zip(*columns, strict=True))
