"""Extreme and random questions to the workers' gateway over a real replica and a real coordinator, of every method
that the service forwards; without Ray and without sockets. The stack's own are in tests/topology.
"""

import asyncio
import json
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from google.protobuf.json_format import ParseDict
from google.rpc import status_pb2
from hypothesis import given, settings

from actstore_api.codec import message_of
from actstore_api.reasons import from_status
from actstore_api.verbs import VERBS, Verb
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.opening import open_bucket
from actstore_worker.caller import Caller
from actstore_worker.capture.answering import CaptureAnswers
from actstore_worker.capture.coordinator import Coordinator
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.places import DatasetPlaces
from actstore_worker.wire.gateway import Gateway
from tests.abuse.any_messages import STORED_NAMES, any_request
from tests.abuse.changed_requests import faults
from tests.abuse.judging import EACH, FUZZ, SECONDS, Outcome, check, memory_bytes
from tests.abuse.valid_requests import valid_request
from tests.coordinating import ThreadWorker, coordinator
from tests.live_workers import LocalModels
from tests.made_models.random_models import WORDS, save_model
from tests.made_models.small_models import save_sae

TOKEN = "gateway-token"
FORWARDED = [verb for verb in VERBS.values() if verb.forwarded]
GROWTH_BYTES = 300 << 20
NAMES = {
    **STORED_NAMES,
    "ModelReference.name": ("tiny",),
    "DatasetReference.name": ("words.jsonl",),
    "sae": ("small-sae",),
    "saes": ("small-sae",),
    "run": ("captured", "fuzzed"),
}


class Said:
    """The context of a call, as the gateway uses it."""

    def __init__(self) -> None:
        self.code, self.details, self.trailers = grpc.StatusCode.OK, "", dict[str, bytes]()

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [("authorization", f"Bearer {TOKEN}")]

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, Any]]) -> None:
        self.trailers = dict(trailing_metadata)

    @property
    def outcome(self) -> Outcome:
        written = self.trailers.get("grpc-status-details-bin")
        failure = None if written is None else from_status(status_pb2.Status.FromString(written))
        return Outcome(self.code, self.details, failure)


class LocalCaptures:
    """The coordinator of a gateway, in this process."""

    def __init__(self, folder: Path, bucket: Bucket) -> None:
        self._coordinator: Coordinator = coordinator(folder, bucket, ThreadWorker(bucket))
        catalog, places = ModelCatalog((folder / "models",)), DatasetPlaces((folder / "data",))
        self._answers = CaptureAnswers(self._coordinator, catalog, places)

    async def ask(self, question: Any, caller: Caller) -> Any:
        return await self._answers.answer(question, caller)

    async def progress_after(self, run: str, version: int) -> Any:
        return await self._coordinator.progress_after(run, version)


class Workers:
    """A gateway in an event loop, which is asked one question after another."""

    def __init__(self, folder: Path) -> None:
        bucket = open_bucket(str(folder / "store"))
        self.folder, self._loop = folder, asyncio.Runner()
        self._loop.get_loop().run_until_complete(self._start(bucket))

    async def _start(self, bucket: Bucket) -> None:
        models: Any = LocalModels((self.folder / "models",), bucket)
        self._gateway: Any = Gateway(lambda: [TOKEN], LocalCaptures(self.folder, bucket), models)

    def ask(self, verb: Verb, request: bytes) -> Outcome:
        return self._loop.run(asyncio.wait_for(self._asked(verb, request), SECONDS))

    def ask_valid(self, verb: Verb) -> Outcome:
        return self.ask(verb, valid_request(verb).SerializeToString())

    async def _asked(self, verb: Verb, request: bytes) -> Outcome:
        said, message = Said(), message_of(verb.question).FromString(request)
        if verb.streams:
            async for _ in self._gateway.stream(verb, message, said):
                pass
        else:
            await self._gateway.answer(verb, message, said)
        return said.outcome

    def close(self) -> None:
        self._loop.close()


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    folder = tmp_path_factory.mktemp("fuzzed-workers")
    (folder / "store").mkdir()
    (folder / "data").mkdir()
    save_model(folder / "models" / "tiny", "gpt2")
    save_sae(folder / "models" / "small-sae", "topk", d_in=24, d_sae=32)
    chosen = random.Random(1)
    lines = [json.dumps({"text": " ".join(chosen.choices(WORDS, k=20)), "number": number}) for number in range(12)]
    (folder / "data" / "words.jsonl").write_text("\n".join(lines))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started = Workers(folder)
    for name in ("StartCapture", "WatchCapture"):
        assert started.ask_valid(VERBS[name]).code is grpc.StatusCode.OK
    yield started
    started.close()
    torch.set_num_threads(threads)


@pytest.mark.parametrize("verb", FORWARDED, ids=[verb.name for verb in FORWARDED])
def test_one_extreme_field_has_an_answer_or_its_own_refusal(workers: Workers, verb: Verb) -> None:
    # The run is complete.
    expected = grpc.StatusCode.NOT_FOUND if verb.name == "CancelCapture" else grpc.StatusCode.OK
    assert workers.ask_valid(verb).code is expected
    found = faults(valid_request(verb), lambda request: workers.ask(verb, request), (str(workers.folder),))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("field", "change", "refused"),
    [
        ("dense_sites", {"dense_sites": ["resid_post." + "9" * 4300]}, "dense_sites"),
        ("positions", {"positions": {"stride": 2**31}}, "positions.stride"),
        ("dataset", {"dataset": {"name": "words.jsonl", "max_documents": 2**63}}, "dataset.max_documents"),
        ("dataset", {"dataset": {"name": "é" * 256}}, "dataset"),
        ("dataset", {"dataset": {"name": "x" * 256}}, "dataset"),
    ],
    ids=["site", "stride", "documents", "name", "long name"],
)
def test_what_was_a_fault_once_names_its_field(workers: Workers, field: str, change: Any, refused: str) -> None:
    for verb in (VERBS["StartCapture"], VERBS["EstimateCapture"]):
        question: Any = valid_request(verb)
        question.specification.ClearField(field)
        ParseDict(change, question.specification)
        outcome = workers.ask(verb, question.SerializeToString())
        check(outcome, (str(workers.folder),))
        assert outcome.failure is not None
        assert outcome.failure.details["field"] == refused, outcome


def test_the_extremes_find_a_gateway_without_bounds(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actstore_worker.wire.failures.check_bounds", lambda message: None)
    valid, verb = valid_request(VERBS["GetAttention"]), VERBS["GetAttention"]
    assert faults(valid, lambda request: workers.ask(verb, request), ())


@pytest.mark.parametrize("verb", FORWARDED, ids=[verb.name for verb in FORWARDED])
def test_any_decodable_question_has_an_answer_or_a_reason(
    workers: Workers, verb: Verb, caplog: pytest.LogCaptureFixture
) -> None:
    before: list[int] = []

    @settings(FUZZ, max_examples=EACH)
    @given(any_request(message_of(verb.question).DESCRIPTOR, NAMES))
    def ask(request: bytes) -> None:
        with caplog.at_level(logging.ERROR):
            check(workers.ask(verb, request), (str(workers.folder),))
        if not before:
            before.append(memory_bytes(os.getpid()))

    ask()
    assert memory_bytes(os.getpid()) - before[0] < GROWTH_BYTES
