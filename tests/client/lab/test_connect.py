"""From an address, the environment or a stack's file to a lab."""

import json
import os
import shutil
from pathlib import Path

import pytest

import actstore
from actstore import BadRequest, Denied, Lab, S3Access, StoreFailed, Unavailable
from actstore._transport.bucket import BucketBackend
from actstore._transport.service import GrpcBackend
from actstore_storage.answers import Store, answer
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.bucket.probe import probe


@pytest.mark.parametrize("address", ["lab.internal:7433", "10.0.0.1:80", "[::1]:7433"])
def test_host_and_port_is_a_service(address: str) -> None:
    with actstore.connect(address) as lab:
        assert isinstance(lab._backend, GrpcBackend)
        assert lab.address == address


def test_a_folder_is_a_bucket(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / ".hidden").mkdir()
    for address in (str(tmp_path), "./", ".", "./store", "store/", ".hidden/../store", tmp_path):
        assert isinstance(actstore.connect(address)._backend, BucketBackend)


def test_questions_to_a_bucket_share_one_store(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that it keeps, and whoever asks: none is made for a question."""
    asked: list[object] = []

    def noted(store: Store, question: object) -> object:
        asked.append(store)
        return answer(store, question)

    monkeypatch.setattr("actstore._transport.bucket.answer", noted)
    with actstore.connect(store) as lab:
        assert len(lab.runs()) == len(lab.runs()) > 0
    assert len(asked) > 1
    assert all(one is asked[0] for one in asked)


def test_a_folder_that_is_no_store_says_so(store: Path, tmp_path: Path) -> None:
    """An empty one, one of other things, and one around a store; one that somebody has written to is new and empty."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "main.py").write_text("")
    around = shutil.copytree(store, tmp_path / "around" / "store")
    for folder, near in ((tmp_path / "empty", ""), (tmp_path / "code", ""), (around.parent, str(around))):
        for ask in (Lab.runs, Lab.models, Lab.saes, Lab.check, lambda lab: lab.run("planted")):
            with pytest.raises(StoreFailed, match="is not a store") as caught:
                ask(actstore.connect(folder))
            assert (caught.value.reason, caught.value.field) == ("STORE_NOT_FOUND", "store")
            assert near in str(caught.value.allowed)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreFailed, match="is a file"):
        actstore.connect(tmp_path / "file").runs()
    probe(open_bucket(str(tmp_path / "empty")))
    assert len(actstore.connect(tmp_path / "empty").runs()) == 0


NO_ADDRESSES = ["", "lab", "lab:", ":7433", "lab:port", "lab:0", "lab:70000", "http://lab:7433", "gs://bucket"]
NO_ADDRESSES += ["::1:7433", "[::1:7433", " lab:7433", "lab:7433\n", "lab:\u0667", "me@lab:7433"]


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_anything_else_is_refused(address: str) -> None:
    with pytest.raises(BadRequest) as caught:
        actstore.connect(address)
    assert caught.value.field == "address"
    assert "s3://bucket/prefix" in (caught.value.allowed or "")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreFailed) as caught:
        actstore.connect(tmp_path / "nowhere").runs()
    assert caught.value.reason == "STORE_NOT_FOUND"


def test_a_folder_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "store").mkdir()
    for address in ("~/store", Path("~/store")):
        assert actstore.connect(address).address == str(tmp_path / "store")


def test_a_current_folder_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(Unavailable, match="was removed"):
        actstore.connect()


def test_nothing_to_connect_to() -> None:
    with pytest.raises(Unavailable, match="`actstore up`"):
        actstore.connect()


def _shown(lab: actstore.Lab) -> str:
    """What a call shows to the service."""
    with lab._backend._headers("/a/call") as headers:
        return dict(headers)["authorization"]


def test_the_environment_names_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTSTORE_ADDRESS", "localhost:7")
    monkeypatch.setenv("ACTSTORE_TOKEN", "secret")
    lab = actstore.connect()
    assert lab.address == "localhost:7"
    assert _shown(lab) == "Bearer secret"


def test_the_stack_of_this_folder_or_one_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".actstore").mkdir()
    (tmp_path / ".actstore" / "stack.json").write_text(json.dumps({"address": "127.0.0.1:9", "token": "secret"}))
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "deep" / "er"):
        monkeypatch.chdir(folder)
        lab = actstore.connect()
        assert lab.address == "127.0.0.1:9"
        assert _shown(lab) == "Bearer secret"


def test_what_the_environment_says_of_the_labs_service_does_not_hold_for_a_stack_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".actstore").mkdir()
    (tmp_path / ".actstore" / "stack.json").write_text(json.dumps({"address": "127.0.0.1:9", "token": "secret"}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACTSTORE_TLS", "1")
    monkeypatch.setenv("ACTSTORE_ROOT_CERTIFICATES", "/nowhere.pem")
    monkeypatch.setenv("ACTSTORE_TOKEN", "of the lab")
    monkeypatch.setattr("grpc.secure_channel", None)
    assert _shown(actstore.connect()) == "Bearer secret"


@pytest.mark.parametrize("text", ["", '{"address": "127.0.0.1:9", "tok', "[]", '{"address": "127.0.0.1:9"}', "\xff"])
def test_a_stack_file_that_is_not_whole(text: str, tmp_path: Path) -> None:
    (tmp_path / ".actstore").mkdir()
    (tmp_path / ".actstore" / "stack.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(Unavailable, match="is not whole") as caught:
        actstore.connect()
    assert "actstore up" in caught.value.next_step
    assert caught.value.value is not None
    assert caught.value.value.endswith("stack.json")


def test_a_stack_file_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".actstore").mkdir()
    (tmp_path / ".actstore" / "stack.json").write_text(json.dumps({"address": "127.0.0.1:9", "token": "bait"}))
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(Denied, match=f"belongs to user {owner}, not to you") as caught:
        actstore.connect()
    assert caught.value.allowed == f"a file of user {owner + 1}"


def test_s3_takes_its_keys_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "ACCESS_KEY", "SECRET_KEY"):
        monkeypatch.delenv(f"ACTSTORE_S3_{name}", raising=False)
    with pytest.raises(StoreFailed, match="ACTSTORE_S3_ENDPOINT, ACTSTORE_S3_ACCESS_KEY, ACTSTORE_S3_SECRET_KEY"):
        actstore.connect("s3://bucket/prefix")
    monkeypatch.setenv("ACTSTORE_S3_ENDPOINT", "127.0.0.1:9")
    monkeypatch.setenv("ACTSTORE_S3_ACCESS_KEY", "key")
    monkeypatch.setenv("ACTSTORE_S3_SECRET_KEY", "secret")
    assert actstore.connect("s3://bucket/prefix").address == "s3://bucket/prefix"
    monkeypatch.setenv("ACTSTORE_S3_SECURE", "true")
    with pytest.raises(BadRequest, match="ACTSTORE_S3_SECURE is 'true'"):
        actstore.connect("s3://bucket/prefix")


def test_s3_takes_its_keys_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks after a deployment has the same file as its processes."""
    for name in ("ACCESS_KEY", "SECRET_KEY"):
        monkeypatch.delenv(f"ACTSTORE_S3_{name}", raising=False)
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id = key\n")
    monkeypatch.setenv("ACTSTORE_S3_ENDPOINT", "127.0.0.1:9")
    monkeypatch.setenv("ACTSTORE_S3_CREDENTIALS_FILE", str(file))
    with (
        actstore.connect("s3://bucket/prefix") as lab,
        pytest.raises(StoreFailed, match="has no S3 credentials"),
    ):
        lab.runs()
    with pytest.raises(BadRequest, match="access_key"):
        S3Access("127.0.0.1:9")


def test_secrets_are_not_printed() -> None:
    assert "secret" not in repr(S3Access("127.0.0.1:9", "key", "secret"))
