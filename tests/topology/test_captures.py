"""Captures as callers of the gateway meet them: their progress, what they store, and what is refused."""

from pathlib import Path

import grpc
import pytest
import torch

from actstore_api.v1 import capture_pb2
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.features.segments import listed_segments
from actstore_storage.registry.models import list_models
from actstore_storage.registry.token_texts import token_texts
from actstore_storage.upkeep.fsck import check_runs
from actstore_worker.training.recipe import Training
from actstore_worker.training.train import train
from tests.storage.feature_twins import assert_every_answer, read_back
from tests.topology.caller import (
    TRIES,
    Caller,
    check_tokens,
    failure,
    snapshot,
    specification,
)
from tests.waiting import wait_until
from tests.worker_process import WorkerProcess

pytestmark = pytest.mark.stack


def test_a_capture_runs_to_its_end_and_is_watched(caller: Caller, folder: Path) -> None:
    run = caller.start(specification("whole", dense_sites=["resid_post.1"], sequences_per_shard=100))
    updates = list(caller.watch(run))
    assert run == "whole"
    last = updates[-1]
    assert last.state == capture_pb2.CAPTURE_STATE_COMPLETE
    committed = [update.shards_committed for update in updates]
    assert committed == sorted(committed)
    assert last.shards_committed == last.shards_total > 4
    assert last.tokens_committed == last.tokens_total
    assert last.elapsed_seconds > 0
    seen = snapshot(folder, run)
    check_tokens(seen)
    assert seen.record.tokens_total == last.tokens_total
    assert list(seen.record.specification.dense_sites) == ["resid_post.1"]


def test_answers_about_features_during_a_capture_and_once_it_is_merged(caller: Caller, folder: Path) -> None:
    """Each is its twin's on the answer's own snapshot; parts of the merged index are tasks of Ray."""
    asked = attempt = 0
    while not asked:  # a capture may be over before anybody looks
        assert attempt < TRIES
        wanted = specification(f"featured-{attempt}", saes=["small-sae"], sequences_per_shard=8)
        wanted.dataset.max_documents = 120
        run, attempt = caller.start(wanted), attempt + 1
        for _ in caller.watch(run):
            seen = snapshot(folder, run)
            if len(seen.commits) and not seen.complete:
                assert_every_answer(seen, read_back(seen, "small-sae"), (5,), "small-sae")
                asked += 1
    seen = snapshot(folder, run)
    assert seen.complete
    wait_until(lambda: listed_segments(seen.bucket, run, "small-sae"), "the merge of the index")
    assert listed_segments(seen.bucket, run, "small-sae") == [range(seen.record.shards_total)]
    assert_every_answer(seen, read_back(seen, "small-sae"), (5, 17), "small-sae")
    assert not check_runs(seen.bucket, run).findings


def test_the_model_and_its_tokens_are_registered(caller: Caller, folder: Path) -> None:
    caller.start(specification("whole", dense_sites=["resid_post.1"], sequences_per_shard=100))
    bucket = open_bucket(str(folder / "store"))
    [model] = [found for found in list_models(bucket) if found.name == "tiny"]
    assert (model.name, model.family, model.layer_count, model.head_count) == ("tiny", "gpt_neox", 3, 3)
    assert "Mary" in token_texts(bucket, model.tokenizer_sha256).alone


def test_a_run_is_encoded_with_an_sae_that_was_trained_on_it(caller: Caller, folder: Path) -> None:
    """Workers find it in the store by its name; its features are those that a capture with it has."""
    site, sizes = ["resid_post.1"], {"sequences_per_shard": 100}
    list(caller.watch(caller.start(specification("whole", dense_sites=site, **sizes))))
    bucket, digest = open_bucket(str(folder / "store")), snapshot(folder, "whole").record.specification_sha256
    training = Training("trained", "whole", digest, site[0], "topk", width=64, sparsity=4, rows=6400, batch_rows=64)
    outcome = train(bucket, training, torch.device("cpu"), lambda progress: None)
    over = capture_pb2.CaptureSpecification(run="over", rows_of="whole", saes=["trained"])
    for run in (over, specification("both", dense_sites=site, saes=["trained"], **sizes)):
        *_, last = caller.watch(caller.start(run))
        assert last.state == capture_pb2.CAPTURE_STATE_COMPLETE
    found = [snapshot(folder, name) for name in ("over", "both")]
    assert [one.sae("trained").sha256 for one in found] == [outcome.sha256] * 2
    hashes = [[commit.objects["index-trained"].sha256 for commit in one.commits] for one in found]
    assert hashes[0] == hashes[1]
    assert [path.name for path in (folder / "saes").iterdir()] == [outcome.sha256]


def test_the_same_specification_again_is_the_same_complete_run(caller: Caller, folder: Path) -> None:
    wanted = specification("again", sequences_per_shard=400)
    attempts = []
    for _ in range(2):
        updates = list(caller.watch(caller.start(wanted)))
        assert updates[-1].state == capture_pb2.CAPTURE_STATE_COMPLETE
        attempts.append(sorted(path.name for path in (folder / "store/runs/again/data").iterdir()))
    assert updates[0].shards_committed == updates[0].shards_total > 0  # there was nothing left to do
    assert attempts[0] == attempts[1]


def test_totals_count_what_was_committed(caller: Caller, folder: Path) -> None:
    def totals() -> capture_pb2.GetCaptureTotalsResponse:
        return caller.captures.GetCaptureTotals(capture_pb2.GetCaptureTotalsRequest(), **caller.with_token)

    before = totals()
    list(caller.watch(caller.start(specification("counted", sequences_per_shard=200))))
    after, seen = totals(), snapshot(folder, "counted")
    assert after.captures_running == 0
    assert after.captures_complete - before.captures_complete == 1
    assert after.shards_committed - before.shards_committed == len(seen.commits)
    assert after.tokens_committed - before.tokens_committed == seen.tokens_committed
    assert after.bytes_committed - before.bytes_committed == sum(
        item.bytes for commit in seen.commits for item in commit.objects.values()
    )


def test_a_cancelled_capture_stops_and_can_be_finished(caller: Caller, folder: Path) -> None:
    wanted = specification("stopped", dense_sites=["resid_post"], sequences_per_shard=100, sequences_per_batch=1)
    run = caller.start(wanted)
    answer = caller.captures.CancelCapture(capture_pb2.CancelCaptureRequest(run=run), **caller.with_token)
    assert answer.progress.state == capture_pb2.CAPTURE_STATE_CANCELLED
    assert [update.state for update in caller.watch(run)] == [capture_pb2.CAPTURE_STATE_CANCELLED]
    assert not snapshot(folder, run).complete
    with pytest.raises(grpc.RpcError) as refusal:
        caller.captures.CancelCapture(capture_pb2.CancelCaptureRequest(run=run), **caller.with_token)
    assert failure(refusal.value).reason == "CAPTURE_NOT_FOUND"
    *_, last = caller.watch(caller.start(wanted))
    assert last.state == capture_pb2.CAPTURE_STATE_COMPLETE
    check_tokens(snapshot(folder, run))


def test_a_watch_that_is_left_does_not_disturb_the_capture(
    caller: Caller, workers: WorkerProcess, folder: Path
) -> None:
    run = caller.start(specification("left", sequences_per_shard=50))
    request = capture_pb2.WatchCaptureRequest(run=run)
    stream = caller.captures.WatchCapture(request, **caller.with_token)
    next(stream)
    stream.cancel()
    *_, last = caller.watch(run)
    assert last.state == capture_pb2.CAPTURE_STATE_COMPLETE
    check_tokens(snapshot(folder, run))


@pytest.mark.parametrize(
    ("wanted", "reason", "field"),
    [
        (capture_pb2.CaptureSpecification(), "ARGUMENT_INVALID", "model"),
        (specification("bad", model="nobody"), "MODEL_NOT_FOUND", "model"),
        (specification("bad", dataset="nothing"), "DATASET_NOT_FOUND", "dataset"),
        (specification("bad", dense_sites=["resid_post.9"]), "SITE_UNKNOWN", "site"),
        (specification("bad", saes=["nobody"]), "SAE_NOT_FOUND", "sae"),
        (specification("bad", dtype=99), "ARGUMENT_INVALID", "dtype"),
        (specification("whole"), "RUN_EXISTS", "run"),
    ],
)
def test_errors_of_planning_are_answers_to_start(
    caller: Caller, wanted: capture_pb2.CaptureSpecification, reason: str, field: str
) -> None:
    caller.start(specification("whole", dense_sites=["resid_post.1"], sequences_per_shard=100))
    with pytest.raises(grpc.RpcError) as refusal:
        caller.start(wanted)
    found = failure(refusal.value)
    assert (found.reason, found.details["field"]) == (reason, field)


def test_watching_what_is_not_captured_is_refused(caller: Caller) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        next(caller.watch("nobody"))
    assert refusal.value.code() == grpc.StatusCode.NOT_FOUND
    assert failure(refusal.value).reason == "CAPTURE_NOT_FOUND"
