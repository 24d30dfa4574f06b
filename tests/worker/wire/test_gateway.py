"""The gateway's side of the wire: who is asked what, what comes back, and what a caller is told of a failure."""

import asyncio
import inspect
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from google.rpc import status_pb2

from actstore_api.codec import decode, encode, message_of
from actstore_api.levels import API_LEVEL, own_version
from actstore_api.reasons import from_status
from actstore_api.records.capture import (
    CancelCapture,
    CaptureEstimate,
    CaptureProgress,
    CaptureSpecification,
    EstimateCapture,
    GetCaptureTotals,
    GetCaptureTotalsAnswer,
    ListSources,
    ListSourcesAnswer,
    StartCapture,
    WatchCapture,
)
from actstore_api.records.information import GetWorkersInfo
from actstore_api.records.model import TokenizeText
from actstore_api.records.patching import EstimateSweep, PromptPair, RunSweep, SweepEstimate, SweepProgress
from actstore_api.records.terms import Failure, ModelReference
from actstore_api.v1 import common_pb2, model_pb2
from actstore_api.verbs import VERBS, verb_of
from actstore_storage.errors import ActstoreError, NotThere
from actstore_storage.format.specification import FORMAT_VERSION
from actstore_worker.caller import Caller
from actstore_worker.capture.answering import CaptureAnswers
from actstore_worker.catalog.folders import ModelCatalog
from actstore_worker.datasets.places import DatasetPlaces
from actstore_worker.wire.gateway import Gateway

TOKEN, PREVIOUS = "gateway-token", "token-of-before"
MODEL = ModelReference("tiny")
SPECIFICATION = CaptureSpecification(run="run")
PROGRESS = CaptureProgress("run", "running", 1, 2)
ENDED = replace(PROGRESS, state="complete", shards_committed=2)
SWEEP = RunSweep(MODEL, (PromptPair("a", "b", "c", "d"),))
SWEEP_ESTIMATE = SweepEstimate(1, 2.0, 3.0, 4, 5.0)
ESTIMATE = CaptureEstimate(1, 2, 3, 4, {"tokens": 5}, 5, 6.0)
SOURCES = ListSourcesAnswer((), (), (), hub_allowed=True, truncated=False)
TOTALS = GetCaptureTotalsAnswer(captures_running=1)


class Captures:
    """Remembers whose captures were started."""

    def __init__(self) -> None:
        self.callers: list[Caller] = []

    async def submit(self, request: CaptureSpecification, caller: Caller) -> str:
        self.callers.append(caller)
        return request.run

    async def estimate(self, request: CaptureSpecification, caller: Caller) -> CaptureEstimate:
        assert request == SPECIFICATION
        return ESTIMATE

    async def progress_after(self, run: str, version: int) -> tuple[int, CaptureProgress]:
        if run != "run":
            raise NotThere("no such capture", reason="CAPTURE_NOT_FOUND", field="run", value=run)
        return version + 1, PROGRESS if version < 0 else ENDED

    async def cancel(self, run: str) -> CaptureProgress:
        return CaptureProgress(run, "cancelled")

    async def totals(self) -> GetCaptureTotalsAnswer:
        return TOTALS

    async def ask(self, question: Any, caller: Caller) -> Any:
        captures: Any = self
        answers = CaptureAnswers(captures, ModelCatalog((), allow_hub=True), DatasetPlaces())
        return await answers.answer(question, caller)


class Models:
    """Remembers the last live question, and its caller."""

    asked: Any = None
    caller: Caller | None = None

    async def run(self, request: RunSweep, caller: Caller) -> AsyncIterator[SweepProgress]:
        self.caller = caller
        yield SweepProgress(0, len(request.pairs))
        yield SweepProgress(1, len(request.pairs))
        raise ZeroDivisionError("an error of nobody's business")

    async def estimate(self, request: RunSweep, caller: Caller) -> SweepEstimate:
        assert request == SWEEP
        return SWEEP_ESTIMATE

    async def ask(self, question: Any, caller: Caller) -> Any:
        self.asked, self.caller = question, caller
        raise ActstoreError("nobody answers", reason="WORKERS_UNAVAILABLE")


class Call:
    """A context as Serve's is."""

    def __init__(self, token: str = TOKEN, *headers: tuple[str, str], **named: str) -> None:
        self._token, self._headers = token, (*headers, *named.items())
        self.code, self.details, self.trailers = grpc.StatusCode.OK, "", []

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [("authorization", f"Bearer {self._token}"), *self._headers]

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, Any]]) -> None:
        self.trailers = trailing_metadata

    @property
    def failure(self) -> Failure | None:
        ((_, status),) = self.trailers
        return from_status(status_pb2.Status.FromString(status))


@pytest.fixture
def models() -> Models:
    return Models()


def call(models: Models, name: str, message: Any, context: Call, captures: Captures | None = None) -> list[Any]:
    """The messages that come back."""

    async def everything() -> list[Any]:
        gateway = Gateway(lambda: (TOKEN, PREVIOUS), captures or Captures(), models)
        answer = getattr(gateway, name)(message, grpc_context=context)
        return [found async for found in answer] if VERBS[name].streams else [await answer]

    return asyncio.run(everything())


def told(models: Models, question: Any) -> list[Any]:
    """The answers, of which none failed."""
    verb, context = verb_of(question), Call()
    messages = call(models, verb.name, encode(question), context)
    assert context.code == grpc.StatusCode.OK
    return [decode(verb.answer, message) for message in messages]


def test_every_verb_that_is_forwarded_has_a_method_as_serve_calls_it() -> None:
    for verb in VERBS.values():
        method = getattr(Gateway, verb.name, None)
        assert (method is not None) == verb.forwarded, verb.name
        if method is not None:
            assert "grpc_context" in inspect.signature(method).parameters
            assert inspect.isasyncgenfunction(method) == verb.streams


def test_captures_are_asked_of_the_coordinator(models: Models) -> None:
    assert [answer.run for answer in told(models, StartCapture(SPECIFICATION))] == ["run"]
    assert [answer.estimate for answer in told(models, EstimateCapture(SPECIFICATION))] == [ESTIMATE]
    assert told(models, ListSources()) == [SOURCES]
    assert [answer.progress.state for answer in told(models, CancelCapture("run"))] == ["cancelled"]
    assert told(models, GetCaptureTotals()) == [TOTALS]
    assert [answer.progress for answer in told(models, WatchCapture("run"))] == [PROGRESS, ENDED]
    assert [answer.estimate for answer in told(models, EstimateSweep(SWEEP))] == [SWEEP_ESTIMATE]


def test_the_workers_learn_who_asks_and_how_long_the_caller_waits(models: Models) -> None:
    captures, named = Captures(), (("actstore-principal", "ann"), ("actstore-seconds-left", "12.5"))
    for headers in ((), named):
        call(models, "StartCapture", encode(StartCapture(SPECIFICATION)), Call(TOKEN, *headers), captures)
        expected = Caller("ann", 12.5) if headers else Caller("default", None)
        for question in (SWEEP, TokenizeText(MODEL, (1, 2), prepend_bos=False)):
            models.caller = None
            call(models, verb_of(question).name, encode(question), Call(TOKEN, *headers))
            assert models.caller == expected
    assert captures.callers == [Caller("default"), Caller("ann", 12.5)]


def test_what_comes_after_its_deadline_is_not_begun(models: Models) -> None:
    captures, late = Captures(), ("actstore-seconds-left", "-0.1")
    for question in (StartCapture(SPECIFICATION), EstimateSweep(SWEEP), SWEEP, TokenizeText(MODEL, (1,))):
        context = Call(TOKEN, late)
        call(models, verb_of(question).name, encode(question), context, captures)
        assert context.failure is not None
        assert context.failure.reason == "CANCELLED"
    assert (captures.callers, models.asked, models.caller) == ([], None, None)


def test_what_is_no_capture_and_no_sweep_is_asked_of_a_model(models: Models) -> None:
    question, context = TokenizeText(MODEL, (1, 2), prepend_bos=False), Call()
    (answer,) = call(models, "TokenizeText", encode(question), context)
    assert models.asked == question
    assert answer == model_pb2.TokenizeTextResponse()
    assert (context.code, context.failure.reason) == (grpc.StatusCode.UNAVAILABLE, "WORKERS_UNAVAILABLE")


def test_a_stream_that_fails_ends_with_an_empty_message(models: Models) -> None:
    context = Call()
    *updates, last = call(models, "RunSweep", encode(SWEEP), context)
    assert [update.progress.cells_done for update in updates] == [0, 1]
    assert not last.ByteSize()
    assert (context.code, context.failure.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "nobody's business" not in context.failure.message
    refused = Call()
    (empty,) = call(models, "WatchCapture", encode(WatchCapture("other")), refused)
    assert not empty.ByteSize()
    assert refused.failure.details["field"] == "run"


def test_what_the_contract_does_not_allow_is_a_bad_request(models: Models) -> None:
    context = Call()
    nameless = common_pb2.ModelReference(revision="main")
    call(models, "GetLogitLens", message_of(VERBS["GetLogitLens"].question)(model=nameless, sae="sae"), context)
    assert context.code == grpc.StatusCode.INVALID_ARGUMENT
    assert context.failure.reason == "ARGUMENT_INVALID"
    assert context.failure.details == {"field": "model.name", "value": "", "allowed": "a name"}
    assert models.asked is None


@pytest.mark.parametrize(
    ("verb", "said", "field"),
    [
        ("StartCapture", {"specification": {"dtype": 99}}, "dtype"),
        ("EstimateCapture", {"specification": {"dataset": {"text_field": "text"}}}, "dataset.name"),
        ("EstimateCapture", {}, "specification"),
        ("EstimateSweep", {"sweep": {"model": {"name": ""}}}, "model.name"),
        ("RunSweep", {"model": {"name": "tiny"}, "pairs": [{}]}, "pairs.clean"),
    ],
)
def test_what_is_asked_whole_has_the_fields_that_planning_names(
    models: Models, verb: str, said: dict[str, Any], field: str
) -> None:
    context = Call()
    call(models, verb, ParseDict(said, message_of(VERBS[verb].question)()), context)
    assert context.failure.details["field"] == field
    assert context.failure.message.startswith(f"{field}: ")


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], f"{TOKEN} "])
def test_no_verb_answers_without_the_token(models: Models, token: str) -> None:
    for verb in VERBS.values():
        if verb.forwarded:
            context = Call(token)
            (empty,) = call(models, verb.name, message_of(verb.question)(), context)
            assert not empty.ByteSize()
            assert (context.code, context.failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")


def test_the_token_of_before_is_valid_while_it_is_replaced(models: Models) -> None:
    context = Call(PREVIOUS)
    (answer,) = call(models, "GetCaptureTotals", encode(GetCaptureTotals()), context)
    assert (context.code, decode(GetCaptureTotalsAnswer, answer)) == (grpc.StatusCode.OK, TOTALS)


def test_the_gateway_says_what_the_workers_are(models: Models) -> None:
    (found,) = told(models, GetWorkersInfo())
    assert (found.info.version, found.info.api_level) == (own_version(), API_LEVEL)
    assert found.info.formats_read[-1] == found.info.format_written == FORMAT_VERSION


def test_a_service_that_is_too_old_is_refused(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actstore_api.levels.OLDEST_LEVEL", 2)
    old = {"actstore-client": "service/0.1.9", "actstore-api-level": "1"}
    for verb, question in (("GetCaptureTotals", GetCaptureTotals()), ("WatchCapture", WatchCapture("run"))):
        context = Call(**old)
        call(models, verb, encode(question), context)
        assert (context.code, context.failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CLIENT_TOO_OLD")
        assert f"service/0.1.9 has API level 1; the workers have version {own_version()}" in context.failure.message
        # One that does not say what it is, is not restricted.
        unsaid = Call()
        call(models, verb, encode(question), unsaid)
        assert unsaid.code == grpc.StatusCode.OK
