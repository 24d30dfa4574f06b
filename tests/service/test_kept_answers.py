"""Answers that a service keeps: for those who may ask, of the run as it is; and a room for what takes long."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from actstore_api.codec import encode
from actstore_api.records.activation import TokenSelection
from actstore_api.records.catalog import GetRun
from actstore_api.records.feature import FindFeatures, GetCofiringFeatures, GetFeatureStatistics, SampleExamples
from actstore_api.records.norm import FitGrowth, GetNormProfile
from actstore_api.verbs import verb_of
from actstore_service.server import Service
from actstore_service.settings import Limits, Settings
from actstore_storage.answers import answer, is_quick, only_run
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.local import LocalBucket
from actstore_storage.format.keys import run_key
from actstore_storage.upkeep.removal import remove_run
from tests.service.access.test_access_file import entry, written
from tests.service.observed.scrapes import scrape
from tests.stored_run import FIRING, SAE, write_stored_run
from tests.waiting import PATIENCE_SECONDS, wait_until

NORMS = GetNormProfile(("planted",))
QUESTIONS = (GetRun("planted"), NORMS, SampleExamples("planted", SAE, (FIRING,)), FindFeatures("planted", SAE, k=3))


@pytest.fixture(params=["local_bucket", "s3_bucket"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    found: Bucket = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def channel(bucket: Bucket, tmp_path: Path) -> Iterator[grpc.Channel]:
    write_stored_run(bucket)
    if isinstance(bucket, LocalBucket):
        os.utime(Path(bucket.address) / run_key("planted"), (1, 1))
    wait_until(lambda: bucket.stamp(run_key("planted")).settled, "a record that may be kept")
    callers = [entry("all", "all", run_prefixes=["*"]), entry("other", "other", run_prefixes=["other-"])]
    access = Path(written(tmp_path / "access", *callers))
    service = Service(bucket, Settings(listen="127.0.0.1:0", metrics_listen="127.0.0.1:0", access_file=access))
    with grpc.insecure_channel(service.address) as opened:
        yield opened
    service.stop()


def ask(channel: grpc.Channel, question: object, token: str = "all") -> bytes:
    call = channel.unary_unary(verb_of(question).path)
    metadata = [("authorization", f"Bearer {token}")]
    found: bytes = call(encode(question).SerializeToString(), metadata=metadata, timeout=PATIENCE_SECONDS)
    return found


def code(channel: grpc.Channel, question: object, token: str = "all") -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        ask(channel, question, token)
    found: grpc.StatusCode = caught.value.code()
    return found


def test_they_are_for_those_who_may_ask_and_of_the_run_as_it_is(channel: grpc.Channel, bucket: Bucket) -> None:
    first = [ask(channel, question) for question in QUESTIONS]
    assert [ask(channel, question) for question in QUESTIONS] == first
    for question in QUESTIONS:
        assert code(channel, question, "other") is grpc.StatusCode.PERMISSION_DENIED
    remove_run(bucket, "planted")
    for question in QUESTIONS:
        assert code(channel, question) is grpc.StatusCode.NOT_FOUND
    write_stored_run(bucket, scale=2.0)
    assert ask(channel, NORMS) != first[1]
    assert ask(channel, QUESTIONS[2]) == first[2], "what fires where is the same"


@pytest.mark.parametrize(
    ("question", "quick"),
    [
        (GetRun("a"), True),
        (GetNormProfile(("a",)), True),
        (GetNormProfile(("a",), exact=True), False),
        (GetNormProfile(("a",), by="position"), False),
        (GetNormProfile(("a",), exclude_position_0=True), False),
        (GetNormProfile(("a", "b")), False),
        (GetFeatureStatistics("a", SAE, 1), True),
        (SampleExamples("a", SAE, (1,)), True),
        (SampleExamples("a", SAE, tuple(range(20))), False),
        (SampleExamples("a", SAE, (1,), method="positions"), False),
        (SampleExamples("a", SAE, (1,), where=TokenSelection(tokens=(1,))), False),
        (FindFeatures("a", SAE), False),
        (GetCofiringFeatures("a", SAE, 1), False),
        (FitGrowth(("a",)), False),
    ],
)
def test_which_questions_are_quick(question: object, quick: bool) -> None:
    assert is_quick(question) is quick


def test_growth_also_depends_on_the_registry_of_models() -> None:
    assert only_run(FitGrowth(("a",))) is None
    assert only_run(GetNormProfile(("a", "b"))) is None
    assert only_run(GetNormProfile(())) is None
    assert only_run(GetNormProfile(("a",))) == "a"


def test_slow_questions_that_wait_keep_no_place_of_quick_ones(
    local_bucket: LocalBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One place for questions and one for slow ones, and one that may wait for each."""
    write_stored_run(local_bucket)
    over, slow = threading.Event(), QUESTIONS[3]

    def held(store: object, question: object) -> object:
        assert question != slow or over.wait(PATIENCE_SECONDS)
        return answer(store, question)

    monkeypatch.setattr("actstore_service.answers.stored.answer", held)
    limits = Limits(read_threads=1, slow_threads=1, waiting_calls=1)
    addresses = {"listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0"}
    service = Service(local_bucket, Settings(**addresses, token="all", limits=limits))

    def calls(state: str, kind: str) -> float:
        return scrape(service)[f"actstore_call{state}", (kind,)]

    try:
        with grpc.insecure_channel(service.address) as channel, ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(ask, channel, slow) for _ in range(2)]
            wait_until(lambda: calls("_places_taken", "slow") == calls("s_waiting", "slow") == 1, "two slow questions")
            assert ask(channel, NORMS)
            assert code(channel, slow) is grpc.StatusCode.RESOURCE_EXHAUSTED
            over.set()
            assert asked[0].result() == asked[1].result()
        for kind in ("slow", "reads"):
            wait_until(lambda kind=kind: calls("_places_taken", kind) == 0, "a place that is given back")  # type: ignore[misc]
    finally:
        over.set()
        service.stop()
