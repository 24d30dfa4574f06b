"""Trainings side by side on a Ray cluster of their own."""

from pathlib import Path

import pytest

from actstore_storage.bucket.opening import open_bucket
from actstore_storage.format.keys import training_key
from actstore_storage.registry.saes import list_saes
from actstore_worker.training.recipe import Training
from tests.planted_rows import SITE, write_planted_rows
from tests.service.observed.otlp import Receiver, receiving
from tests.worker.training.command import Command


@pytest.mark.stack
def test_a_sweep_runs_side_by_side_and_a_failing_one_ends_no_other(tmp_path: Path) -> None:
    bucket = open_bucket(str(tmp_path))
    run = write_planted_rows(bucket, d=32, features=64).record
    taken = Training(
        "sweep-w32-k3", run.run, run.specification_sha256, SITE, "topk", width=16, sparsity=3.0, rows=6400,
        batch_rows=64,
    )  # fmt: skip
    bucket.put(training_key(taken.name), taken.to_json())
    options = ["--width", "32", "64", "--k", "3", "--batch-rows", "64", "--rows", "6400", "--name", "sweep"]
    with receiving() as receiver:
        status, said, complained = Command(tmp_path, **receiver.variables).run(*options)
    assert status == 1, complained
    _check_spans(receiver)
    failed, done = said[-1]["trained"]
    assert (failed["name"], failed["failed"]["reason"]) == ("sweep-w32-k3", "SAE_EXISTS")
    assert (done["name"], done["l0"]) == ("sweep-w64-k3", 3.0)
    assert [sae.name for sae in list_saes(bucket)] == ["sweep-w64-k3"]
    assert {line["progress"]["name"] for line in said[:-1]} == {"sweep-w64-k3"}
    assert {line["progress"]["dead"] for line in said[:-1]} == {None}
    # Once for each warning, and not for each training.
    assert complained.count("actstore: warning: 100 steps of 64 rows are too few: ") == 3
    status, _, complained = Command(tmp_path).run("--width", "2", "--k", "3", "--batch-rows", "64")
    assert status == 2
    assert complained == "actstore: k cannot be 3.0\n  allowed: at most the width, 2\n"


def _check_spans(receiver: Receiver) -> None:
    """One of the command, and below it one of each training, in whichever process it ran; all are there at its end."""
    (command,) = (span for span in receiver.spans if span.name == "training/TrainSaes")
    trainings = [span for span in receiver.spans if span.name == "training/Train"]
    assert (command.parent, command.failed) == ("", True)
    assert sorted(span.failed for span in trainings) == [False, True]
    assert {(span.trace, span.parent) for span in trainings} == {(command.trace, command.own)}
    assert {span.attributes["actstore.request_id"] for span in receiver.spans} == {
        command.attributes["actstore.request_id"]
    }
