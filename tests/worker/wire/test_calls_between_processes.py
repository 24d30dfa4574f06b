"""Calls between processes of the workers: what goes along, how errors come back, and what is logged and traced."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextvars import copy_context
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from ray import exceptions

from actstore_api.logs import traces
from actstore_api.logs.lines import FIELDS, _JsonLine
from actstore_api.logs.traces import apart, carried, received
from actstore_api.request_ids import REQUEST_ID
from actstore_storage.errors import ActstoreError, BadRequest, CorruptObject
from actstore_worker.cluster.placement.answers import Failed, answer, answered, answered_in_parts, done, unwrapped
from actstore_worker.cluster.placement.capture_workers import RemoteWorker

PLANTED = "planted prompt"
HEADERS = {"x-request-id": "one"}
# As Ray tells that a process, its node or its place has gone.
DEATHS = [
    exceptions.ActorDiedError(),
    exceptions.ActorUnschedulableError("no node"),
    exceptions.NodeDiedError("gone"),
    exceptions.OutOfMemoryError("full"),
    exceptions.RuntimeEnvSetupError("no environment"),
]
MISTAKE = BadRequest(f"{PLANTED!r} is not one token", field="answer", value=PLANTED, allowed="one token")


async def _raising(error: Exception) -> None:
    raise error


async def _parts(error: Exception) -> AsyncIterator[int]:
    yield 1
    raise error


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(traces, "_provider", provider)
    yield exporter
    provider.shutdown()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[dict[str, Any]]]:
    """As a process writes them, filled at the moment at which each is logged."""
    found: list[dict[str, Any]] = []

    class Written(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(json.loads(_JsonLine("replica").format(record)))

    handler = Written()
    logging.getLogger().addHandler(handler)
    caplog.set_level(logging.INFO)
    yield found
    logging.getLogger().removeHandler(handler)


def test_an_answer_comes_back_as_it_is() -> None:
    async def asked() -> int:
        return await answer(answered("replica/Ask", HEADERS, asyncio.sleep(0, 7)))

    assert asyncio.run(asked()) == 7


def test_a_mistake_comes_back_whole_and_is_logged_without_its_text(lines: list[dict[str, Any]]) -> None:
    with pytest.raises(BadRequest, match="is not one token") as caught:
        unwrapped(asyncio.run(answered("replica/Ask", HEADERS, _raising(MISTAKE))))
    assert caught.value.details["value"] == PLANTED
    (line,) = lines
    assert (line["request_id"], line["level"], line["process"]) == ("one", "INFO", "replica")
    assert line["message"] == "replica/Ask: ARGUMENT_INVALID in answer (BadRequest)"
    assert PLANTED not in json.dumps(line)


@pytest.mark.parametrize("way", ["single", "stream", "thread"])
def test_of_a_fault_only_frames_and_class_are_logged_and_nothing_comes_back(
    way: str, lines: list[dict[str, Any]], spans: InMemorySpanExporter
) -> None:
    async def streamed() -> Any:
        return [part async for part in answered_in_parts("replica/Ask", HEADERS, _parts(KeyError(PLANTED)))][-1]

    def work() -> None:
        raise KeyError(PLANTED)

    found = {
        "single": lambda: asyncio.run(answered("replica/Ask", HEADERS, _raising(KeyError(PLANTED)))),
        "stream": lambda: asyncio.run(streamed()),
        "thread": lambda: copy_context().run(done, "replica/Ask", HEADERS, work),
    }[way]()
    assert isinstance(found, Failed)
    assert (found.error.reason, PLANTED in str(found.error)) == ("INTERNAL", False)
    (line,) = lines
    assert (line["request_id"], line["level"]) == ("one", "ERROR")
    assert "KeyError" in line["exc_info"]
    assert "test_calls_between_processes.py" in line["exc_info"]
    (span,) = spans.get_finished_spans()
    assert (span.name, span.status.is_ok, span.events) == ("replica/Ask", False, ())
    assert PLANTED not in json.dumps(line) + span.to_json()


def test_damage_in_the_bucket_is_told_to_operators_with_its_object(lines: list[dict[str, Any]]) -> None:
    asyncio.run(answered("replica/Ask", HEADERS, _raising(CorruptObject("object runs/a/b is damaged"))))
    assert (lines[0]["level"], "runs/a/b" in lines[0]["message"]) == ("ERROR", True)


def test_a_call_goes_on_with_its_id_and_below_its_span(spans: InMemorySpanExporter) -> None:
    async def replica(headers: dict[str, str]) -> int:
        assert headers["x-request-id"] == REQUEST_ID.get() == "one"
        return await answer(answered("replica/Ask", headers, asyncio.sleep(0, 7)))

    async def gateway() -> None:
        with received("gateway", HEADERS):
            await asyncio.create_task(replica(carried()))

    asyncio.run(gateway())
    inner, outer = spans.get_finished_spans()
    assert inner.parent is not None
    assert inner.parent.span_id == outer.context.span_id
    assert dict(inner.attributes or {}) == {"actstore.request_id": "one"}


def test_a_capture_belongs_to_a_request_and_to_no_span(
    spans: InMemorySpanExporter, lines: list[dict[str, Any]]
) -> None:
    async def captured() -> None:
        with received("coordinator/StartCapture", HEADERS):
            await asyncio.create_task(later())

    async def later() -> None:
        apart("another")
        FIELDS.set({"run": "r", "shard": "3", "attempt": "a"})
        assert carried() == {"x-request-id": "another"}
        logging.getLogger("any").warning("said")

    asyncio.run(captured())
    assert {name: lines[0][name] for name in ("request_id", "run", "shard", "attempt")} == {
        "request_id": "another", "run": "r", "shard": "3", "attempt": "a",
    }  # fmt: skip


def test_an_error_that_is_not_wrapped_is_still_raised() -> None:
    with pytest.raises(ActstoreError):
        unwrapped(Failed(ActstoreError("x")))
    assert unwrapped(3) == 3


@pytest.mark.parametrize("died", DEATHS)
def test_a_process_that_died_in_any_way_is_unavailable(died: Exception) -> None:
    with pytest.raises(ActstoreError) as told:
        asyncio.run(answer(_raising(died)))
    assert told.value.reason == "WORKERS_UNAVAILABLE"


@pytest.mark.parametrize("died", DEATHS)
def test_a_capture_worker_that_died_in_any_way_is_let_go(died: Exception) -> None:
    worker = RemoteWorker.__new__(RemoteWorker)
    method = SimpleNamespace(remote=lambda: _raising(died))
    worker._actor = SimpleNamespace(device=method, wait=method)
    with pytest.raises(ActstoreError) as told:
        asyncio.run(worker.ready())
    assert told.value.reason == "WORKERS_UNAVAILABLE"
    asyncio.run(worker.ended())
