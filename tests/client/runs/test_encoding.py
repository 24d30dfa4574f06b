"""SAEs over a run that is there: asked for from Python and from a shell, and trained before that."""

import json
from pathlib import Path

import pytest

from actstore import Lab, connect
from actstore._cli import train as _training
from actstore._errors import ActstoreError, BadRequest, MissingLibrary
from actstore_api.records.capture import CaptureSpecification, StartCapture
from actstore_service.server import Service
from actstore_service.settings import Settings
from actstore_storage.bucket.opening import open_bucket
from tests.client.cli.test_command import actstore, actstore_process
from tests.client.conftest import SERVICE_TOKEN
from tests.client.workers.stand_in import TOKEN, StandInWorkers
from tests.planted_rows import SITE, write_planted_rows
from tests.storage.random_run import make_run, write_run
from tests.storage.runs.test_borrowed_rows import encode, new_features, over


def asked(workers: StandInWorkers) -> CaptureSpecification:
    (request,) = [one for one in workers.requests if isinstance(one, StartCapture)]
    return request.specification


def test_the_run_and_the_saes_are_all_that_is_sent(remote: Lab, workers: StandInWorkers) -> None:
    run = remote.run("planted").encode("planted-sae", run="float16").wait(check_saes=False)
    assert run.name == "float16"
    sent = asked(workers)
    assert (sent.run, sent.rows_of, list(sent.saes)) == ("float16", "planted", ["planted-sae"])
    assert sent == CaptureSpecification(run="float16", rows_of="planted", saes=("planted-sae",))


def test_what_cannot_be_encoded(remote: Lab, direct: Lab, workers: StandInWorkers) -> None:
    with pytest.raises(BadRequest, match="name an SAE"):
        remote.run("planted").encode([])
    with pytest.raises(BadRequest, match="run must be text"):
        remote.run("planted").encode("sae", run=7)  # type: ignore[arg-type]
    assert workers.requests == []
    with pytest.raises(BadRequest) as refused:
        direct.run("planted").encode("sae")
    assert refused.value.reason == "NEEDS_SERVICE"


def test_a_run_says_whose_rows_it_has(tmp_path: Path) -> None:
    bucket = open_bucket(str(tmp_path))
    run = make_run(1)
    write_run(bucket, run)
    encode(bucket, over(run.record), new_features(run))
    with connect(tmp_path) as lab:
        found = lab.run("over")
        assert found.specification.rows_of == "run"
        assert "rows of" in repr(found)
        assert "rows of" not in repr(lab.run("run"))
        with pytest.raises(ActstoreError, match="rows that other runs use: over"):
            lab.remove("run")


def test_encode_from_a_shell(service: Service, workers: StandInWorkers) -> None:
    done = actstore("encode", "planted", "planted-sae", "--no-wait", "--json", address=service.address)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"run": "planted"})
    assert (asked(workers).rows_of, list(asked(workers).saes)) == ("planted", ["planted-sae"])


def test_train_and_encode_from_a_shell(tmp_path: Path, workers: StandInWorkers) -> None:
    (tmp_path / "store").mkdir()
    bucket = open_bucket(str(tmp_path / "store"))
    write_planted_rows(bucket)
    settings = Settings(
        listen="127.0.0.1:0", metrics_listen="127.0.0.1:0", token=SERVICE_TOKEN, gateway=workers.address,
        gateway_token=TOKEN,
    )  # fmt: skip
    service = Service(bucket, settings)
    try:
        options = ["--width", "16", "--k", "2", "--rows", "640", "--batch-rows", "64", "--name", "mine", "--encode"]
        store = str(tmp_path / "store")
        done = actstore_process(
            "train-sae", "--store", store, "planted", SITE, *options, "--json", address=service.address
        )
    finally:
        service.stop()
    assert done.returncode == 0, done.stderr
    *_, trained, encoded = map(json.loads, done.stdout.splitlines())
    assert [(one["name"], one["run"], one["width"]) for one in trained["trained"]] == [("mine", "planted", 16)]
    assert encoded == {"encoded": "planted"}
    assert (asked(workers).rows_of, list(asked(workers).saes)) == ("planted", ["mine"])
    with connect(tmp_path / "store") as lab:
        assert [row["name"] for row in lab.saes().to_dict()["rows"]] == ["mine"]


def test_training_needs_a_store_and_its_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ACTSTORE_STORE", raising=False)
    with pytest.raises(BadRequest, match="no store is named"):
        _training.train_sae(["planted", SITE, "--width", "16"])
    with pytest.raises(MissingLibrary, match="sae_lens"):
        _training.check_installed(lambda name: None if name == "sae_lens" else name)
    (tmp_path / ".actstore").mkdir()
    stack = {"address": "127.0.0.1:9", "token": "secret", "store": str(tmp_path / "nothing")}
    (tmp_path / ".actstore" / "stack.json").write_text(json.dumps(stack))
    done = actstore_process("train-sae", "planted", SITE, "--width", "16", address="127.0.0.1:9")
    assert done.returncode == 2
    assert "nothing" in done.stderr


def test_help_is_the_trainer_s(tmp_path: Path) -> None:
    done = actstore_process("train-sae", "--help", address="127.0.0.1:9")
    assert done.returncode == 0
    for word in ("--architecture", "--l1", "--encode", "grid"):
        assert word in done.stdout
