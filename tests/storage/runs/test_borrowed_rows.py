"""Runs over another run's rows: as if their SAEs had been there from the start, and nothing written twice."""

from dataclasses import replace

import numpy as np
import pytest

from actstore_storage.bucket import Bucket
from actstore_storage.errors import Conflict, CorruptObject
from actstore_storage.features.statistics import feature_statistics, top_examples
from actstore_storage.format.keys import data_folder
from actstore_storage.format.products import NORM_SKETCHES, TOKENS
from actstore_storage.format.specification import FORMAT_VERSION, RunRecord, SaeRecord
from actstore_storage.norms.profile import norm_profile
from actstore_storage.rows.reading import read_activations
from actstore_storage.runs.borrowed_shard import FeatureWriter
from actstore_storage.runs.feature_index import SparseFeatures
from actstore_storage.runs.opening import open_run, read_record, runs_over
from actstore_storage.runs.shard_writer import ShardWriter
from actstore_storage.runs.tokens import shard_tokens
from actstore_storage.upkeep.fsck import check_runs
from actstore_storage.upkeep.removal import remove_run
from tests.storage.random_run import SAE, RandomRun, begin, make_run, write_run

NEW = SaeRecord("new", "e" * 64, "resid_pre.0", 9)


@pytest.fixture(params=["local_bucket", "s3_bucket"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    found: Bucket = request.getfixturevalue(request.param)
    return found


def over(base: RunRecord, run: str = "over", sae: SaeRecord = NEW) -> RunRecord:
    asked = base.borrow_rows([sae])
    return replace(
        base, run=run, specification=asked, specification_sha256=asked.sha256, device="cuda", code_version="later",
        format_version=FORMAT_VERSION,
    )  # fmt: skip


def new_features(run: RandomRun, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    active = rng.random((len(run.tokens.token), NEW.d_sae)) < 0.3
    return (active * rng.integers(1, 5, active.shape) / 3).astype(np.float32)


def sparse(dense: np.ndarray) -> SparseFeatures:
    row, feature = np.nonzero(dense)
    return SparseFeatures(row, feature.astype(np.int32), dense[row, feature])


def encode(bucket: Bucket, record: RunRecord, features: np.ndarray, attempt: str = "encoded", rows: int = 7) -> None:
    """Every shard, some rows at a time, with the flags that are stored."""
    begin(bucket, record)
    first = 0
    for base in open_run(bucket, record.specification.rows_of).commits:
        flags = shard_tokens(bucket, base)["flags"].to_numpy()
        own = features[first : first + base.tokens]
        with FeatureWriter(bucket, record, base, attempt) as writer:
            for start in range(0, base.tokens, rows):
                name = record.specification.saes[-1].name
                writer.add(flags[start : start + rows], {name: sparse(own[start : start + rows])})
            assert writer.commit()
        first += base.tokens


def write_with_both(bucket: Bucket, run: RandomRun, features: np.ndarray) -> None:
    """The run that had both SAEs from the start."""
    asked = replace(run.record.specification, saes=(*run.record.specification.saes, NEW))
    record = replace(run.record, run="both", specification=asked, specification_sha256=asked.sha256)
    begin(bucket, record)
    for shard in range(record.shards_total):
        held = record.shard_sequences(shard)
        rows = (run.tokens.sequence >= held.start) & (run.tokens.sequence < held.stop)
        tokens, dense, norms, old = run.part(rows)
        with ShardWriter(bucket, record, shard, "attempt", sources=run.sources) as writer:
            writer.add(tokens, dense, norms, old | {NEW.name: sparse(features[rows])})
            assert writer.commit()


def test_it_is_the_run_that_had_the_sae_from_the_start(bucket: Bucket) -> None:
    run = make_run(5)
    features = new_features(run)
    write_run(bucket, run)
    write_with_both(bucket, run, features)
    encode(bucket, over(run.record), features)
    base, both, borrowed = (open_run(bucket, name) for name in ("run", "both", "over"))
    assert borrowed.complete
    assert borrowed.record.has_rows_of(base.record)
    for mine, theirs, whole in zip(borrowed.commits, base.commits, both.commits, strict=True):
        assert mine.objects.keys() == whole.objects.keys()
        # Which numbers a sketch keeps is drawn by chance.
        alike = [
            (mine.objects[name].sha256, whole.objects[name].sha256) for name in mine.objects.keys() - {NORM_SKETCHES}
        ]
        assert all(one == other for one, other in alike)
        own = {name for name, item in mine.objects.items() if item.key.startswith(data_folder("over"))}
        assert own == {"features-new", "index-new", "statistics-new"}
        assert {name: mine.objects[name] for name in mine.objects.keys() - own} == theirs.objects
        assert (mine.tokens_by_class, mine.norm_moments) == (theirs.tokens_by_class, theirs.norm_moments)
        assert mine.non_finite == whole.non_finite
    assert borrowed.provenance().device == "cpu, cuda"
    assert borrowed.provenance().code_version == "0, later"
    assert norm_profile(borrowed).equals(norm_profile(base))
    for answer in (
        lambda snapshot: [batch.to_pylist() for batch in read_activations(snapshot, "resid_pre.0")],
        *(lambda snapshot, sae=sae: top_examples(snapshot, sae, 4).to_pylist() for sae in (SAE, NEW.name)),
        *(lambda snapshot, sae=sae: feature_statistics(snapshot, sae, 4) for sae in (SAE, NEW.name)),
    ):
        assert answer(borrowed) == answer(both)


def test_a_run_over_a_run_over_a_run(bucket: Bucket) -> None:
    run = make_run(6)
    write_run(bucket, run)
    middle = over(run.record, "middle")
    encode(bucket, middle, new_features(run))
    encode(bucket, over(middle, "last", replace(NEW, name="newer")), new_features(run, 1))
    last = open_run(bucket, "last")
    assert [sae.name for sae in last.record.specification.saes] == [SAE, "new", "newer"]
    assert {key.split("/")[1] for key in (item.key for item in last.commits[0].objects.values())} == {
        "run", "middle", "last",
    }  # fmt: skip
    verdict = check_runs(bucket)
    assert (verdict.runs, verdict.findings) == (3, ())
    assert runs_over(bucket, "run") == ["middle"]


def test_a_run_that_others_stand_on_is_kept(bucket: Bucket) -> None:
    run = make_run(7)
    write_run(bucket, run)
    encode(bucket, over(run.record), new_features(run))
    with pytest.raises(Conflict, match="over") as refused:
        remove_run(bucket, "run")
    assert refused.value.details["value"] == "run"
    assert check_runs(bucket, remove_orphans=True).findings == ()
    remove_run(bucket, "over")
    assert check_runs(bucket).findings == ()
    encode(bucket, over(run.record), new_features(run))
    remove_run(bucket, "run", force=True)
    findings = check_runs(bucket, "over").findings
    assert {finding.kind for finding in findings} == {"missing"}
    assert {finding.key.split("/")[1] for finding in findings} == {"run"}


def test_damage_to_borrowed_rows_is_found_in_both_runs(bucket: Bucket) -> None:
    run = make_run(8)
    write_run(bucket, run)
    encode(bucket, over(run.record), new_features(run))
    key = open_run(bucket, "run").commits[1].objects[TOKENS].key
    bucket.put(key, bucket.get(key)[:-1])
    for name in ("run", "over"):
        assert [(found.kind, found.key) for found in check_runs(bucket, name).findings] == [("damaged", key)]


def test_the_second_attempt_loses_and_takes_nothing_along(bucket: Bucket) -> None:
    run = make_run(9)
    write_run(bucket, run)
    record = over(run.record)
    encode(bucket, record, new_features(run))
    before = bucket.keys("runs")
    base = open_run(bucket, "run").commits[0]
    flags = shard_tokens(bucket, base)["flags"].to_numpy()
    with FeatureWriter(bucket, record, base, "late") as writer:
        writer.add(flags, {"new": sparse(new_features(run)[: base.tokens])})
        assert not writer.commit()
    with pytest.raises(ValueError, match="of its"), FeatureWriter(bucket, record, base, "short") as writer:
        writer.commit()
    with pytest.raises(ValueError, match="stores"), FeatureWriter(bucket, record, base, "other") as writer:
        writer.add(flags, {SAE: sparse(new_features(run)[: base.tokens])})
    assert bucket.keys("runs") == before


def test_rows_of_another_run_under_that_name_are_told_apart() -> None:
    base = make_run(10).record
    record = over(base)
    assert record.has_rows_of(base)
    other = replace(base.specification, dataset_sha256="f" * 64)
    assert not record.has_rows_of(replace(base, specification=other))
    assert not record.has_rows_of(replace(base, run="elsewhere"))
    assert not base.has_rows_of(base)


def test_a_run_of_its_own_is_written_as_ever(bucket: Bucket) -> None:
    """Its specification as before there were borrowed rows, so that its hash is the same in every version."""
    run = make_run(11)
    write_run(bucket, run)
    data = bucket.get("runs/run/run.json")
    assert b"rows_of" not in data
    assert b'"format_version":4' in data
    encode(bucket, over(run.record), new_features(run))
    assert b'"rows_of":"run"' in bucket.get("runs/over/run.json")
    assert read_record(bucket, "over") == over(run.record)
    bucket.put("runs/broken/run.json", b"no record")
    assert runs_over(bucket, "run") == ["over"]
    with pytest.raises(CorruptObject):
        read_record(bucket, "broken")
