"""What is too much is refused before the work: nothing is tokenized, opened or run for it."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from actstore_api.codec import encode
from actstore_api.records.capture import CaptureSpecification, Comparison, RowFilter, StartCapture
from actstore_api.records.feature import SampleExamples
from actstore_api.records.patching import PromptPair, RunSweep
from actstore_api.records.terms import ModelReference
from actstore_storage.answers import Store, answer
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.bucket.watched import WatchedBucket
from actstore_storage.errors import ActstoreError, BadRequest
from actstore_worker.capture.plan import PlanSettings, plan_capture
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.places import DatasetPlaces
from actstore_worker.live.passes.text import read_text
from actstore_worker.models.loading import load_model
from actstore_worker.models.prompts import token_of
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.patching.inputs.prompts import pair_tokens
from actstore_worker.patching.inputs.supplies import Supplies
from actstore_worker.patching.plan import plan_sweep
from actstore_worker.patching.serving.answer_cache import AnswerCache
from actstore_worker.wire.failures import read_question
from tests.capture_requests import capture_request
from tests.made_models.random_models import CONTEXT_LENGTH, save_model
from tests.made_models.small_models import save_sae
from tests.stored_run import SAE, write_stored_run


class CountedBucket(WatchedBucket):
    """Counts what is asked of a bucket."""

    asked = 0

    def check(self) -> None:
        self.asked += 1


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    bucket = open_bucket(str(tmp_path_factory.mktemp("store")))
    write_stored_run(bucket, "run")
    return Store(CountedBucket(bucket, threading.Event()))


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"features": tuple(range(257))}, "features"),
        ({"k": 1001}, "k"),
        ({"method": "quantile", "k": 100, "bins": 11}, "k * bins"),
        ({"features": tuple(range(256)), "k": 40}, "features * examples"),
        ({"tokens_before": 1025}, "tokens_before"),
    ],
)
def test_examples_are_counted_before_a_feature_is_opened(store: Store, asked: dict[str, Any], field: str) -> None:
    before = store.bucket.asked
    store.snapshot("run")
    opening = store.bucket.asked - before
    with pytest.raises(BadRequest) as refused:
        answer(store, SampleExamples("run", SAE, **{"features": (0,)} | asked))
    assert (refused.value.reason, refused.value.details["field"]) == ("LIMIT_EXCEEDED", field)
    assert store.bucket.asked - before - opening <= opening


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "tiny", "gpt2")
    save_sae(folder / "fitting", "topk", d_in=24, d_sae=32)
    return folder


@pytest.fixture(scope="module")
def model(models: Path) -> Any:
    return load_model(ModelCatalog((models,)).find_model("tiny"), device=torch.device("cpu"))


def work(*_: object, **__: object) -> NoReturn:
    pytest.fail("work has begun")


@pytest.mark.parametrize("where", ["text", "clean", "corrupt", "answer"])
def test_a_text_that_must_be_too_long_is_not_tokenised(model: Any, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 4 * model.longest_token * CONTEXT_LENGTH
    long, limit = "a " * (most // 2) + "a", f"{most + 1} characters"
    ask = {
        "text": lambda: read_text(model, long, None),
        "clean": lambda: pair_tokens(model, PromptPair(long, "a", "b", "c"), None),
        "corrupt": lambda: pair_tokens(model, PromptPair("a", long, "b", "c"), None),
        "answer": lambda: token_of(model, long, "answer"),
    }[where]

    monkeypatch.setattr("actstore_worker.models.prompts.tokenised", work)
    with pytest.raises(BadRequest) as refused:
        ask()
    assert refused.value.details["field"] == where
    assert refused.value.details["value"] == limit


def captured(**changes: Any) -> CaptureSpecification:
    """Of a model that is there, and of a dataset that is."""
    asked = capture_request("tiny", "words.jsonl")
    of_dataset = {name: changes.pop(name) for name in ("row_filters",) if name in changes}
    return replace(asked, dataset=replace(asked.dataset, **of_dataset), **changes)


def one_of(comparison: Comparison, *values: str | float) -> tuple[RowFilter, ...]:
    return (RowFilter("text", comparison, values),)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"row_filters": 65 * one_of("==", "a")}, "dataset.row_filters"),
        ({"row_filters": one_of("in", *map(str, range(4097)))}, "dataset.row_filters[0].values"),
        ({"row_filters": one_of("==", "a" * 65_537)}, "dataset.row_filters[0].values[0]"),
        ({"dense_sites": tuple(f"z.{layer}" for layer in range(4097))}, "dense_sites"),
        ({"norm_sites": tuple(f"resid_post.{layer}" for layer in range(4097))}, "norm_sites"),
        ({"saes": tuple(f"sae-{number}" for number in range(65))}, "saes"),
    ],
)
def test_the_parts_of_a_capture_are_counted_before_it_is_planned(changes: dict[str, Any], field: str) -> None:
    """As the gateway reads a question, before anybody is asked."""
    with pytest.raises(BadRequest) as refused:
        read_question(StartCapture, encode(StartCapture(captured(**changes))))
    assert (refused.value.reason, refused.value.details["field"]) == ("LIMIT_EXCEEDED", field)


_PLANS = "actstore_worker.capture.plan"


@pytest.mark.parametrize(
    ("changes", "field", "later"),
    [
        ({"row_filters": one_of("in", "a", 1.0)}, "dataset.row_filters", "describe_model"),
        ({"row_filters": one_of("==")}, "dataset.row_filters", "describe_model"),
        ({"sequences_per_batch": 1025}, "sequences_per_batch", "describe_model"),
        ({"sequences_per_shard": 2**20 + 1}, "sequences_per_shard", "describe_model"),
        ({"dense_sites": ("resid_post.99",), "saes": ("fitting",)}, "site", "load_sae"),
        ({"saes": ("fitting", "missing")}, "sae", "load_sae"),
        ({"dense_sites": ("resid_post.99",)}, "site", "documents"),
        ({"context_length": CONTEXT_LENGTH + 1}, "context_length", "documents"),
    ],
)
def test_a_capture_is_refused_before_models_saes_and_documents_are_read(
    models: Path, tmp_path: Path, changes: dict[str, Any], field: str, later: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "words.jsonl").write_text('{"text": "a"}\n')
    monkeypatch.setattr(f"{_PLANS}.{later}", work)
    settings = PlanSettings(datasets=DatasetPlaces((tmp_path,)))
    with pytest.raises(ActstoreError) as refused:
        plan_capture(captured(**changes), ModelCatalog((models,)), settings)
    assert refused.value.details["field"] == field


def swept(**changes: Any) -> RunSweep:
    pair = PromptPair("Mary gave a book", "John gave a book", "John", "Mary")
    return RunSweep(ModelReference("tiny"), (pair,), **changes)


@pytest.mark.parametrize("features", [(), tuple(range(8))])
def test_cells_are_counted_before_an_sae_is_opened(store: Store, model: Any, features: tuple[int, ...]) -> None:
    """Also for the answer that may be kept. Of features that are not named, two cells at each position are known."""
    request, limits = swept(sae="any", features=features), PatchingLimits(cells=8)
    supplies = Supplies(store.bucket, work)
    with pytest.raises(BadRequest) as refused:
        plan_sweep(model, request, limits, supplies)
    assert (refused.value.reason, refused.value.details["field"]) == ("LIMIT_EXCEEDED", "cells")
    assert AnswerCache(supplies, limits).key(model, request, "full") is None


@pytest.mark.parametrize("wrong", ["pairs", "characters"])
def test_pairs_are_counted_and_measured_before_one_is_tokenised(
    store: Store, model: Any, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pair,) = swept().pairs
    long = "a " * (4 * model.longest_token * CONTEXT_LENGTH)
    request = replace(swept(), pairs=(pair,) * 257 if wrong == "pairs" else (pair, replace(pair, corrupt=long)))
    monkeypatch.setattr("actstore_worker.models.prompts.tokenised", work)
    with pytest.raises(BadRequest) as refused:
        plan_sweep(model, request, PatchingLimits())
    assert refused.value.reason == "LIMIT_EXCEEDED"
    assert AnswerCache(Supplies(store.bucket, work), PatchingLimits()).key(model, request, "full") is None
