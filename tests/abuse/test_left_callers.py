"""Work ends with whoever asked for it: reading, counting, planning."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from actstore_api.records.activation import ReadActivations, ReadTokens
from actstore_api.records.feature import (
    FindFeatures,
    GetActiveFeatures,
    GetCofiringFeatures,
    ReadFeature,
    SampleExamples,
)
from actstore_api.records.norm import FitGrowth, GetNormProfile
from actstore_storage.answers import Store, answer, rows
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.bucket.watched import WatchedBucket
from actstore_storage.errors import ActstoreError, BadRequest
from actstore_storage.registry.token_texts import token_texts
from actstore_worker.capture.coordinator import Coordinator
from actstore_worker.capture.limits import CoordinatorLimits
from actstore_worker.capture.plan import PlanSettings, plan_capture
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.documents import DocumentQuery, documents
from actstore_worker.datasets.limits import DatasetLimits, Reading
from actstore_worker.datasets.places import DatasetPlaces
from actstore_worker.models.model import ModelDescription
from actstore_worker.models.prompts import tokenised
from tests.capture_requests import capture_request
from tests.made_models.random_models import save_model
from tests.stored_run import DENSE_SITE, SAE, write_stored_run
from tests.waiting import PATIENCE_SECONDS


class Leaving(WatchedBucket):
    """The caller of this bucket leaves at the request of this number."""

    def __init__(self, inner: Bucket, number: int) -> None:
        self.stop, self.left, self.asked = threading.Event(), number, 0
        super().__init__(inner, self.stop)

    def check(self) -> None:
        self.asked += 1
        if self.asked == self.left:
            self.stop.set()
        super().check()


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Bucket:
    found = open_bucket(str(tmp_path_factory.mktemp("store")))
    for number in range(8):
        write_stored_run(found, f"run{number}", revision=f"step{number}", scale=1.0 + number)
    return found


RUNS = tuple(f"run{number}" for number in range(8))
QUESTIONS: list[Any] = [
    GetNormProfile(RUNS),
    FitGrowth(RUNS, axis="checkpoint", resamples=10_000),
    GetNormProfile(RUNS[:1], quantiles=(0.5,), exact=True),
    FindFeatures("run0", SAE, with_token_r2=True),
    GetActiveFeatures("run0", SAE),
    GetCofiringFeatures("run0", SAE, 0),
    SampleExamples("run0", SAE, (0, 1, 2), k=5, tokens_before=2),
    ReadActivations("run0", (DENSE_SITE,)),
    ReadTokens("run0"),
    ReadFeature("run0", SAE, 0),
]
STREAMS = (ReadActivations, ReadTokens, ReadFeature)


def answered(store: Store, question: Any) -> None:
    if isinstance(question, STREAMS):
        list(rows(store, question)[1])
    else:
        answer(store, question)


@pytest.mark.parametrize(
    "question", QUESTIONS, ids=[f"{number} {type(question).__name__}" for number, question in enumerate(QUESTIONS)]
)
def test_an_answer_reads_nothing_more_once_its_caller_has_left(bucket: Bucket, question: Any) -> None:
    answered(Store(bucket), question)  # what is cached for all callers is not asked for again
    whole = Leaving(bucket, -1)
    answered(Store(whole), question)
    for number in (1, whole.asked // 2, whole.asked):
        leaving = Leaving(bucket, number)
        with pytest.raises(ActstoreError) as ended:
            answered(Store(leaving), question)
        assert ended.value.reason == "CANCELLED"
        # Those that other threads had already begun.
        assert leaving.asked <= number + 16


def test_one_caller_who_left_is_not_all_callers(bucket: Bucket) -> None:
    stop = threading.Event()
    left, store = Store(bucket).until(stop), Store(bucket)
    assert token_texts(left.bucket, "b" * 64) is token_texts(store.bucket, "b" * 64)
    stop.set()
    with pytest.raises(ActstoreError):
        left.snapshot("run0")
    assert store.snapshot("run0").record.run == "run0"


@pytest.mark.parametrize("runs", [257, 0])
def test_too_many_runs_are_refused_before_one_is_opened(bucket: Bucket, runs: int) -> None:
    watched = Leaving(bucket, -1)
    for question in (GetNormProfile(RUNS * 40), FitGrowth(RUNS)):
        with pytest.raises(BadRequest) as refused:
            answer(Store(watched), question)
        assert refused.value.details["field"] == "runs"
    assert watched.asked == 0


def test_a_dataset_is_read_no_further_once_nobody_waits(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(99)))
    (tmp_path / "blank.jsonl").write_text("\n" * 5000)
    (tmp_path / "array.json").write_text(json.dumps([{"text": f"row {number}"} for number in range(99)]))
    reading = Reading(DatasetLimits(), threading.Event())
    begun = documents(DatasetPlaces((tmp_path,)).find("array.json"), DocumentQuery(), reading)
    assert next(begun).content == "row 0"
    found = documents(DatasetPlaces((tmp_path,)).find("rows.jsonl"), DocumentQuery(), reading)
    assert next(found).content == "row 0"
    reading.stop.set()
    for left in (begun, found, documents(DatasetPlaces((tmp_path,)).find("blank.jsonl"), DocumentQuery(), reading)):
        with pytest.raises(ActstoreError) as ended:
            next(left)
        assert ended.value.reason == "CANCELLED"


class Watching(threading.Event):
    """Whether a caller has left, who leaves at the look of this number."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.looks = number, 0

    def is_set(self) -> bool:
        self.looks += 1
        if self.looks == self.number:
            self.set()
        return super().is_set()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelCatalog, DatasetPlaces]:
    """A model and a dataset of small documents."""
    folder = tmp_path_factory.mktemp("captured")
    save_model(folder / "models" / "tiny", "gpt2")
    (folder / "data").mkdir()
    (folder / "data" / "words.jsonl").write_text(json.dumps({"text": "the cat"}) + "\n")
    (folder / "data" / "many.jsonl").write_text((json.dumps({"text": "cat"}) + "\n") * 9000)
    return ModelCatalog((folder / "models",)), DatasetPlaces((folder / "data",))


def planned(places: tuple[ModelCatalog, DatasetPlaces], dataset: str, stop: threading.Event) -> None:
    catalog, datasets = places
    plan_capture(capture_request("tiny", dataset), catalog, PlanSettings(datasets=datasets), stop)


def test_documents_are_tokenised_a_few_at_a_time_and_no_more_once_their_caller_has_left(
    places: tuple[ModelCatalog, DatasetPlaces], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is being tokenized is not interrupted, so it may not be much."""
    groups: list[int] = []

    def count(described: ModelDescription, texts: list[str]) -> list[list[int]]:
        groups.append(len(texts))
        return tokenised(described, texts)

    monkeypatch.setattr("actstore_worker.datasets.sequences.tokenised", count)
    planned(places, "many.jsonl", threading.Event())
    assert sum(groups) == 9000
    assert max(groups) <= 1024
    begun = len(groups)
    stop = Watching(4000)
    with pytest.raises(ActstoreError) as ended:
        planned(places, "many.jsonl", stop)
    assert ended.value.reason == "CANCELLED"
    assert 0 < len(groups) - begun < 5
    assert stop.looks == 4000


def test_weights_are_hashed_no_further_once_nobody_waits(
    places: tuple[ModelCatalog, DatasetPlaces], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actstore_worker.files.places._CHUNK_BYTES", 1024)
    whole = Watching(-1)
    planned(places, "words.jsonl", whole)
    assert whole.looks > 20
    for number in (1, 10, 20):
        stop = Watching(number)
        with pytest.raises(ActstoreError) as ended:
            planned(places, "words.jsonl", stop)
        assert (ended.value.reason, stop.looks) == ("CANCELLED", number)


class Planning:
    """A preparer whose plans take until they are stopped."""

    def __init__(self) -> None:
        self.begun, self.stopped = threading.Event(), threading.Event()

    def plan(self, request: Any, stop: threading.Event) -> Any:
        self.begun.set()
        assert stop.wait(PATIENCE_SECONDS)
        self.stopped.set()
        raise ActstoreError("nobody waits", reason="CANCELLED")


def test_planning_ends_with_its_caller(tmp_path: Path) -> None:
    preparer: Any = Planning()
    nothing: Any = None

    async def leave() -> None:
        coordinator = Coordinator(preparer, nothing, CoordinatorLimits(), nothing, workers_max=0)
        asked = asyncio.create_task(coordinator.estimate(capture_request("tiny", "words.jsonl")))
        assert await asyncio.to_thread(preparer.begun.wait, PATIENCE_SECONDS)
        asked.cancel()
        assert await asyncio.to_thread(preparer.stopped.wait, PATIENCE_SECONDS)

    asyncio.run(leave())
