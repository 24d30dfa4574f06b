"""What a range of shards says, and how features are cut into parts, against the token-major rows of small runs."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import BadRequest
from actstore_storage.features import reader as reading
from actstore_storage.features.entries import COLUMNS, Entries
from actstore_storage.features.reader import FeatureReader
from actstore_storage.features.segments import listed_segments
from actstore_storage.features.sources import Sources, feature_ranges, token_counts
from actstore_storage.format.commit import Commit
from actstore_storage.format.tokens import TOKEN_CLASSES, class_numbers
from actstore_storage.parquet.reading import open_product
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.runs.token_filter import TokenFilter
from actstore_storage.upkeep.merging import Merge, finish_merge, merge_part
from tests.storage.feature_twins import EXCLUSIONS, part_of
from tests.storage.random_run import SAE, VOCABULARY, make_run, write_run

RUN = make_run(6, sequences=18, longest=20, d_sae=6, sequences_per_shard=3)
# What lies in segments, of the six shards.
SEGMENTS: dict[str, list[range]] = {"none": [], "one": [range(1, 3)], "two": [range(3, 5), range(2)], "all": [range(6)]}
# All of them; those of which segments hold some wholly; and those that have no more than a part of a segment.
RANGES = [range(6), range(1, 5), range(2, 3)]


def merge(bucket: Bucket, shards: range) -> None:
    """In a part for each two features."""
    plan = Merge("run", SAE, shards.start, shards.stop, "merge", ((0, 2), (2, 4), (4, 6)))
    assert finish_merge(bucket, plan, [merge_part(bucket, plan, number) for number in range(3)])


@pytest.fixture(scope="module", params=SEGMENTS)
def snapshot(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    bucket = open_bucket(str(tmp_path_factory.mktemp("store")))
    write_run(bucket, RUN)
    for shards in SEGMENTS[request.param]:
        merge(bucket, shards)
    return open_run(bucket, "run")


Row = tuple[int, ...]


def rows_of(feature: np.ndarray, entries: Entries) -> list[Row]:
    return list(zip(feature.tolist(), *(getattr(entries, name).tolist() for name in COLUMNS), strict=True))


def slow_rows(shards: range) -> list[Row]:
    """In order of token."""
    run = part_of(RUN, np.array(shards))
    row, feature = np.nonzero(run.features)
    beside = (getattr(run.tokens, name)[row] for name in COLUMNS[1:])
    return rows_of(feature, Entries(run.features[row, feature], *beside))


@pytest.mark.parametrize("shards", RANGES, ids=str)
def test_rows_of_features_are_those_of_every_token(shards: range, snapshot: Snapshot) -> None:
    sources, expected = Sources(snapshot, SAE, shards), slow_rows(shards)
    for first, end in ((0, 6), (1, 2), (1, 3), (3, 6), (0, 1)):
        feature, entries = sources.rows(first, end)
        assert sorted(rows_of(feature, entries)) == sorted(row for row in expected if first <= row[0] < end)
        assert feature.dtype == np.int32
        assert [getattr(entries, name).dtype for name in COLUMNS] == [
            np.float32, np.int64, np.int32, np.int64, np.int32, np.uint8,
        ]  # fmt: skip
    inside = [block for block in listed_segments(snapshot.bucket, "run", SAE) if set(block) <= set(shards)]
    assert len(sources) == len(shards) - sum(len(block) - 1 for block in inside)


@pytest.mark.parametrize("shards", RANGES, ids=str)
def test_a_feature_in_pieces_is_in_order_of_class_and_strength(shards: range, snapshot: Snapshot) -> None:
    sources = Sources(snapshot, SAE, shards)
    for feature in range(6):
        own = [row for row in slow_rows(shards) if row[0] == feature]
        numbers = class_numbers(np.array([row[-1] for row in own], np.uint8)).tolist()
        in_order = sorted(zip(numbers, own, strict=True), key=lambda one: (one[0], -one[1][1], one[1][2:]))
        expected = [row for _, row in in_order]
        assert sources.count_of(feature) == len(own)
        for size in (1, 10, 1000):
            pieces = [rows_of(*piece) for piece in sources.rows_in_order(feature, size)]
            assert [row for piece in pieces for row in piece] == expected
            ties = max((sum(row[1] == other[1] for row in own) for other in own), default=0)
            assert all(len(piece) < size + ties for piece in pieces)


@pytest.mark.parametrize("shards", RANGES, ids=str)
def test_counts_are_those_of_every_token(shards: range, snapshot: Snapshot) -> None:
    sources, run = Sources(snapshot, SAE, shards), part_of(RUN, np.array(shards))
    counts, told = sources.counts, [sources.token_counts()]
    if shards == range(6):
        told.append(token_counts(snapshot, SAE))
    of_row = class_numbers(run.tokens.flags)
    for number, name in enumerate(TOKEN_CLASSES):
        values = run.features[of_row == number]
        assert counts.count[:, number].tolist() == (values > 0).sum(axis=0).tolist()
        assert counts.maximum[:, number].tolist() == values.max(axis=0, initial=0).tolist()
        assert counts.sum[:, number] == pytest.approx(values.astype(np.float64).sum(axis=0), rel=1e-12)
        expected = np.bincount(run.tokens.token[of_row == number], minlength=VOCABULARY)
        for found in told:
            assert found[name].tolist() == expected[: len(found[name])].tolist()
            assert not expected[len(found[name]) :].any()
            assert found[name].dtype == np.int64


def test_a_snapshot_says_of_a_feature_what_its_tokens_say(snapshot: Snapshot) -> None:
    reader = FeatureReader(snapshot, SAE)
    held = {shard for segment in reader.segments for shard in segment.segment.shards}
    assert [commit.shard for commit in reader.loose] == [shard for shard in range(6) if shard not in held]
    numbers = class_numbers(RUN.tokens.flags)
    for number in range(len(TOKEN_CLASSES)):
        values = RUN.features[numbers == number]
        assert reader.class_counts.count[:, number].tolist() == (values > 0).sum(axis=0).tolist()
        assert reader.class_counts.maximum[:, number].tolist() == values.max(axis=0, initial=0).tolist()
        assert reader.class_counts.sum[:, number] == pytest.approx(values.sum(axis=0, dtype=np.float64), rel=1e-12)
    for exclude in EXCLUSIONS:
        for feature in range(6):
            values = RUN.features[RUN.kept(exclude), feature].astype(np.float64)
            expected = (values > 0).sum(), values.max(), pytest.approx(values.sum(), rel=1e-12)
            assert reader.counts(feature, exclude) == expected


def test_of_a_feature_no_more_is_read_than_is_asked(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of loose shards: for counts their statistics alone, and of the feature that was asked for last nothing."""
    opened: Counter[str] = Counter()

    def counted(bucket: Bucket, commit: Commit, product: str) -> Any:
        opened[product] += 1
        return open_product(bucket, commit, product)

    monkeypatch.setattr(reading, "open_product", counted)
    reader = FeatureReader(snapshot, SAE)
    reader.counts(3, frozenset())
    loose = len(reader.loose)
    assert opened == Counter({f"statistics-{SAE}": loose})
    for exclude in EXCLUSIONS:
        reader.ranking(3, exclude).all()
    assert opened == Counter({f"statistics-{SAE}": loose, f"index-{SAE}": loose})
    reader.counts(4, frozenset())
    reader.counts(3, frozenset())
    assert opened == Counter({f"statistics-{SAE}": 3 * loose, f"index-{SAE}": loose})


def test_what_a_filter_excludes_is_not_looked_through(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = TokenFilter(exclude=frozenset({"special"}))
    looked_through = int((RUN.features[RUN.kept(keep.exclude), 5] > 0).sum())
    monkeypatch.setattr(reading, "FILTERED_ENTRIES_MAX", looked_through)
    reader = FeatureReader(snapshot, SAE)
    assert reader.ranking(5, frozenset(), keep).total == looked_through
    monkeypatch.setattr(reading, "FILTERED_ENTRIES_MAX", looked_through - 1)
    with pytest.raises(BadRequest) as caught:
        reader.ranking(5, frozenset(), keep)
    assert caught.value.reason == "LIMIT_EXCEEDED"
    assert caught.value.details == {
        "field": "filter",
        "value": str(looked_through),
        "allowed": f"0 to {looked_through - 1}",
    }


@pytest.mark.parametrize("feature", [-1, 6])
def test_features_that_there_are_not(feature: int, snapshot: Snapshot) -> None:
    reader = FeatureReader(snapshot, SAE)
    for ask in (reader.ranking, reader.counts):
        with pytest.raises(BadRequest) as caught:
            ask(feature, frozenset())
        assert caught.value.reason == "FEATURE_OUT_OF_RANGE"
        assert caught.value.details == {"field": "feature", "value": str(feature), "allowed": "0 to 5"}


@pytest.mark.parametrize("part_rows", [1, 7, 12, 10_000])
def test_parts_are_as_large_as_they_may_be(part_rows: int) -> None:
    """Each takes every feature that still fits; a feature with more is a part by itself."""
    rng = np.random.default_rng(part_rows)
    some, none, empty = rng.integers(0, 9, 40), np.zeros(5, np.int64), np.zeros(0, np.int64)
    for counts in (some, none, empty, np.array([12, 0, 12, 1, 11, 13, 0, 0, 1])):
        ranges = feature_ranges(counts, part_rows)
        assert [feature for first, end in ranges for feature in range(first, end)] == list(range(len(counts)))
        for first, end in ranges:
            assert end > first
            assert counts[first:end].sum() <= part_rows or end == first + 1
            assert end == len(counts) or counts[first : end + 1].sum() > part_rows
