"""Checking a bucket, removing runs from it, folding commits."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actstore_storage import checkpoint
from actstore_storage.bucket import Bucket
from actstore_storage.checkpoint import fold_commits
from actstore_storage.errors import Conflict, CorruptObject, NotThere
from actstore_storage.fsck import check_runs
from actstore_storage.index_merge import merge_index
from actstore_storage.index_segments import chosen_segments
from actstore_storage.layout import checkpoint_key, checkpoint_sketches_key, commit_key, segment_key, wanted_key
from actstore_storage.norms import norm_profile
from actstore_storage.removal import remove_run
from actstore_storage.rows import read_activations
from actstore_storage.runs import create_run, open_run
from tests.storage.random_run import SAE, make_run, write_run, write_shard


@pytest.fixture(params=["local_bucket", "s3_bucket"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    found: Bucket = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels of 2, 4 and 8 shards instead of 256, 4,096 and 65,536."""
    monkeypatch.setattr(checkpoint, "BLOCKS", (2, 4, 8))


def kinds(bucket: Bucket, run: str | None = None, **options: bool) -> list[tuple[str, str]]:
    return [(found.kind, found.key) for found in check_runs(bucket, run, **options).findings]


def test_a_sound_store(bucket: Bucket) -> None:
    write_run(bucket, make_run(1))
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
    write_run(bucket, make_run(1))
    key = open_run(bucket, "run").commits[1].objects["norms"].key
    bucket.put(key, DAMAGES[damage](bucket.get(key)))
    assert kinds(bucket) == [("damaged", key)]
    assert not check_runs(bucket).sound
    assert check_runs(bucket, quick=True).sound
    bucket.delete(key)
    assert kinds(bucket, "run") == [("missing", key)]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_of_a_merged_index_is_named(damage: str, bucket: Bucket) -> None:
    write_run(bucket, make_run(1))
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
    write_run(bucket, make_run(1))
    orphan = "runs/run/data/00000000-crashed/tokens.parquet"
    bucket.put(orphan, b"half of a file")
    bucket.put(wanted_key("run"), b"{}")
    assert kinds(bucket, remove_orphans=True) == [("orphan", orphan)]
    bucket.delete(wanted_key("run"))
    assert kinds(bucket) == [("orphan", orphan)]
    assert check_runs(bucket).sound
    assert kinds(bucket, remove_orphans=True) == [("removed", orphan)]
    assert kinds(bucket) == []


def test_a_run_is_removed_whole(bucket: Bucket, small_blocks: None) -> None:
    write_run(bucket, make_run(1))
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
    with pytest.raises(Conflict, match="not to the end"):
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


def test_a_checkpoint_is_what_is_read(bucket: Bucket, small_blocks: None) -> None:
    """Nobody looks at commits that are folded: there may be 100,000 of them."""
    write_run(bucket, make_run(2, sequences=9, sequences_per_shard=1))
    fold_commits(open_run(bucket, "run"))
    commits = list(open_run(bucket, "run").commits)
    bucket.put(commit_key("run", 3), b"not looked at")
    assert list(open_run(bucket, "run").commits) == commits
    with pytest.raises(CorruptObject):
        check_runs(bucket)


def other_sketches(data: bytes, change: Callable[[pa.Table], pa.Table]) -> bytes:
    """The object with a changed table in it: whole, as Parquet goes."""
    sink = pa.BufferOutputStream()
    pq.write_table(change(pq.read_table(pa.BufferReader(data))), sink)
    return sink.getvalue().to_pybytes()


def _with_first(table: pa.Table, change: Callable[[bytes], bytes]) -> pa.Table:
    """With the first sketch changed."""
    values = table[1].to_pylist()
    return table.set_column(1, table.field(1), pa.array([change(values[0]), *values[1:]], pa.binary()))


SKETCH_DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    **{name: (damage, "is damaged") for name, damage in DAMAGES.items()},
    "of fewer values": (
        lambda data: other_sketches(data, lambda table: _with_first(table, lambda sketch: b"")),
        "not of as many tokens",
    ),
    "half a sketch": (
        lambda data: other_sketches(data, lambda table: _with_first(table, lambda sketch: sketch[: len(sketch) // 2])),
        "sketches of resid_post.0 are no sketches",
    ),
    "of no known version": (
        lambda data: other_sketches(
            data, lambda table: _with_first(table, lambda sketch: sketch[:1] + b"\x63" + sketch[2:])
        ),
        "sketches of 1 of 8 names cannot be read: resid_post.0",
    ),
    "a name short": (
        lambda data: other_sketches(data, lambda table: table.drop_columns(["resid_pre.2"])),
        "sketches of 8 of 8 names cannot be read",
    ),
}


@pytest.mark.parametrize("damage", SKETCH_DAMAGES)
def test_damage_of_a_checkpoints_sketches_is_named(damage: str, bucket: Bucket, small_blocks: None) -> None:
    write_run(bucket, make_run(2, sequences=9, sequences_per_shard=3))
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


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named(damage: str, bucket: Bucket, small_blocks: None) -> None:
    write_run(bucket, make_run(2, sequences=9, sequences_per_shard=1))
    fold_commits(open_run(bucket, "run"))
    key = checkpoint_key("run", range(8))
    bucket.put(key, DAMAGES[damage](bucket.get(key)))
    with pytest.raises(CorruptObject) as caught:
        list(open_run(bucket, "run").commits)
    assert caught.value.details["value"] == key


def test_a_checkpoint_of_another_run_is_refused(bucket: Bucket, small_blocks: None) -> None:
    write_run(bucket, make_run(2, sequences=4, sequences_per_shard=1))
    fold_commits(open_run(bucket, "run"))
    key = checkpoint_key("run", range(4))
    data = bucket.get(key)
    remove_run(bucket, "run")
    write_run(bucket, make_run(2, sequences=4, sequences_per_shard=1, dtype="float16"))
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
