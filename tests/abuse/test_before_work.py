"""What is too much is refused before the work: nothing is tokenized, opened or run for it."""

import threading
from typing import Any

import pytest

from actstore_api.records.feature import SampleExamples
from actstore_api.records.patching import PromptPair
from actstore_storage.answers import Store, answer
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.bucket.watched import WatchedBucket
from actstore_storage.errors import BadRequest
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.live.passes.text import read_text
from actstore_worker.models.loading import describe_model
from actstore_worker.models.prompts import token_of
from actstore_worker.patching.inputs.prompts import pair_tokens
from tests.made_models.random_models import CONTEXT_LENGTH, save_model
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
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "tiny", "gpt2")
    return describe_model(ModelCatalog((folder,)).find_model("tiny"))


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

    def tokenise(*_: object, **__: object) -> None:
        pytest.fail("it was tokenized")

    monkeypatch.setattr("actstore_worker.models.prompts.tokenised", tokenise)
    with pytest.raises(BadRequest) as refused:
        ask()
    assert refused.value.details["field"] == where
    assert refused.value.details["value"] == limit
