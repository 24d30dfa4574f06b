"""Checking a bucket, removing runs from it, folding commits."""

import math
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actstore_storage.bucket import Bucket
from actstore_storage.errors import Conflict, CorruptObject, NotThere
from actstore_storage.features.segments import chosen_segments
from actstore_storage.format.keys import checkpoint_key, checkpoint_sketches_key, commit_key, segment_key, wanted_key
from actstore_storage.format.moments import Moments
from actstore_storage.format.products import NORM_SKETCHES
from actstore_storage.format.records import seal, unseal
from actstore_storage.norms.profile import norm_profile
from actstore_storage.rows.reading import read_activations
from actstore_storage.runs.opening import create_run, open_run
from actstore_storage.upkeep import folding
from actstore_storage.upkeep.folding import fold_commits
from actstore_storage.upkeep.fsck import check_runs
from actstore_storage.upkeep.fsck.checkpoints import MERGE_TOLERANCE, merged_again
from actstore_storage.upkeep.removal import remove_run
from tests.run_state import merge_index
from tests.storage.random_run import SAE, make_run, put_made_run, write_run, write_shard


@pytest.fixture(params=["local_bucket", "s3_bucket"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    found: Bucket = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels of 2, 4 and 8 shards instead of 256, 4,096 and 65,536."""
    monkeypatch.setattr(folding, "BLOCKS", (2, 4, 8))


def kinds(bucket: Bucket, run: str | None = None, **options: bool) -> list[tuple[str, str]]:
    return [(found.kind, found.key) for found in check_runs(bucket, run, **options).findings]


def test_a_sound_store(bucket: Bucket) -> None:
    put_made_run(bucket, 1)
    verdict = check_runs(bucket)
    assert verdict.sound
    commits = open_run(bucket, "run").commits
    assert (verdict.runs, verdict.shards, verdict.findings) == (1, len(commits), ())
    assert verdict.objects == sum(len(commit.objects) for commit in commits)
    assert verdict.bytes == sum(item.bytes for commit in commits for item in commit.objects.values())


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "one bit": lambda data: data[: len(data) // 3] + bytes([data[len(data) // 3] ^ 1]) + data[len(data) // 3 + 1 :],
    "cut": lambda data: data[:-1],
    "emptied": lambda data: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(damage: str, bucket: Bucket) -> None:
    put_made_run(bucket, 1)
    key = open_run(bucket, "run").commits[1].objects["norms"].key
    bucket.put(key, DAMAGES[damage](bucket.get(key)))
    assert kinds(bucket) == [("damaged", key)]
    assert not check_runs(bucket).sound
    assert check_runs(bucket, quick=True).sound
    bucket.delete(key)
    assert kinds(bucket, "run") == [("missing", key)]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_of_a_merged_index_is_named(damage: str, bucket: Bucket) -> None:
    put_made_run(bucket, 1)
    merge_index(bucket, "run", SAE, "merge", part_rows=100)
    [segment] = chosen_segments(open_run(bucket, "run"), SAE)
    assert kinds(bucket) == []
    for record in (segment.parts[1].object, segment.statistics, segment.token_counts):
        whole = bucket.get(record.key)
        bucket.put(record.key, DAMAGES[damage](whole))
        assert kinds(bucket) == [("damaged", record.key)]
        bucket.delete(record.key)
        assert kinds(bucket) == [("missing", record.key)]
        bucket.put(record.key, whole)
    key = segment_key("run", SAE, segment.shards)
    bucket.put(key, replace(segment, parts=segment.parts[1:]).to_json())
    orphan = segment.parts[0].object.key
    assert set(kinds(bucket)) == {("damaged", key), ("orphan", orphan)}
    bucket.put(key, b"no manifest")
    found = kinds(bucket, remove_orphans=True)
    assert ("unreadable", key) in found
    assert not [kind for kind, _ in found if kind == "removed"]


def test_orphans_are_removed_unless_the_run_is_being_captured(bucket: Bucket) -> None:
    put_made_run(bucket, 1)
    orphan = "runs/run/data/00000000-crashed/tokens.parquet"
    bucket.put(orphan, b"half of a file")
    bucket.put(wanted_key("run"), seal({"run": "run"}))
    assert kinds(bucket, remove_orphans=True) == [("orphan", orphan)]
    bucket.delete(wanted_key("run"))
    assert kinds(bucket) == [("orphan", orphan)]
    assert check_runs(bucket).sound
    assert kinds(bucket, remove_orphans=True) == [("removed", orphan)]
    assert kinds(bucket) == []


def test_a_run_is_removed_whole(bucket: Bucket, small_blocks: None) -> None:
    put_made_run(bucket, 1)
    fold_commits(open_run(bucket, "run"))
    before = len(bucket.keys("runs/run"))
    bucket.put(wanted_key("run"), b"{}")
    with pytest.raises(Conflict, match="being captured"):
        remove_run(bucket, "run")
    assert len(bucket.keys("runs/run")) == before
    assert remove_run(bucket, "run", force=True) == before
    assert bucket.keys("runs/run") == bucket.keys("captures") == []
    assert check_runs(bucket).runs == 0
    for missing in (lambda: remove_run(bucket, "run"), lambda: open_run(bucket, "run")):
        with pytest.raises(NotThere) as caught:
            missing()
        assert caught.value.reason == "RUN_NOT_FOUND"


def test_a_removal_that_was_interrupted_is_finished_before_the_name_is_used_again(bucket: Bucket) -> None:
    run = make_run(1)
    write_run(bucket, run)
    bucket.delete("runs/run/run.json")
    with pytest.raises(NotThere):
        open_run(bucket, "run")
    with pytest.raises(Conflict, match="only partly removed"):
        create_run(bucket, run.record)
    assert kinds(bucket) == [("unreadable", "runs/run/run.json")]
    remove_run(bucket, "run")
    create_run(bucket, run.record)


def every_answer(bucket: Bucket) -> tuple[object, ...]:
    snapshot = open_run(bucket, "run")
    rows = [value for batch in read_activations(snapshot, "resid_pre.0") for value in batch["activation"].to_pylist()]
    profile = norm_profile(snapshot).to_pylist()
    return snapshot.name, snapshot.complete, snapshot.tokens_by_class, snapshot.provenance(), rows, profile


def test_folded_commits_say_the_same(bucket: Bucket, small_blocks: None) -> None:
    run = make_run(2, sequences=22, sequences_per_shard=1)
    write_run(bucket, run, shards=(*range(15), 16, 17, 20))
    before, commits = every_answer(bucket), list(open_run(bucket, "run").commits)
    written = fold_commits(open_run(bucket, "run"))
    blocks = [*(range(n, n + 2) for n in (0, 2, 4, 6, 8, 10, 12, 16)), range(4), range(4, 8), range(8, 12), range(8)]
    assert set(written) == {checkpoint_key("run", block) for block in blocks}
    assert fold_commits(open_run(bucket, "run")) == []
    snapshot = open_run(bucket, "run")
    assert [found.shards for found in snapshot.commits.checkpoints] == [
        range(8), range(8, 12), range(12, 14), range(16, 18),
    ]  # fmt: skip
    assert list(snapshot.commits) == commits
    assert [snapshot.commits[index] for index in range(-len(commits), len(commits))] == commits + commits
    assert snapshot.commits[3:9] == commits[3:9]
    assert [commit.shard for commit in snapshot.commits_of(range(7, 18))] == [*range(7, 15), 16, 17]
    after = every_answer(bucket)
    assert after[:5] == before[:5]
    for one, other in zip(after[5], before[5], strict=True):
        assert one == pytest.approx(other)
    assert check_runs(bucket).sound
    write_shard(bucket, run, 15, "attempt")
    assert checkpoint_key("run", range(14, 16)) in fold_commits(open_run(bucket, "run"))
    assert len(open_run(bucket, "run").commits) == len(commits) + 1


def test_larger_blocks_are_whole_numbers_of_smaller_ones() -> None:
    """Or a larger checkpoint would hold a part of a smaller one, and neither could stand for the other."""
    assert [larger % smaller for smaller, larger in pairwise(folding.BLOCKS)] == [0, 0]


def test_a_checkpoint_is_what_is_read(bucket: Bucket, small_blocks: None) -> None:
    """Nobody looks at commits that are folded: there may be 100,000 of them."""
    put_made_run(bucket, 2, sequences=9, sequences_per_shard=1)
    fold_commits(open_run(bucket, "run"))
    commits = list(open_run(bucket, "run").commits)
    bucket.put(commit_key("run", 3), b"not looked at")
    assert list(open_run(bucket, "run").commits) == commits
    assert kinds(bucket) == [("unreadable", commit_key("run", 3))]


def other_sketches(data: bytes, change: Callable[[pa.Table], pa.Table]) -> bytes:
    """The object with a changed table in it: whole, as Parquet goes."""
    sink, metadata = pa.BufferOutputStream(), pq.read_metadata(pa.BufferReader(data)).metadata
    pq.write_table(change(pq.read_table(pa.BufferReader(data))).replace_schema_metadata(metadata), sink)
    return sink.getvalue().to_pybytes()


def _with_first(table: pa.Table, change: Callable[[bytes], bytes]) -> pa.Table:
    """With the first sketch changed."""
    values = table[1].to_pylist()
    return table.set_column(1, table.field(1), pa.array([change(values[0]), *values[1:]], pa.binary()))


def _with_more(sketch: bytes) -> bytes:
    """Of as many values, the largest of which is larger."""
    place = 24 + 4 * sketch[18]
    return sketch[:place] + (struct.pack("<f", 1e9)) + sketch[place + 4 :]


SKETCH_DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    **{name: (damage, "is damaged") for name, damage in DAMAGES.items()},
    "of fewer values": (
        lambda data: other_sketches(data, lambda table: _with_first(table, lambda sketch: b"")),
        "their count, minimum or maximum differs",
    ),
    "half a sketch": (
        lambda data: other_sketches(data, lambda table: _with_first(table, lambda sketch: sketch[: len(sketch) // 2])),
        "sketches of resid_post.0 cannot be read",
    ),
    "of no known version": (
        lambda data: other_sketches(
            data, lambda table: _with_first(table, lambda sketch: sketch[:1] + b"\x63" + sketch[2:])
        ),
        "sketches of 1 of 8 names cannot be read: resid_post.0",
    ),
    "of other extremes": (
        lambda data: other_sketches(data, lambda table: _with_first(table, _with_more)),
        "their count, minimum or maximum differs",
    ),
    "a name short": (
        lambda data: other_sketches(data, lambda table: table.drop_columns(["resid_pre.2"])),
        "it has no sketch of resid_pre.2",
    ),
}


@pytest.mark.parametrize("damage", SKETCH_DAMAGES)
def test_damage_of_a_checkpoints_sketches_is_named(damage: str, bucket: Bucket, small_blocks: None) -> None:
    put_made_run(bucket, 2, sequences=9, sequences_per_shard=3)
    fold_commits(open_run(bucket, "run"))
    assert check_runs(bucket).findings == ()
    first, last = (checkpoint_sketches_key("run", shards) for shards in (range(2), range(2, 3)))
    change, words = SKETCH_DAMAGES[damage]
    bucket.put(first, change(bucket.get(first)))
    for quick in (False, True):
        [found] = check_runs(bucket, quick=quick).findings
        assert (found.kind, found.key) == ("damaged", first)
        assert words in found.what
    bucket.delete(first)
    assert kinds(bucket) == [("missing", first)]
    assert not check_runs(bucket, "run").sound
    bucket.delete(last)
    assert kinds(bucket) == [("missing", first), ("missing", last)]


def with_summary(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """The checkpoint with another summary: whole, as Parquet goes."""
    table = pq.read_table(pa.BufferReader(data))
    summary = unseal(table.schema.metadata[b"actstore.summary"], "", dict)
    change(summary)
    sink = pa.BufferOutputStream()
    metadata = table.schema.metadata | {b"actstore.summary": seal(summary)}
    pq.write_table(table.replace_schema_metadata(metadata), sink, row_group_size=64)
    return sink.getvalue().to_pybytes()


def _of_site(number: str, change: Callable[[float], float]) -> Callable[[dict[str, Any]], None]:
    def changed(summary: dict[str, Any]) -> None:
        moments = summary["norm_moments"]["resid_post.1"]["text"]
        moments[number] = change(moments[number])

    return changed


SUMMARY_DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "count": (
        _of_site("count", lambda count: count + 1),
        r"the count of resid_post\.1 \(text\) is (\d+), but (\d+) in its commits;",
    ),
    "mean": (
        _of_site("mean", lambda mean: mean * (1 + 1e-6)),
        r"the mean of resid_post\.1 \(text\) is \S+, but \S+ in its",
    ),
    "m2": (_of_site("m2", lambda m2: m2 * (1 + 1e-6)), r"the standard deviation of resid_post\.1 \(text\) is"),
    "m2 below 0": (_of_site("m2", lambda m2: -m2), r"the standard deviation of resid_post\.1 \(text\) is 0, but"),
    "minimum": (_of_site("minimum", lambda least: math.nextafter(least, 0)), r"the minimum of resid_post\.1 \(text\)"),
    "maximum": (
        _of_site("maximum", lambda most: most / 2),
        r"the maximum of resid_post\.1 \(text\) is \S+, but \S+ in its",
    ),
    "log_sum": (_of_site("log_sum", lambda log_sum: log_sum + 1e-3), r"the log_sum of resid_post\.1 \(text\) is"),
    "log_sum of a 0": (
        _of_site("log_sum", lambda log_sum: None),
        r"the log_sum of resid_post\.1 \(text\) is -inf, but",
    ),
    "a class": (lambda summary: summary["norm_moments"]["resid_post.1"].pop("bos"), r"resid_post\.1 \(bos\) is 0, but"),
    "a site": (
        lambda summary: summary["norm_moments"].pop("resid_post.1"),
        r"resid_post\.1 \(bos|text\) is 0.*and \d more",
    ),
    "another site": (
        lambda summary: summary["norm_moments"].update(other=summary["norm_moments"]["resid_post.1"]),
        r"the count of other \(\w+\) is \d+, but 0 in its commits \(and \d more\)",
    ),
    "tokens": (
        lambda summary: summary["tokens_by_class"].update(text=7),
        r"tokens_by_class differ from its commits': text is 7, but \d+ in its commits",
    ),
    "non_finite": (
        lambda summary: summary["non_finite"].update({"resid_post.1": 5}),
        r"non_finite differ from its commits': resid_post\.1 is 5, but 0 in its commits",
    ),
    "how": (lambda summary: summary["how"].update(device=["tpu"]), "its device is tpu, but its commits say cpu"),
    "no how": (lambda summary: summary["how"].pop("device"), "its device is missing, but its commits say cpu"),
}


@pytest.mark.parametrize("damage", SUMMARY_DAMAGES)
def test_a_checkpoint_that_tells_other_statistics_than_its_commits_is_named(
    damage: str, local_bucket: Bucket, small_blocks: None
) -> None:
    put_made_run(local_bucket, 2, sequences=27, sequences_per_shard=3)
    fold_commits(open_run(local_bucket, "run"))
    assert check_runs(local_bucket).findings == ()
    key = checkpoint_key("run", range(8))
    whole, (change, words) = local_bucket.get(key), SUMMARY_DAMAGES[damage]
    assert with_summary(whole, lambda summary: None) != whole
    local_bucket.put(key, with_summary(whole, lambda summary: None))
    assert kinds(local_bucket) == []
    local_bucket.put(key, with_summary(whole, change))
    for quick in (False, True):
        [found] = check_runs(local_bucket, quick=quick).findings
        assert (found.kind, found.key) == ("damaged", key)
        assert re.search(words, found.what), found.what
    local_bucket.delete(key)
    assert kinds(local_bucket) == [("orphan", checkpoint_sketches_key("run", range(8)))]
    fold_commits(open_run(local_bucket, "run"))
    assert local_bucket.get(key) == whole
    assert kinds(local_bucket) == []


def test_statistics_merged_again_are_numpys_of_all_values(local_bucket: Bucket, small_blocks: None) -> None:
    run = make_run(2, sequences=60, sequences_per_shard=3)
    shifted = {site: norms + np.float32(1e4) for site, norms in run.norms.items()}
    run = replace(run, norms=run.norms | {"resid_pre.2": shifted["resid_pre.2"]})
    write_run(local_bucket, run)
    fold_commits(open_run(local_bucket, "run"))
    assert check_runs(local_bucket).findings == ()
    merged = merged_again(open_run(local_bucket, "run").commits)
    assert set(run.norms) <= set(merged)
    kept = run.kept(frozenset({"bos"}))
    for site, norms in run.norms.items():
        special = run.kept(frozenset({"bos", "special"}))
        for name, mask in {"bos": ~kept, "special": kept & ~special, "text": special}.items():
            values, found = norms[mask].astype(np.float64), merged[site][name]
            assert (found.count, found.minimum, found.maximum) == (len(values), values.min(), values.max())
            told = found.mean, found.standard_deviation, found.log_sum
            assert told == pytest.approx((values.mean(), values.std(), np.log(values).sum()), rel=1e-11)


def test_the_tolerance_bears_the_largest_checkpoint() -> None:
    """Merged one after another, as a fold does; all of one size but for their last digits, which is the worst."""
    random = np.random.default_rng(0)
    means = 1e4 + random.normal(size=65_536) * 1e-3
    parts = [Moments(900, mean, 900e-6, mean - 1, mean + 1, 900 * math.log(mean)) for mean in means.tolist()]
    one_by_one = reduce(Moments.merge, parts)
    commit = SimpleNamespace  # of which only this is read
    again = merged_again(commit(norm_moments={"site": {"text": part}}) for part in parts)["site"]["text"]
    room = MERGE_TOLERANCE / 10 * 1e4
    assert abs(again.mean - one_by_one.mean) < room
    assert abs(again.standard_deviation - one_by_one.standard_deviation) < room
    assert abs(again.log_sum - one_by_one.log_sum) < MERGE_TOLERANCE / 10 * again.count
    assert again.standard_deviation == pytest.approx(math.hypot(1e-3, means.std()), rel=1e-6)


def test_merged_sketches_that_are_gone_are_made_again(local_bucket: Bucket, small_blocks: None) -> None:
    put_made_run(local_bucket, 2, sequences=33, sequences_per_shard=3)
    fold_commits(open_run(local_bucket, "run"))
    before = norm_profile(open_run(local_bucket, "run")).to_pylist()
    keys = [checkpoint_sketches_key("run", block) for block in (range(8), range(8, 10), range(10, 11))]
    for key in keys:
        local_bucket.delete(key)
    assert kinds(local_bucket) == [("missing", key) for key in keys]
    assert "capturing the run again" in check_runs(local_bucket).findings[0].what
    assert fold_commits(open_run(local_bucket, "run")) == keys
    assert kinds(local_bucket) == []
    after = norm_profile(open_run(local_bucket, "run")).to_pylist()
    assert [row["rank_error"] for row in after] == [row["rank_error"] for row in before]
    assert after == [pytest.approx(row) for row in before]
    assert fold_commits(open_run(local_bucket, "run")) == []


@pytest.mark.parametrize("damage", ["cut", "of no known version"])
def test_merged_sketches_are_made_again_beside_damaged_ones_that_they_replaced(
    damage: str, local_bucket: Bucket, small_blocks: None
) -> None:
    put_made_run(local_bucket, 2, sequences=24, sequences_per_shard=3)
    fold_commits(open_run(local_bucket, "run"))
    before = norm_profile(open_run(local_bucket, "run")).to_pylist()
    smaller, key = (checkpoint_sketches_key("run", block) for block in (range(2), range(8)))
    local_bucket.put(smaller, SKETCH_DAMAGES[damage][0](local_bucket.get(smaller)))
    local_bucket.delete(checkpoint_sketches_key("run", range(4)))
    local_bucket.delete(key)
    assert fold_commits(open_run(local_bucket, "run")) == [key]
    assert kinds(local_bucket) == ([("orphan", smaller)] if damage == "cut" else [])  # which nobody reads any more
    assert norm_profile(open_run(local_bucket, "run")).to_pylist() == [pytest.approx(row) for row in before]


def test_a_shards_sketches_that_cannot_be_merged_are_told_as_damage(local_bucket: Bucket) -> None:
    """Fold is called by who waits for nothing but errors of ours."""
    put_made_run(local_bucket, 2, sequences=6, sequences_per_shard=3)
    snapshot = open_run(local_bucket, "run")
    key = snapshot.commits[0].objects[NORM_SKETCHES].key
    local_bucket.put(key, SKETCH_DAMAGES["of no known version"][0](local_bucket.get(key)))
    with pytest.raises(CorruptObject):
        fold_commits(open_run(local_bucket, "run"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named(damage: str, bucket: Bucket, small_blocks: None) -> None:
    put_made_run(bucket, 2, sequences=9, sequences_per_shard=1)
    fold_commits(open_run(bucket, "run"))
    key = checkpoint_key("run", range(8))
    bucket.put(key, DAMAGES[damage](bucket.get(key)))
    with pytest.raises(CorruptObject) as caught:
        list(open_run(bucket, "run").commits)
    assert caught.value.details["value"] == key


def test_a_checkpoint_of_another_run_is_refused(bucket: Bucket, small_blocks: None) -> None:
    put_made_run(bucket, 2, sequences=4, sequences_per_shard=1)
    fold_commits(open_run(bucket, "run"))
    key = checkpoint_key("run", range(4))
    data = bucket.get(key)
    remove_run(bucket, "run")
    put_made_run(bucket, 2, sequences=4, sequences_per_shard=1, dtype="float16")
    bucket.put(key, data)
    with pytest.raises(CorruptObject, match="another specification"):
        open_run(bucket, "run")


def test_keys_between_two(bucket: Bucket) -> None:
    names = [f"folder/{number:03}" for number in range(0, 40, 2)]
    for name in names:
        bucket.put(name, b"")
    rng = np.random.default_rng(0)
    for first, last in rng.integers(-1, 42, (20, 2)):
        after, until = f"folder/{max(first, 0):03}", f"folder/{max(last, 0):03}"
        assert bucket.keys("folder", after=after, until=until) == [name for name in names if after < name <= until]
    assert bucket.keys("folder", after="folder/010") == names[6:]
    assert bucket.keys("folder", until="folder/010") == names[:6]
