"""Beginning runs, finding them, and the registry."""

import io
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actstore_storage.answers import Store
from actstore_storage.bucket import Bucket
from actstore_storage.errors import BadRequest, Conflict, CorruptObject, NotThere
from actstore_storage.format.keys import training_key
from actstore_storage.format.specification import FORMAT_VERSION, RunRecord
from actstore_storage.registry.models import ModelRecord, list_models, register_model
from actstore_storage.registry.saes import (
    SaeModelRecord,
    fetch_sae_files,
    find_registered_sae,
    list_saes,
    register_sae,
    store_sae_files,
)
from actstore_storage.registry.token_texts import TokenTexts, token_texts
from actstore_storage.runs.opening import create_run, list_runs, open_run
from tests.run_state import committed_shards
from tests.storage.random_run import make_run, write_run

MODEL = ModelRecord("org/model", "", "a" * 64, "b" * 64, "llama", 2, 8, 2, 3, 64)


@pytest.fixture(params=["local_bucket", "s3_bucket"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    found: Bucket = request.getfixturevalue(request.param)
    return found


def test_the_same_specification_is_the_same_run(bucket: Bucket) -> None:
    record = make_run(1).record
    assert create_run(bucket, record) == record
    later = replace(record, code_version="later", device="cuda")
    assert create_run(bucket, later) == record


def test_another_specification_of_that_name_is_refused(bucket: Bucket) -> None:
    record = make_run(1).record
    create_run(bucket, record)
    other = replace(record.specification, dtype="float16")
    with pytest.raises(Conflict) as caught:
        create_run(bucket, replace(record, specification=other, specification_sha256=other.sha256))
    assert caught.value.reason == "RUN_EXISTS"
    assert caught.value.details["value"] == "run"
    assert f"dtype was {record.specification.dtype}, and is float16" in caught.value.message
    assert open_run(bucket, "run").record == record


def test_every_part_of_a_specification_decides_its_hash() -> None:
    asked = make_run(1).record.specification
    changed = [replace(asked, **{name: "other"}) for name in asked.__dataclass_fields__]
    assert len({asked.sha256, *(other.sha256 for other in changed)}) == len(changed) + 1


def test_lists_runs_that_began(bucket: Bucket) -> None:
    assert list_runs(bucket) == []
    record = make_run(1).record
    for name in ("b", "a.1", "c"):
        create_run(bucket, replace(record, run=name))
    bucket.put("runs/no-record/commits/00000000.json", b"{}")
    assert list_runs(bucket) == ["a.1", "b", "c"]


def test_an_unknown_run_is_refused_with_those_that_there_are(bucket: Bucket) -> None:
    create_run(bucket, make_run(1).record)
    with pytest.raises(NotThere) as caught:
        open_run(bucket, "rum")
    assert caught.value.reason == "RUN_NOT_FOUND"
    assert caught.value.details == {"field": "run", "value": "rum", "allowed": "run"}


@pytest.mark.parametrize("name", ["", "..", "a/b", "../../etc", "a b"])
def test_a_run_cannot_leave_its_folder(local_bucket: Bucket, name: str) -> None:
    record = replace(make_run(1).record, run=name)
    for ask in (lambda: create_run(local_bucket, record), lambda: open_run(local_bucket, name)):
        with pytest.raises(BadRequest) as caught:
            ask()
        assert (caught.value.reason, caught.value.details["field"]) == ("NAME_INVALID", "run")


def test_knows_which_shards_are_committed(bucket: Bucket) -> None:
    run = make_run(1)
    assert committed_shards(bucket, "run") == set()
    write_run(bucket, run, shards=(3, 0))
    assert committed_shards(bucket, "run") == {0, 3}
    snapshot = open_run(bucket, "run")
    assert [commit.shard for commit in snapshot.commits] == [0, 3]
    held = [*run.record.shard_sequences(0), *run.record.shard_sequences(3)]
    assert snapshot.tokens_committed == sum(sequence in held for sequence in run.tokens.sequence.tolist())
    assert not snapshot.complete


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"format_version": "new"}'])
def test_a_damaged_record_is_named(local_bucket: Bucket, data: bytes) -> None:
    local_bucket.put("runs/run/run.json", data)
    with pytest.raises(CorruptObject) as caught:
        open_run(local_bucket, "run")
    assert caught.value.details["value"] == "runs/run/run.json"


def test_a_newer_format_is_refused(local_bucket: Bucket) -> None:
    newer = replace(make_run(1).record, format_version=FORMAT_VERSION + 1)
    with pytest.raises(CorruptObject) as caught:
        RunRecord.from_json(newer.to_json(), "key")
    assert caught.value.details["field"] == "format_version"


@pytest.mark.parametrize("key", ["runs/b/run.json", "runs/b/commits/00000001.json"])
def test_a_damaged_run_does_not_hide_the_others(bucket: Bucket, key: str, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run(1)
    for name in ("a", "b", "c"):
        write_run(bucket, replace(run, record=replace(run.record, run=name)))
    assert [found.record.run for found in Store(bucket).readable_runs()] == ["a", "b", "c"]
    assert not caplog.records
    bucket.put(key, b"{")
    assert [found.name for found in Store(bucket).readable_runs()] == [
        open_run(bucket, name).name for name in ("a", "c")
    ]
    [warning] = caplog.records
    assert warning.levelname == "WARNING"
    assert key in warning.getMessage()
    with pytest.raises(CorruptObject):
        open_run(bucket, "b")


def test_registers_models_and_their_tokens(bucket: Bucket) -> None:
    texts = ["<bos>", " snow☃", "", "\n", "\ufffd"]
    register_model(bucket, replace(MODEL, revision="refs/pr/1"), texts)
    register_model(bucket, MODEL, texts)
    register_model(bucket, replace(MODEL, name="a"), texts)
    expected = [replace(MODEL, name="a"), MODEL, replace(MODEL, revision="refs/pr/1")]
    assert list_models(bucket) == expected
    assert token_texts(bucket, "b" * 64) == TokenTexts(tuple(texts))
    with pytest.raises(NotThere):
        token_texts(bucket, "c" * 64)


def test_texts_by_the_rule_of_before_stand_until_a_model_is_registered_again(bucket: Bucket) -> None:
    """Both are created if absent, so the new ones have a name of their own."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["a", "\ufffd", "\ufffd", "b"]}), sink)
    bucket.put(f"tokenizers/{'b' * 64}/texts.parquet", sink.getvalue())
    assert token_texts(bucket, "b" * 64) == TokenTexts(("a", "\ufffd", "\ufffd", "b"))
    register_model(bucket, MODEL, [" a", r"\xc3", r"\xa9", "b"], {1: b"\xc3", 2: b"\xa9"})
    found = token_texts(bucket, "b" * 64)
    assert found == TokenTexts((" a", r"\xc3", r"\xa9", "b"), {1: b"\xc3", 2: b"\xa9"})
    assert found.in_order([0, 1, 2, 3, 2, 1]) == [" a", "", "é", "b", r"\xa9", r"\xc3"]


def test_a_model_registered_again_is_replaced(bucket: Bucket) -> None:
    register_model(bucket, MODEL, ["x"])
    register_model(bucket, replace(MODEL, weights_sha256="f" * 64), ["x"])
    assert [model.weights_sha256 for model in list_models(bucket)] == ["f" * 64]


def test_registers_saes(bucket: Bucket) -> None:
    sae = SaeModelRecord("org/sae", "c" * 64, "topk", "resid_post.1", 8, 64, "org/model")
    register_sae(bucket, sae)
    register_sae(bucket, replace(sae, name="b"))
    assert list_saes(bucket) == [replace(sae, name="b"), sae]


def test_an_sae_s_files_come_back_under_their_hash(bucket: Bucket, tmp_path: Path) -> None:
    """Beside what else lies in its folder of the bucket, which is no SAE that is listed."""
    files = {"cfg.json": b"{}", "sae_weights.safetensors": bytes(range(256)) * 70_000}
    for folder in ("from", "to", "other"):
        (tmp_path / folder).mkdir()
    for name, data in files.items():
        (tmp_path / "from" / name).write_bytes(data)
    store_sae_files(bucket, "org/sae", "c" * 64, tmp_path / "from")
    bucket.put(training_key("unfinished"), b"{}")
    assert list_saes(bucket) == []
    assert find_registered_sae(bucket, "org/sae") is None
    sae = SaeModelRecord("org/sae", "c" * 64, "topk", "resid_post.1", 8, 64, "org/model")
    register_sae(bucket, sae)
    assert list_saes(bucket) == [sae]
    assert find_registered_sae(bucket, "org/sae") == sae
    assert fetch_sae_files(bucket, "org/sae", "c" * 64, tmp_path / "to")
    assert {path.name: path.read_bytes() for path in (tmp_path / "to").iterdir()} == files
    assert not fetch_sae_files(bucket, "org/sae", "d" * 64, tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []


@pytest.mark.parametrize("name", ["a--b", "../a", "/a", "a/", "", "a b"])
def test_names_that_could_meet_or_leave_are_refused(local_bucket: Bucket, name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        register_model(local_bucket, replace(MODEL, name=name), ["x"])
    assert caught.value.reason == "NAME_INVALID"


def test_the_hash_is_of_the_words_not_of_their_order() -> None:
    """A run is found again by its hash, so writing it must not depend on how Python orders fields."""
    record = make_run(1).record
    assert RunRecord.from_json(record.to_json(), "key") == record
    assert RunRecord.from_json(record.to_json(), "key").specification.sha256 == record.specification_sha256
