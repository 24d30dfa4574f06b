"""The workers as their callers meet them: one real process, real Ray, real sockets, a real bucket."""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pytest
import torch

from actstore_api.v1 import capture_pb2, common_pb2, model_pb2, patching_pb2, sae_pb2
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.features.segments import listed_segments
from actstore_storage.runs.opening import open_run
from actstore_storage.runs.registry import list_models, token_texts
from actstore_storage.runs.snapshot import Snapshot
from actstore_storage.upkeep.fsck import check_runs
from actstore_worker.training.recipe import Training
from actstore_worker.training.train import train
from tests.random_models import WORDS, save_model
from tests.small_models import save_sae
from tests.storage.feature_twins import assert_every_answer, read_back
from tests.waiting import wait_until
from tests.worker.cluster.topology_caller import (
    CALL_SECONDS,
    TRIES,
    Caller,
    check_tokens,
    cpu_seconds,
    failure,
    large_sweep,
    midway,
    pair_of,
    prompt,
    specification,
    start_once_available,
    swept_cells,
)
from tests.worker.models.poisoned_models import POISONS, assert_refused_by_every_door
from tests.worker_process import WorkerProcess, running_workers

pytestmark = pytest.mark.stack

DOCUMENTS = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    for name in ("store", "models", "data"):
        (folder / name).mkdir()
    save_model(folder / "models" / "tiny", "neox")
    save_sae(folder / "models" / "small-sae", "topk", d_in=24, d_sae=32)
    chosen = random.Random(0)
    lines = (json.dumps({"text": " ".join(chosen.choices(WORDS, k=chosen.randint(1, 70)))}) for _ in range(DOCUMENTS))
    (folder / "data" / "words.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def workers(folder: Path) -> Iterator[WorkerProcess]:
    with running_workers(
        folder / "store",
        model_folder=folder / "models",
        dataset_folder=folder / "data",
        log=folder / "workers.log",
        environment={"ACTSTORE_CAPTURE_WORKERS": "2", "ACTSTORE_SAE_CACHE": str(folder / "saes")},
    ) as process:
        yield process


@pytest.fixture(scope="module")
def channel(workers: WorkerProcess) -> Iterator[grpc.Channel]:
    with workers.channel() as channel:
        yield channel


@pytest.fixture(scope="module")
def caller(workers: WorkerProcess, channel: grpc.Channel) -> Caller:
    return Caller(workers, channel)


def snapshot(folder: Path, run: str) -> Snapshot:
    return open_run(open_bucket(str(folder / "store")), run)


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
    (model,) = list_models(bucket)
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


def test_a_killed_worker_costs_nothing_but_time(caller: Caller, workers: WorkerProcess, folder: Path) -> None:
    """Kill -9 of one capture worker after the first commits; Ray restarts it and its shard is done again."""
    run = midway(caller, "killed").run
    os.kill(workers.processes("ray::_CaptureActor")[0], signal.SIGKILL)
    *_, last = caller.watch(run)
    assert last.state == capture_pb2.CAPTURE_STATE_COMPLETE
    check_tokens(snapshot(folder, run))


def test_a_capture_submitted_again_after_its_coordinator_was_killed_goes_on(
    caller: Caller, workers: WorkerProcess, folder: Path
) -> None:
    """Until Ray has restarted it, callers hear that the workers are unavailable; then the same request goes on."""
    for attempt in range(TRIES):
        wanted = midway(caller, f"orphan-{attempt}")
        (victim,) = workers.processes("ray::_CoordinatorActor")
        os.kill(victim, signal.SIGKILL)
        run = start_once_available(caller, wanted)
        updates = list(caller.watch(run))
        assert updates[0].shards_committed >= 2
        assert updates[-1].state == capture_pb2.CAPTURE_STATE_COMPLETE
        check_tokens(snapshot(folder, run))
        if updates[0].shards_committed < updates[0].shards_total:
            return
    pytest.fail(f"each of {TRIES} captures was over before it was submitted again")


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


def test_a_sweep_streams_progress_cells_and_one_result(caller: Caller) -> None:
    *updates, last = caller.sweep()
    result, cells = last.result, swept_cells(updates)
    done = [update.progress.cells_done for update in updates if update.HasField("progress")]
    assert done[-1] == cells.num_rows == 2 * 3 * 9 * 6
    assert {"pair", "direction", "site", "layer", "position", "head", "token", "kl", "normalized"} < {
        *cells.column_names
    }
    assert result.audit.kernel == "resumed"
    assert 0 < result.audit.largest_error <= result.audit.tolerance
    whole = [
        row["normalized"]
        for row in cells.to_pylist()
        if (row["site"], row["layer"], row["position"]) == ("resid_pre", 0, 7)
    ]
    assert whole == pytest.approx([1, 1], abs=1e-4)
    tokens = pa.ipc.open_stream(result.tokens.arrow_ipc_stream).read_all()
    assert tokens["clean"].to_pylist() == ["<bos>", *["When", "Mary", "and", "John", "went", ",", "Mary", "gave"]]
    assert result.clean_logit_difference != result.corrupt_logit_difference
    assert (result.provenance.model, result.provenance.dtype, result.provenance.run) == ("tiny", "float32", "")


def test_a_sweep_takes_an_sae_of_the_catalogue_and_rows_of_a_stored_run(caller: Caller) -> None:
    run = caller.start(specification("rows", dense_sites=["resid_post.1"]))
    *_, last = caller.watch(run)
    assert last.state == capture_pb2.CAPTURE_STATE_COMPLETE
    fields = {"sae": "small-sae", "source": patching_pb2.PATCH_SOURCE_RESAMPLE}
    fields["stored"] = patching_pb2.StoredSource(run=run)
    *updates, end = caller.sweep(**fields, positions=patching_pb2.PATCH_POSITIONS_LAST)
    names = swept_cells(updates)["name"].to_pylist()
    assert [name for name in names if name is not None] == ["together", "error"] * 2
    assert dict(end.result.provenance.sae_sha256).keys() == {"small-sae"}
    taken = end.result.stored_rows
    assert (taken.run, taken.used, taken.stored) == (run, 9, last.tokens_committed)
    with pytest.raises(grpc.RpcError) as refusal:
        caller.sweep(sae="no-sae")
    assert failure(refusal.value).reason == "SAE_NOT_FOUND"


def test_a_small_sweep_does_not_wait_for_a_large_one(caller: Caller) -> None:
    large = caller.sweeps.RunSweep(large_sweep(), **caller.with_token)
    next(large)
    small = {"sites": ["z"], "layers": [1], "heads": [0], "directions": [patching_pb2.PATCH_DIRECTION_NOISE]}
    *updates, last = caller.sweep(**small, fresh=True)
    assert swept_cells(updates).num_rows == 9
    assert not last.result.audit.cached
    large.cancel()


def test_a_sweep_that_was_left_frees_its_replica(workers: WorkerProcess, caller: Caller) -> None:
    """Within a second's work, of the many that the sweep would take; told by the processor's time, which no other
    process takes part in.
    """
    stream = caller.sweeps.RunSweep(large_sweep(), **caller.with_token)
    next(stream)
    pids = workers.processes("ray::ServeReplica:actstore:models")
    begun = cpu_seconds(pids)
    wait_until(lambda: cpu_seconds(pids) - begun > 0.5, "work on the sweep")
    stream.cancel()
    left = cpu_seconds(pids)

    def idle() -> bool:
        before = cpu_seconds(pids)
        time.sleep(0.5)
        return cpu_seconds(pids) - before < 0.1

    wait_until(idle, "rest")
    assert cpu_seconds(pids) - left < 1.0


def test_the_answer_is_kept_and_an_estimate_says_so(caller: Caller) -> None:
    request = {"sites": ["attn_out"], "layers": [2]}
    before = caller.estimate(**request)
    *updates, computed = caller.sweep(**request)
    *kept_updates, kept = caller.sweep(**request)
    assert swept_cells(kept_updates).equals(swept_cells(updates))
    assert (computed.result.audit.cached, kept.result.audit.cached) == (False, True)
    assert before.token_layers == computed.result.audit.token_layers
    assert (before.cells, before.cached) == (swept_cells(updates).num_rows, False)
    assert (caller.estimate(**request).cached, caller.estimate(**request).seconds) == (True, 0)


@pytest.mark.parametrize(
    ("change", "code", "reason", "field"),
    [
        (
            {"pairs": [pair_of("Mary gave", "When")]},
            grpc.StatusCode.INVALID_ARGUMENT,
            "PROMPT_LENGTHS_DIFFER",
            "corrupt",
        ),
        (
            {"pairs": [pair_of("Mary gave", "John gave", clean_answer="a b")]},
            grpc.StatusCode.INVALID_ARGUMENT,
            "ANSWER_NOT_ONE_TOKEN",
            "clean_answer",
        ),
        ({"model": common_pb2.ModelReference(name="nobody")}, grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "model"),
        ({"model": common_pb2.ModelReference()}, grpc.StatusCode.INVALID_ARGUMENT, "ARGUMENT_INVALID", "model.name"),
        ({"sites": ["resid_end"]}, grpc.StatusCode.INVALID_ARGUMENT, "SITE_UNKNOWN", "sites"),
        ({"directions": [7]}, grpc.StatusCode.INVALID_ARGUMENT, "ARGUMENT_INVALID", "directions"),
    ],
)
def test_a_refused_sweep_says_why_and_sends_nothing_else(
    caller: Caller, change: dict[str, object], code: grpc.StatusCode, reason: str, field: str
) -> None:
    request = {"model": common_pb2.ModelReference(name="tiny"), "pairs": [pair_of("Mary gave", "John gave")]}
    stream = caller.sweeps.RunSweep(patching_pb2.RunSweepRequest(**request | change), **caller.with_token)
    with pytest.raises(grpc.RpcError) as refusal:
        next(stream)
    assert refusal.value.code() == code
    found = failure(refusal.value)
    assert (found.reason, found.details["field"]) == (reason, field)


@pytest.mark.parametrize(
    ("wanted", "reason", "field"),
    [
        (capture_pb2.CaptureSpecification(), "ARGUMENT_INVALID", "model"),
        (specification("bad", model="nobody"), "MODEL_NOT_FOUND", "model"),
        (specification("bad", dataset="nothing"), "DATASET_NOT_FOUND", "dataset"),
        (specification("bad", dense_sites=["resid_post.9"]), "SITE_UNKNOWN", "site"),
        (specification("bad", saes=["nobody"]), "SAE_NOT_FOUND", "sae"),
        (specification("bad", dtype=99), "ARGUMENT_INVALID", "specification.dtype"),
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


@pytest.mark.parametrize("poison", POISONS)
def test_a_poisoned_model_is_refused_by_every_door_and_begins_nothing(
    caller: Caller, folder: Path, poison: str
) -> None:
    assert_refused_by_every_door(caller, folder, poison)


def test_watching_what_is_not_captured_is_refused(caller: Caller) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        next(caller.watch("nobody"))
    assert refusal.value.code() == grpc.StatusCode.NOT_FOUND
    assert failure(refusal.value).reason == "CAPTURE_NOT_FOUND"


@pytest.mark.parametrize("token", ["", "wrong", "gateway-toke", "gateway-token "])
def test_a_wrong_token_opens_nothing(workers: WorkerProcess, caller: Caller, token: str) -> None:
    wrong = {"metadata": workers.metadata(token), "timeout": CALL_SECONDS}
    calls = [
        lambda: caller.captures.StartCapture(capture_pb2.StartCaptureRequest(), **wrong),
        lambda: caller.captures.CancelCapture(capture_pb2.CancelCaptureRequest(), **wrong),
        lambda: caller.captures.GetCaptureTotals(capture_pb2.GetCaptureTotalsRequest(), **wrong),
        lambda: next(caller.captures.WatchCapture(capture_pb2.WatchCaptureRequest(), **wrong)),
        lambda: next(caller.sweeps.RunSweep(patching_pb2.RunSweepRequest(), **wrong)),
        lambda: caller.saes.CheckSae(sae_pb2.CheckSaeRequest(), **wrong),
        lambda: caller.models.SteerText(model_pb2.SteerTextRequest(), **wrong),
    ]
    for call in calls:
        with pytest.raises(grpc.RpcError) as refusal:
            call()
        assert refusal.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert failure(refusal.value).reason == "UNAUTHENTICATED"


TINY = common_pb2.ModelReference(name="tiny")
TINY_SAE: dict[str, Any] = {"model": TINY, "sae": "small-sae"}
PROMPT = "Mary gave a book"


def table(message: common_pb2.Table) -> pa.Table:
    return pa.ipc.open_stream(message.arrow_ipc_stream).read_all()


def test_questions_to_an_sae_are_answered_by_a_replica(caller: Caller) -> None:
    """Each verb once, and what one answer says of another's; the numbers have tests of their own."""
    ask, saes = caller.with_token, caller.saes
    encoded = saes.EncodeText(sae_pb2.EncodeTextRequest(**TINY_SAE, text=prompt(PROMPT)), **ask)
    tokens, found = table(encoded.tokens).to_pandas(), table(encoded.activations).to_pandas()
    assert tokens.text.tolist() == ["<bos>", *PROMPT.split()]
    strongest = found[found.position > 0].sort_values("activation").iloc[-1]
    feature, position = int(strongest.feature), int(strongest.position)
    ablated = saes.AblateText(
        sae_pb2.AblateTextRequest(**TINY_SAE, feature=feature, text=prompt(PROMPT), pairs=True), **ask
    )
    assert (ablated.position, ablated.activation) == (position, pytest.approx(strongest.activation))
    assert table(ablated.effects).num_rows == (position + 1) * (position + 2) // 2
    direction = saes.AblateDirection(
        sae_pb2.AblateDirectionRequest(**TINY_SAE, feature=feature, text=prompt(PROMPT)), **ask
    )
    assert table(direction.tokens)["next_text"].to_pylist() == PROMPT.split()
    lens = saes.GetLogitLens(sae_pb2.GetLogitLensRequest(**TINY_SAE, features=[feature], k=3), **ask)
    assert table(lens.tokens)["end"].to_pylist() == ["top"] * 3 + ["bottom"] * 3
    near = saes.FindNeighbors(sae_pb2.FindNeighborsRequest(sae="small-sae", feature=feature), **ask)
    assert table(near.features).num_rows == 20
    for answer in (encoded, ablated, direction, lens):
        assert (answer.provenance.model, list(answer.provenance.sae_sha256)) == ("tiny", ["small-sae"])
    assert near.provenance.sae_sha256 == encoded.provenance.sae_sha256


def test_an_sae_is_checked_on_a_runs_own_text_and_model(caller: Caller, folder: Path) -> None:
    run = caller.start(specification("whole", dense_sites=["resid_post.1"], sequences_per_shard=100))
    list(caller.watch(run))
    request = sae_pb2.CheckSaeRequest(run=run, sae="small-sae", tokens=500)
    answer = caller.saes.CheckSae(request, **caller.with_token)
    quantities = {row["quantity"]: row["value"] for row in table(answer.quantities).to_pylist()}
    assert 300 < quantities["tokens"] < 700
    assert quantities["fvu"] > 1  # it is random
    assert any("explains nothing" in warning for warning in answer.warnings)
    assert any("trained on model 'small'" in warning for warning in answer.warnings)
    assert (answer.provenance.run, answer.provenance.snapshot) == ("whole", snapshot(folder, run).name)


def test_questions_to_a_model_are_answered_by_a_replica(caller: Caller) -> None:
    """Each verb once; the numbers have tests of their own."""
    ask, models, tiny = caller.with_token, caller.models, TINY
    seen = models.GetAttention(model_pb2.GetAttentionRequest(model=tiny, text=prompt(PROMPT), patterns=True), **ask)
    assert table(seen.tokens)["text"].to_pylist() == ["<bos>", *PROMPT.split()]
    assert table(seen.patterns).num_rows == 15 * table(seen.heads).num_rows
    assert seen.provenance.attention_implementation == "eager"
    alone = models.GetAttention(model_pb2.GetAttentionRequest(model=tiny, text=prompt(PROMPT)), **ask)
    assert not alone.HasField("patterns")
    scores = models.GetInductionScores(model_pb2.GetInductionScoresRequest(model=tiny, tokens=5), **ask)
    assert (scores.tokens, table(scores.heads).num_rows) == (5, table(seen.heads).num_rows)
    lens = models.GetTextLens(model_pb2.GetTextLensRequest(model=tiny, text=prompt(PROMPT), k=2), **ask)
    layers = len(set(table(seen.heads)["layer"].to_pylist()))
    assert (table(lens.tops).num_rows, table(lens.positions).num_rows) == (10 * layers, 5 * layers)
    along = common_pb2.SaeFeature(sae="small-sae", feature=3)
    steered = models.SteerText(
        model_pb2.SteerTextRequest(model=tiny, prompt=prompt(PROMPT), feature=along, strength=0.0, max_new_tokens=3),
        **ask,
    )
    assert steered.steered_text == steered.unsteered_text
    assert (steered.site, list(steered.provenance.sae_sha256)) == ("resid_post.1", ["small-sae"])
    ablated = models.AblateSites(
        model_pb2.AblateSitesRequest(model=tiny, texts=[prompt(PROMPT)], sites=["mlp_out"]), **ask
    )
    assert (ablated.tokens, table(ablated.effects).num_rows) == (3, layers)


def test_a_replica_reads_a_model_again_whose_files_were_written_again(caller: Caller, folder: Path) -> None:
    """For questions and sweeps, under the one name that Serve has it by."""
    named = common_pb2.ModelReference(name="rewritten")
    lens, seen = model_pb2.GetTextLensRequest(model=named, text=prompt(PROMPT)), []
    for kind in ("neox", "gpt2"):
        save_model(folder / "models" / "rewritten", kind)
        answer = caller.models.GetTextLens(lens, **caller.with_token)
        *_, end = caller.sweep(model=named, sites=["resid_pre"])
        assert end.result.provenance.weights_sha256 == answer.provenance.weights_sha256
        seen.append((answer.provenance.weights_sha256, table(answer.tops)))
    (one, before), (other, after) = seen
    assert one != other
    assert not before.equals(after)


@pytest.mark.parametrize(
    ("verb", "request_", "reason", "field"),
    [
        ("GetAttention", model_pb2.GetAttentionRequest(text=prompt("a")), "ARGUMENT_INVALID", "model"),
        ("GetTextLens", model_pb2.GetTextLensRequest(model=TINY, text=prompt("a"), site="z"), "SITE_UNKNOWN", "site"),
        ("SteerText", model_pb2.SteerTextRequest(model=TINY, prompt=prompt("a")), "ARGUMENT_INVALID", "direction"),
        (
            "SteerText",
            model_pb2.SteerTextRequest(
                model=TINY, prompt=prompt("a"), site="resid_post.0", feature=common_pb2.SaeFeature(sae="small-sae")
            ),
            "ARGUMENT_INVALID",
            "site",
        ),
        (
            "SteerText",
            model_pb2.SteerTextRequest(model=TINY, prompt=prompt("a"), vector=common_pb2.Vector(elements=[1.0])),
            "ARGUMENT_INVALID",
            "site",
        ),
        (
            "AblateSites",
            model_pb2.AblateSitesRequest(model=TINY, texts=[prompt("a b")], ablation=9),
            "ARGUMENT_INVALID",
            "ablation",
        ),
    ],
)
def test_a_refused_question_to_a_model_says_why(
    caller: Caller, verb: str, request_: object, reason: str, field: str
) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        getattr(caller.models, verb)(request_, **caller.with_token)
    found = failure(refusal.value)
    assert (found.reason, found.details["field"]) == (reason, field)


@pytest.mark.parametrize(
    ("verb", "request_", "code", "reason", "field"),
    [
        (
            "EncodeText",
            sae_pb2.EncodeTextRequest(**TINY_SAE, text=prompt("a " * 32)),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "LIMIT_EXCEEDED",
            "text",
        ),
        (
            "EncodeText",
            sae_pb2.EncodeTextRequest(sae="small-sae", text=prompt("a")),
            grpc.StatusCode.INVALID_ARGUMENT,
            "ARGUMENT_INVALID",
            "model",
        ),
        (
            "AblateText",
            sae_pb2.AblateTextRequest(**TINY_SAE, feature=32, text=prompt("a b")),
            grpc.StatusCode.INVALID_ARGUMENT,
            "FEATURE_OUT_OF_RANGE",
            "feature",
        ),
        (
            "AblateText",
            sae_pb2.AblateTextRequest(**TINY_SAE, text=prompt("a b"), ablation=9),
            grpc.StatusCode.INVALID_ARGUMENT,
            "ARGUMENT_INVALID",
            "ablation",
        ),
        (
            "GetLogitLens",
            sae_pb2.GetLogitLensRequest(**TINY_SAE, features=[1], side=9),
            grpc.StatusCode.INVALID_ARGUMENT,
            "ARGUMENT_INVALID",
            "side",
        ),
        (
            "FindNeighbors",
            sae_pb2.FindNeighborsRequest(sae="small-sae"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "ARGUMENT_INVALID",
            "direction",
        ),
        (
            "FindNeighbors",
            sae_pb2.FindNeighborsRequest(sae="absent", feature=1),
            grpc.StatusCode.NOT_FOUND,
            "SAE_NOT_FOUND",
            "sae",
        ),
        (
            "CheckSae",
            sae_pb2.CheckSaeRequest(run="absent", sae="small-sae"),
            grpc.StatusCode.NOT_FOUND,
            "RUN_NOT_FOUND",
            "run",
        ),
    ],
)
def test_a_refused_question_says_why(
    caller: Caller, verb: str, request_: object, code: grpc.StatusCode, reason: str, field: str
) -> None:
    with pytest.raises(grpc.RpcError) as refusal:
        getattr(caller.saes, verb)(request_, **caller.with_token)
    assert refusal.value.code() == code
    found = failure(refusal.value)
    assert (found.reason, found.details["field"]) == (reason, field)


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


def test_nothing_is_written_into_the_home_directory(workers: WorkerProcess, folder: Path) -> None:
    """HOME of the process is the lab's folder."""
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
