"""Sketched quantiles of norms beside NumPy's of all values: of shards, of checkpoints, and where there are none."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasketches import kll_floats_sketch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from actstore_storage.bucket import Bucket
from actstore_storage.errors import CorruptObject
from actstore_storage.format.keys import checkpoint_sketches_key
from actstore_storage.format.products import NORM_SKETCHES
from actstore_storage.format.sketches import RANK_ERROR, SKETCH_K, NormSketches, WeightedValues, compacted
from actstore_storage.format.tokens import TOKEN_CLASSES
from actstore_storage.norms.profile import ProfileQuestion, norm_histogram, norm_profile
from actstore_storage.norms.revisions import norms_of_runs
from actstore_storage.norms.rows import KeptTokens
from actstore_storage.norms.sketches import missing_sketches, read_sketches
from actstore_storage.runs.opening import open_run
from actstore_storage.upkeep import folding
from actstore_storage.upkeep.folding import fold_commits
from actstore_storage.upkeep.fsck import check_runs
from actstore_storage.upkeep.removal import remove_run
from tests.storage.random_run import make_run, without_sketches, write_run

QUANTILES = (0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1)


def rank_errors(values: NDArray[np.floating], found: Sequence[float], quantiles: Sequence[float]) -> list[float]:
    """How far each number is from having the rank that it was asked for; ties have a range of ranks."""
    ordered = np.sort(values)
    below = np.searchsorted(ordered, np.float32(found), side="left") / len(ordered)
    above = np.searchsorted(ordered, np.float32(found), side="right") / len(ordered)
    return [max(0.0, low - asked, asked - high) for low, high, asked in zip(below, above, quantiles, strict=True)]


def sketched(parts: Sequence[NDArray[np.float32]]) -> WeightedValues:
    found: list[bytes] = []
    for part in parts:
        sketches = NormSketches(["name"])
        sketches.add("name", "text", np.sort(part))
        found += [blob.as_py() for blob in sketches.columns[1]]
    return WeightedValues.of(found)


@pytest.mark.parametrize("shards", [1, 7, 100])
@pytest.mark.parametrize("spread", ["lognormal", "few", "ascending"])
def test_quantiles_are_within_the_stated_error(shards: int, spread: str) -> None:
    random = np.random.default_rng(shards)
    values = random.lognormal(size=100_000).astype(np.float32)
    values = {"lognormal": values, "few": np.round(values), "ascending": np.sort(values)}[spread]
    found = sketched(np.array_split(values, shards)).quantiles(QUANTILES)
    assert max(rank_errors(values, found, QUANTILES)) <= RANK_ERROR
    assert (found[0], found[-1]) == (values.min(), values.max())


def test_a_merged_sketch_is_within_the_same_error_and_no_larger() -> None:
    values = np.random.default_rng(0).lognormal(size=(300, 1000)).astype(np.float32)
    merged = NormSketches(["name"])
    for part in values:
        one = NormSketches(["name"])
        one.add("name", "text", np.sort(part))
        merged.merge({"name": {"text": one.columns[1][0].as_py()}})
    found = WeightedValues.of([merged.columns[1][0].as_py()])
    assert found.weights.sum() == values.size
    assert max(rank_errors(values.ravel(), found.quantiles(QUANTILES), QUANTILES)) <= RANK_ERROR
    assert len(merged.columns[1][0].as_py()) < 2700


def compacted_slowly(values: list[float], compactions: int, offset: int) -> list[list[float]]:
    """By level. One compaction after another: the first of an odd number stays, and of each two the one or the other,
    as the offset's next bit says.
    """
    levels, left = [], list(values)
    for step in range(compactions):
        odd = len(left) % 2
        levels.append(left[:odd])
        left = left[odd:][offset >> step & 1 :: 2]
    return [*levels, left]


@settings(max_examples=50, deadline=None)
@given(st.integers(800, 9000), st.integers(0, 2**9))
def test_several_compactions_at_once_are_as_one_after_another(count: int, seed: int) -> None:
    values = np.sort(np.random.default_rng(seed).lognormal(size=count).astype(np.float32))
    compactions = (count // (2 * SKETCH_K)).bit_length()
    offset = seed % (1 << compactions)
    levels = compacted_slowly(values.tolist(), compactions, offset)
    blob = compacted(values, compactions, offset)
    found = WeightedValues.of([blob])
    expected = sorted((value, 1 << level) for level, kept in enumerate(levels) for value in kept)
    inner = found.weights > 0
    assert list(zip(found.values[inner].tolist(), found.weights[inner].tolist(), strict=True)) == expected
    sketch = kll_floats_sketch.deserialize(blob)
    told = sketch.n, sketch.num_retained, sketch.get_min_value(), sketch.get_max_value()
    assert told == (count, sum(map(len, levels)), values[0], values[-1])
    assert kll_floats_sketch.deserialize(sketch.serialize()).get_quantile(0.5) == sketch.get_quantile(0.5)


def test_shards_of_equal_ranks_are_not_off_alike() -> None:
    """Of one batch a shard, all of which drew alike, ranks would be off by half of what the first draw is."""
    ranks = np.arange(900, dtype=np.float32)
    found = []
    for shard in range(64):
        sketches = NormSketches(["name"], seed=shard)
        sketches.add("name", "text", ranks)
        found.append(sketches.columns[1][0].as_py())
    assert abs(WeightedValues.of(found).quantiles([0.5])[0] - 449.5) < 1


@pytest.mark.parametrize("rows", [1000, 4080])
def test_many_batches_are_within_the_stated_error(rows: int) -> None:
    random = np.random.default_rng(rows)
    sketches, values = NormSketches(["name"]), random.lognormal(np.sin(np.arange(80))[:, None] / 4, size=(80, rows))
    for part in values.astype(np.float32):
        sketches.add("name", "text", np.sort(part))
    found = WeightedValues.of([sketches.columns[1][0].as_py()])
    assert found.weights.sum() == values.size
    assert max(rank_errors(values.astype(np.float32).ravel(), found.quantiles(QUANTILES), QUANTILES)) <= RANK_ERROR


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.floats(0, 2.0**90, width=32), min_size=1, max_size=60), min_size=1, max_size=4),
    st.lists(st.floats(0, 1), min_size=1, max_size=4),
)
def test_of_few_values_quantiles_are_exact(parts: list[list[float]], quantiles: list[float]) -> None:
    arrays = [np.array(part, np.float32) for part in parts]
    expected = np.quantile(np.concatenate(arrays).astype(np.float64), quantiles)
    assert sketched(arrays).quantiles(quantiles) == pytest.approx(expected.tolist())


@pytest.mark.parametrize("quantity", ["l2", "rms"])
@pytest.mark.parametrize("by", ["layer", "site", "token_class"])
@pytest.mark.parametrize("folded", [False, True])
def test_profiles_are_as_the_exact_ones(local_bucket: Bucket, quantity: str, by: str, folded: bool) -> None:
    write_run(local_bucket, make_run(5))
    if folded:
        assert fold_commits(open_run(local_bucket, "run"))
    snapshot = open_run(local_bucket, "run")
    question = ProfileQuestion(quantity=quantity, by=by, quantiles=QUANTILES, kept=KeptTokens(frozenset()))
    found, exact = (norm_profile(snapshot, replace(question, exact=way)) for way in (False, True))
    assert set(found["rank_error"].to_pylist()) == {RANK_ERROR}
    assert set(exact["rank_error"].to_pylist()) == {0.0}
    for name in exact.column_names[:-1]:
        expected = exact[name].to_pylist()
        # So few values that their sketches have all of them.
        assert found[name].to_pylist() == (
            expected if isinstance(expected[0], str) else pytest.approx(expected, rel=1e-6)
        )


@pytest.mark.parametrize("folded", [False, True])
def test_histograms_are_as_the_exact_ones(local_bucket: Bucket, folded: bool) -> None:
    write_run(local_bucket, make_run(5))
    if folded:
        fold_commits(open_run(local_bucket, "run"))
    snapshot = open_run(local_bucket, "run")
    for options in ({"bins": 9}, {"edges": (0.5, 1.0, 4.0)}):
        found, exact = (norm_histogram(snapshot, ProfileQuestion(exact=way), **options) for way in (False, True))
        assert found["count"].to_pylist() == exact["count"].to_pylist()
        assert found["low"].to_pylist() == pytest.approx(exact["low"].to_pylist())
        assert set(found["rank_error"].to_pylist()) == {RANK_ERROR}


def test_sketches_are_read_instead_of_norms(local_bucket: Bucket) -> None:
    write_run(local_bucket, make_run(5))
    snapshot = open_run(local_bucket, "run")
    for commit in snapshot.commits:
        local_bucket.delete(commit.objects["norms"].key)
    assert norm_profile(snapshot).num_rows
    with pytest.raises(CorruptObject):
        norm_profile(snapshot, ProfileQuestion(exact=True))


def test_checkpoints_have_their_shards_sketches(local_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "BLOCKS", (2, 4))
    write_run(local_bucket, make_run(5))
    first = open_run(local_bucket, "run")
    before = norm_profile(first)
    blocks = [range(2), range(2, 4), range(4)]
    assert len(fold_commits(first)) == len(blocks)
    assert all(local_bucket.exists(checkpoint_sketches_key("run", block)) for block in blocks)
    snapshot = open_run(local_bucket, "run")
    assert [part.shards for part in snapshot.commits.checkpoints] == [range(4)]
    for commit in snapshot.commits:
        local_bucket.delete(commit.objects[NORM_SKETCHES].key)
    assert norm_profile(snapshot).to_pylist() == [pytest.approx(row) for row in before.to_pylist()]


@pytest.mark.parametrize("folded", [False, True])
def test_a_run_with_a_shard_without_sketches_is_answered_exactly(local_bucket: Bucket, folded: bool) -> None:
    write_run(local_bucket, make_run(5))
    before = norm_profile(open_run(local_bucket, "run"), ProfileQuestion(exact=True))
    without_sketches(local_bucket, 1)
    if folded:
        fold_commits(open_run(local_bucket, "run"))
    snapshot = open_run(local_bucket, "run")
    assert read_sketches(snapshot, ["resid_pre.0"]) is None
    assert missing_sketches(snapshot) == []
    assert norms_of_runs([snapshot], ProfileQuestion()).warnings == ()
    assert norm_profile(snapshot).equals(before)
    assert check_runs(local_bucket, "run").findings == ()


def test_sketches_of_other_tokens_are_damaged(local_bucket: Bucket) -> None:
    write_run(local_bucket, make_run(5))
    fold_commits(open_run(local_bucket, "run"))
    snapshot = open_run(local_bucket, "run")
    [part] = snapshot.commits.checkpoints
    key = checkpoint_sketches_key("run", part.shards)
    local_bucket.delete(key)
    nothing, asked = NormSketches(part.summary.norm_moments), snapshot.record.specification_sha256
    for specification, words in (("0" * 64, "another specification"), (asked, "their count")):
        local_bucket.delete(key)
        local_bucket.put_if_absent(key, nothing.encoded(specification))
        with pytest.raises(CorruptObject, match=words):
            norm_profile(snapshot)
    local_bucket.delete(key)
    local_bucket.put_if_absent(key, b"no table")
    with pytest.raises(CorruptObject):
        norm_profile(snapshot)


DAMAGE = {
    "levels": lambda blob: blob[:18] + b"\xc8" + blob[19:],
    "no levels": lambda blob: blob[:18] + b"\x00" + blob[19:],
    "count": lambda blob: blob[:8] + (1 + int.from_bytes(blob[8:16], "little")).to_bytes(8, "little") + blob[16:],
    "a value less": lambda blob: blob[:-4],
    "a byte less": lambda blob: blob[:-1],
    "its start": lambda blob: blob[:7],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_bytes_that_are_no_sketch_are_damaged(damage: str, local_bucket: Bucket) -> None:
    """In sound pages: as somebody else's writer may leave them."""
    write_run(local_bucket, make_run(5))
    fold_commits(open_run(local_bucket, "run"))
    snapshot = open_run(local_bucket, "run")
    key = checkpoint_sketches_key("run", snapshot.commits.checkpoints[0].shards)
    with local_bucket.open(key) as source:
        table = pq.read_table(source).replace_schema_metadata(pq.read_metadata(source).metadata)
    place = table.column_names.index("resid_post.1")
    at = table["token_class"].to_pylist().index("text")
    blobs = table.column(place).to_pylist()
    blobs[at] = DAMAGE[damage](blobs[at])
    sink = pa.BufferOutputStream()
    pq.write_table(table.set_column(place, table.schema[place], pa.array(blobs, pa.binary())), sink)
    local_bucket.delete(key)
    local_bucket.put_if_absent(key, bytes(sink.getvalue()))
    with pytest.raises(CorruptObject, match=r"sketches of resid_post\.1"):
        norm_profile(snapshot)
    [finding] = check_runs(local_bucket, "run").findings
    assert (finding.kind, finding.key) == ("damaged", key)


def test_removal_takes_them(local_bucket: Bucket) -> None:
    write_run(local_bucket, make_run(5))
    fold_commits(open_run(local_bucket, "run"))
    assert check_runs(local_bucket, "run").findings == ()
    remove_run(local_bucket, "run")
    assert local_bucket.keys("runs/run") == []


def test_rows_are_of_the_token_classes_that_there_are() -> None:
    sketches = NormSketches(["one", "other"])
    sketches.add("one", "bos", np.ones(3, np.float32))
    sketches.add("other", "text", np.ones(3, np.float32))
    classes, one, other = sketches.columns
    assert classes == pa.array([name for name in TOKEN_CLASSES if name in ("text", "bos")])
    assert [len(blob.as_py()) > 0 for blob in one] == [False, True]
    assert [len(blob.as_py()) > 0 for blob in other] == [True, False]
