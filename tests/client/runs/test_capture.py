"""Captures through a real service to workers of the same contract, and the bar that people watch."""

import inspect
import io
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import pytest

from actstore import (
    BadRequest,
    Batching,
    Cancelled,
    Capture,
    CaptureEstimate,
    CaptureOptions,
    CaptureProgress,
    Dataset,
    DatasetFiles,
    Failure,
    Fault,
    Lab,
    NotFound,
    Positions,
    QueuePlace,
    Retries,
    RowFilter,
    SaeWarning,
    ShardFailure,
    Unavailable,
    connect,
)
from actstore._runs.progress import shards_in_words
from actstore._view.bar import Bar, duration
from actstore_api.records.capture import CaptureSpecification, DatasetReference, EstimateCapture
from actstore_api.records.sae import CheckSae
from actstore_api.records.terms import ModelReference
from actstore_service.server import Service
from tests.client.conftest import SERVICE_TOKEN
from tests.client.workers import stand_in as planted
from tests.client.workers.saes import CLAIMED_L0, L0, WARNINGS
from tests.client.workers.stand_in import StandInWorkers
from tests.stored_run import SAE
from tests.waiting import PATIENCE_SECONDS

FILES = DatasetFiles(20, 3, ("notes", ".DS_Store"))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_capture_ends_in_its_run(remote: Lab) -> None:
    run = remote.capture("planted-model", dataset="text", dense_sites=["resid_post"]).wait()
    assert (run.name, run.complete) == ("planted", True)


def test_an_sae_that_does_not_look_right_is_warned_about_once(remote: Lab, workers: StandInWorkers) -> None:
    with pytest.warns(SaeWarning) as warned:
        run = remote.capture("planted-model", dataset="text", run="float16").wait()
    assert run.name == "float16"
    [warning] = warned
    assert all(said in str(warning.message) for said in (SAE, "planted-model", *WARNINGS))
    assert warning.filename == __file__
    assert [request.run for request in workers.requests if isinstance(request, CheckSae)] == ["float16"]


def test_a_check_that_fails_is_a_warning_and_not_an_error(remote: Lab) -> None:
    with pytest.warns(SaeWarning, match="it was not checked: the SAE reads another width"):
        run = remote.capture("planted-model", dataset="text", run="bfloat16").wait()
    assert (run.name, run.complete) == ("bfloat16", True)


def test_the_check_of_saes_can_be_left_out(remote: Lab, workers: StandInWorkers) -> None:
    assert remote.capture("planted-model", dataset="text", run="float16").wait(check_saes=False).name == "float16"
    assert not any(isinstance(request, CheckSae) for request in workers.requests)


def test_a_check_says_what_was_found_beside_what_is_claimed(remote: Lab, workers: StandInWorkers) -> None:
    found = remote.run("planted").features(SAE).check(100)
    assert workers.requests[-1] == CheckSae(run="planted", sae=SAE, tokens=100)
    assert found.numbers == {"tokens": 100.0, "l0": L0}
    assert "looks right for planted-model" in repr(found)
    assert found.to_dict()["rows"][1] == {"quantity": "l0", "value": L0, "claimed": CLAIMED_L0}
    with pytest.warns(SaeWarning, match="zeros would do better"):
        wrong = remote.run("float16").features(SAE).check()
    assert wrong.warnings == WARNINGS
    assert "DOES NOT LOOK RIGHT" in repr(wrong)
    assert remote.run("float16").features(SAE).check(warn=False).warnings == WARNINGS


def test_the_request_is_what_was_asked(remote: Lab, workers: StandInWorkers) -> None:
    remote.capture(
        "planted-model",
        dataset=Dataset("text", text_field="body"),
        dense_sites=["resid_post"],
        norm_sites=["resid_post", "mlp_out.1"],
        saes=["planted-sae"],
        revision="step-9",
        context_length=64,
        max_tokens=1000,
        dtype="bfloat16",
        run="mine",
        prepend_bos=True,
        batching=Batching(sequences_per_shard=8, sequences_per_batch=4),
    )
    assert workers.requests[-1].specification == CaptureSpecification(
        run="mine",
        model=ModelReference("planted-model", "step-9"),
        dataset=DatasetReference("text", text_field="body", max_tokens=1000),
        context_length=64,
        prepend_bos=True,
        dense_sites=("resid_post",),
        norm_sites=("resid_post", "mlp_out.1"),
        saes=("planted-sae",),
        dtype="bfloat16",
        sequences_per_shard=8,
        sequences_per_batch=4,
    )


POSITIONS = {
    "last": Positions.last(),
    "every": Positions.every(4),
    "random": Positions.random(0.25, seed=7),
    "active": Positions.active("planted-sae", 3),
}


@pytest.mark.parametrize("kind", POSITIONS)
def test_what_is_stored_and_of_which_rows(kind: str, remote: Lab, workers: StandInWorkers) -> None:
    """The workers read from the message what the caller said."""
    filters = [("language", "==", "en"), ("score", "in", (1, 2.5)), ("kept", "!=", True)]
    dataset = Dataset("text", tokens_field="ids", source_field="url", row_filters=filters, max_documents=10)
    remote.capture(
        "planted-model", dataset=dataset, dense_sites=["z.0.2"], storage_dtype="float16", widen_on_overflow=True,
        batching=Batching(packing=True), positions=POSITIONS[kind], sink_ratio=20.0,
    )  # fmt: skip
    sent = workers.requests[-1].specification
    assert sent.positions == POSITIONS[kind]
    rows = [RowFilter("language", "==", ("en",)), RowFilter("score", "in", (1, 2.5)), RowFilter("kept", "!=", (True,))]
    assert sent.dataset == DatasetReference(
        "text", tokens_field="ids", source_field="url", row_filters=tuple(rows), max_documents=10
    )
    assert (sent.storage_dtype, sent.widen_on_overflow, sent.packing) == ("float16", True, True)
    assert sent.sink_ratio == 20.0


def test_an_estimate_stores_nothing(remote: Lab, workers: StandInWorkers) -> None:
    estimate = remote.estimate_capture("planted-model", dataset="text", dense_sites=["resid_post"], max_tokens=100)
    assert isinstance(workers.requests[-1], EstimateCapture)
    assert workers.requests[-1].specification.dataset.max_tokens == 100
    assert estimate == CaptureEstimate(3, 4, 100, 2, {"tokens": 500, "resid_post.0": 4000}, 4500, 12.0, 2, FILES)
    own = "2 documents already begin with a BOS token"
    left_out = "20 files were read; 3 were not (notes, .DS_Store, ...)"
    for word in ("100 tokens", "resid_post.0", "4,500 bytes", "12 s", own, left_out):
        assert word in repr(estimate)
    assert "not read" not in repr(replace(estimate, dataset_files=DatasetFiles(20)))


BAD: dict[str, dict[str, object]] = {
    "positions": {"positions": "last"},
    "positions.stride": {"positions": Positions.every(-1)},
    "positions.seed": {"positions": Positions.random(0.5, seed=2**32)},
    "row_filters": {"dataset": Dataset("text", row_filters=[("a", "like", "b")])},  # type: ignore[list-item]
    "max_documents": {"dataset": Dataset("text", max_documents=-1)},
    "max_tokens": {"max_tokens": -1},
    "sink_ratio": {"sink_ratio": "large"},
    "norm_sites": {"norm_sites": ()},
    "dtype": {"dtype": ""},
    "storage_dtype": {"storage_dtype": "float64"},
    "widen_on_overflow": {"widen_on_overflow": "no"},
    "batching": {"batching": {"packing": True}},
    "packing": {"batching": Batching(packing="no")},  # type: ignore[arg-type]
    "dataset": {"dataset": 3},
}


@pytest.mark.parametrize("field", BAD)
def test_what_the_wire_could_not_carry_is_refused_here(field: str, remote: Lab) -> None:
    with pytest.raises(BadRequest) as refused:
        remote.capture("planted-model", **{"dataset": "text", **BAD[field]})
    assert refused.value.field == field


def test_a_sink_ratio_may_be_any_number_from_0_on(remote: Lab) -> None:
    for wrong in ("x", -1, float("nan")):
        with pytest.raises(BadRequest) as refused:
            remote.capture("planted-model", dataset="text", sink_ratio=wrong)  # type: ignore[arg-type]
        assert refused.value.allowed == "0 or more"


def test_options_of_an_estimate_are_those_of_a_capture() -> None:
    """With the same types; `Lab.capture` says what each means, in its signature and its docstring."""
    parameters = inspect.signature(Lab.capture, eval_str=True).parameters
    options = get_type_hints(CaptureOptions)
    named = {name: parameter.annotation for name, parameter in parameters.items() if name in options}
    assert named == options
    assert [name for name in parameters if name not in options] == ["self", "model", "dataset", "revision", "run"]
    assert all(f"            {name}: " in inspect.getsource(Lab.capture) for name in list(parameters)[1:])


def test_what_is_not_given_is_the_same_in_an_estimate(remote: Lab, workers: StandInWorkers) -> None:
    remote.capture("planted-model", dataset="text")
    remote.estimate_capture("planted-model", dataset="text")
    assert workers.requests[-1].specification == workers.requests[-2].specification


@pytest.mark.parametrize("option", ["site", "rows_of", "sites", "packing"])
def test_an_option_that_does_not_exist_is_refused_though_the_record_may_have_it(option: str, remote: Lab) -> None:
    with pytest.raises(TypeError, match=f"no option '{option}'"):
        remote.estimate_capture("planted-model", dataset="text", **{option: "x"})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=option):
        remote.capture("planted-model", dataset="text", **{option: "x"})  # type: ignore[arg-type]


@pytest.mark.parametrize(("model", "dataset", "field"), [("", "text", "model"), ("planted-model", "", "dataset")])
def test_a_model_and_a_dataset_have_names(model: str, dataset: str, field: str, remote: Lab) -> None:
    with pytest.raises(BadRequest, match=f"{field} is required") as refused:
        remote.capture(model, dataset=dataset)
    assert (refused.value.field, refused.value.value, refused.value.allowed) == (field, "", "a name")


def test_what_is_not_as_it_should_be_is_told_behind_the_shards() -> None:
    away = Failure("STORE_UNREACHABLE", "the store is away")
    lost = tuple(ShardFailure(shard, away) for shard in (2, 3))
    paused = CaptureProgress("r", "paused", 1, 4, failure=away, failed_shards=lost, dataset_files=FILES)
    assert shards_in_words(paused) == "1/4 shards, 2 failed, paused: the store is away, 3 files not read"
    assert shards_in_words(replace(paused, failure=None, failed_shards=())) == "1/4 shards, paused, 3 files not read"
    assert shards_in_words(CaptureProgress("r", "running", 3, 4)) == "3/4 shards"
    assert shards_in_words(CaptureProgress("r", "running")) == "running"


def test_a_capture_that_waits_is_told_by_its_place() -> None:
    waiting = CaptureProgress("r", "running", 0, 4, 0, 1000, queue=QueuePlace(3, 2, 95.0))
    assert shards_in_words(waiting) == "3. in the queue, 2 of yours before it, starts in about 1:35"
    assert shards_in_words(replace(waiting, queue=QueuePlace(1, 0))) == "1. in the queue"
    terminal = Terminal()
    Bar(terminal, "capture r").draw(0, 1000, shards_in_words(waiting), "tokens")
    assert "3. in the queue, 2 of yours before it, starts in about 1:35" in terminal.getvalue()


def test_the_place_in_the_queue_comes_with_the_progress(remote: Lab) -> None:
    first, *others = remote.attach(planted.WAITS).progress()
    assert first.queue == QueuePlace(2, 1, 30.0)
    assert {each.queue for each in others} == {None}


def test_captures_that_run_or_wait_are_listed(remote: Lab, store: Path) -> None:
    incomplete = [row["name"] for row in remote.runs().to_dict()["rows"] if not row["complete"]]
    rows = remote.captures().to_dict()["rows"]
    assert [row["run"] for row in rows] == incomplete
    [waiting] = [row for row in rows if row["run"] == planted.WAITS]
    assert (waiting["state"], waiting["position"], waiting["captures_ahead"]) == ("queued", 2, 1)
    assert (waiting["expected_start_seconds"], waiting["shards_total"]) == (30.0, planted.SHARDS)
    assert all(row["position"] is None and row["state"] == "running" for row in rows if row is not waiting)
    with connect(str(store)) as lab, pytest.raises(BadRequest, match="bucket without a service"):
        lab.captures()


def test_what_is_not_said_is_absent_from_the_request(remote: Lab, workers: StandInWorkers) -> None:
    remote.capture("planted-model", dataset="text")
    sent = workers.requests[-1].specification
    assert sent == CaptureSpecification(
        model=ModelReference("planted-model"), dataset=DatasetReference("text"), dtype="float32"
    )


def test_progress_comes_in_plain_records(remote: Lab) -> None:
    news = list(remote.attach("planted").progress())
    assert [each.state for each in news] == [*["running"] * 4, "complete"]
    assert news[-1] == CaptureProgress("planted", "complete", 4, 4, 1000, 1000, 4.0)
    assert {each.dataset_files for each in remote.attach(planted.MIXED).progress()} == {FILES}


def test_a_failed_capture_raises_its_own_error(remote: Lab) -> None:
    with pytest.raises(BadRequest, match="768 values") as caught:
        remote.attach("fails").wait()
    assert (caught.value.reason, caught.value.field, caught.value.allowed) == ("SAE_MISMATCH", "saes", "8")


def test_a_refused_capture_never_starts(remote: Lab) -> None:
    with pytest.raises(BadRequest) as caught:
        remote.capture("planted-model", dataset="text", saes=["bad-sae"])
    assert caught.value.reason == "SAE_MISMATCH"


def test_a_cancelled_capture_is_no_run(remote: Lab) -> None:
    with pytest.raises(Cancelled):
        remote.attach("cancelled").wait()


def test_cancelling_ends_a_wait(remote: Lab) -> None:
    capture = remote.attach("slow")
    waited: list[BaseException] = []

    def wait() -> None:
        try:
            capture.wait()
        except Cancelled as error:
            waited.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.2)
    assert capture.cancel().state == "cancelled"
    waiting.join(PATIENCE_SECONDS)
    assert len(waited) == 1


def test_cancelling_what_is_not_captured(remote: Lab) -> None:
    with pytest.raises(NotFound) as caught:
        remote.attach("nobody").cancel()
    assert caught.value.reason == "CAPTURE_NOT_FOUND"


def test_a_watch_that_breaks_off_is_taken_up_again(service: Service, workers: StandInWorkers) -> None:
    retries = Retries(watch_pause_seconds=0.01)
    with connect(service.address, token=SERVICE_TOKEN, retries=retries) as lab:
        states = [news.state for news in lab.attach("breaks").progress()]
    assert states[-1] == "complete"
    assert states.count("running") == 2 * planted.SHARDS


def test_a_watch_that_breaks_off_is_given_up_where_that_was_wanted(service: Service, workers: StandInWorkers) -> None:
    with connect(service.address, token=SERVICE_TOKEN, retries=Retries(watch_attempts=0)) as lab:
        progress = lab.attach("breaks").progress()
        with pytest.raises(Unavailable):
            list(progress)


def test_a_watch_without_an_end_is_a_fault(remote: Lab) -> None:
    with pytest.raises(Fault, match="before its end"):
        remote.attach("unfinished").wait()


def test_ctrl_c_leaves_the_capture_running_and_says_how_to_stop_it(
    remote: Lab, workers: StandInWorkers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Bar, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        remote.attach("slow").wait()
    assert "`actstore cancel slow`" in capsys.readouterr().err
    assert not workers.cancelled.is_set()


def test_the_bar_says_shards_tokens_pace_and_time_left() -> None:
    terminal, now = Terminal(), iter([0.0, 2.0])
    bar = Bar(terminal, "capture r", clock=lambda: next(now))
    bar.draw(0, 1000, "0/4 shards", "tokens")
    bar.draw(250, 1000, "1/4 shards", "tokens")
    bar.close()
    last = terminal.getvalue().split("\r")[-1]
    assert (
        last
        == "capture r ██████░░░░░░░░░░░░░░░░░░  25% · 1/4 shards · 250/1,000 tokens · 125 tokens/s · 0:06 left\x1b[K\n"
    )


def test_the_bar_knows_no_totals_at_first() -> None:
    terminal = Terminal()
    Bar(terminal, "capture r").draw(0, 0, "running", "tokens")
    assert "running" in terminal.getvalue()


def test_the_bar_is_quiet_away_from_a_terminal(remote: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    remote.attach("planted").wait()
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0:00"), (61, "1:01"), (3725, "1:02:05")])
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_capture_prints_what_can_be_done_with_it(remote: Lab) -> None:
    assert "run planted" in repr(Capture("planted", remote._backend))
    assert planted.SHARDS == 4
