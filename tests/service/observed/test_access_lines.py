"""What the log of a real service process says of calls, and what it never says."""

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from actstore_api.reasons import request_id_of
from actstore_api.v1 import capture_pb2, catalog_pb2, common_pb2, patching_pb2
from actstore_storage.bucket import Bucket
from tests.service import stand_in
from tests.service.conftest import Caller
from tests.service.process import COMMAND, environment
from tests.stored_run import StoredRun
from tests.waiting import wait_until

TOKEN, WRONG = "planted-token-5c1f", "planted-wrong-77ab"
SECRETS = (TOKEN, WRONG, stand_in.TOKEN, "planted prompt", "planted-key")
MINE = (("authorization", f"Bearer {TOKEN}"), ("x-request-id", "mine-1"))


class Process:
    """A service process, whose log is a file."""

    def __init__(self, log: Path, **variables: str) -> None:
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                COMMAND, env=environment(**variables), stdout=subprocess.PIPE, stderr=file, text=True
            )
        assert self.process.stdout is not None
        self.address = json.loads(self.process.stdout.readline())["address"]

    def text(self) -> str:
        return self._log.read_text()

    def lines(self, **fields: str) -> list[dict[str, Any]]:
        """The JSON lines that have these fields."""
        said = [json.loads(line) for line in self.text().splitlines() if line.startswith("{")]
        return [line for line in said if all(line.get(name) == value for name, value in fields.items())]

    def line(self, **fields: str) -> dict[str, Any]:
        wait_until(lambda: self.lines(**fields), f"a line with {fields}")
        return self.lines(**fields)[-1]

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def workers() -> Iterator[stand_in.StandIn]:
    started = stand_in.StandIn()
    yield started
    started.close()


@pytest.fixture(scope="module")
def process(
    bucket: Bucket, stored: StoredRun, workers: stand_in.StandIn, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    started = Process(
        tmp_path_factory.mktemp("service") / "log",
        ACTSTORE_STORE=bucket.address,
        ACTSTORE_TOKEN=TOKEN,
        ACTSTORE_GATEWAY=workers.address,
        ACTSTORE_GATEWAY_TOKEN=stand_in.TOKEN,
        ACTSTORE_LIMITS_DRAIN_SECONDS="0",
    )
    yield started
    if started.process.poll() is None:
        started.end()


@pytest.fixture
def caller(process: Process) -> Iterator[Caller]:
    found = Caller(process.address, TOKEN)
    yield found
    found.channel.close()


def test_a_call_has_one_line_with_its_fields(process: Process, caller: Caller) -> None:
    request = catalog_pb2.GetRunRequest(run="planted")
    _, call = caller.stub("CatalogService").GetRun.with_call(request, metadata=MINE)
    line = process.line(request_id="mine-1", run="planted")
    assert dict(call.trailing_metadata())["x-request-id"] == "mine-1"
    assert {name: line[name] for name in ("method", "code", "reason", "principal", "request_id", "process")} == {
        "method": "/actstore_api.v1.CatalogService/GetRun", "code": "OK", "reason": "", "principal": "shared",
        "request_id": "mine-1", "process": "service",
    }  # fmt: skip
    assert line["ms"] > 0
    assert line["level"] == "INFO"
    assert "127.0.0.1" in line["peer"]
    assert len(process.lines(request_id="mine-1", run="planted")) == 1


def test_a_refused_token_is_a_warning_with_its_peer(process: Process) -> None:
    stranger = Caller(process.address, WRONG)
    code, _ = stranger.failure("CatalogService", "ListRuns", catalog_pb2.ListRunsRequest())
    assert code is grpc.StatusCode.UNAUTHENTICATED
    line = process.line(code="UNAUTHENTICATED")
    assert (line["level"], line["reason"], line["principal"]) == ("WARNING", "UNAUTHENTICATED", "")
    assert "127.0.0.1" in line["peer"]
    stranger.channel.close()


@pytest.mark.parametrize("sent", ["with space", "a" * 65, "-x", "", '{"a":1}'])
def test_an_id_that_is_not_valid_is_replaced(caller: Caller, sent: str) -> None:
    metadata = (*MINE[:1], ("x-request-id", sent))
    _, call = caller.stub("CatalogService").ListRuns.with_call(catalog_pb2.ListRunsRequest(), metadata=metadata)
    assert len(dict(call.trailing_metadata())["x-request-id"]) == 32


def test_an_error_has_the_id_also_when_the_workers_made_it(caller: Caller, workers: stand_in.StandIn) -> None:
    stubs = caller.stub("CatalogService"), caller.stub("CaptureService")
    for ask, request in (
        (stubs[0].GetRun, catalog_pb2.GetRunRequest(run="absent")),
        (stubs[1].CancelCapture, capture_pb2.CancelCaptureRequest(run="refused")),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            ask(request, metadata=MINE)
        status = rpc_status.from_call(caught.value)
        assert status is not None
        assert request_id_of(status) == dict(caught.value.trailing_metadata())["x-request-id"] == "mine-1"
    assert workers.metadata["x-request-id"] == "mine-1"


def test_no_secret_is_in_the_log_of_a_busy_session(process: Process, caller: Caller) -> None:
    prompt = "planted prompt with words"
    pair = patching_pb2.PromptPair(clean=common_pb2.Prompt(text=prompt))
    Caller(process.address, WRONG).failure("CatalogService", "ListRuns", catalog_pb2.ListRunsRequest())
    caller.failure("CatalogService", "GetRun", catalog_pb2.GetRunRequest(run=prompt))
    caller.failure("CaptureService", "CancelCapture", capture_pb2.CancelCaptureRequest(run="bare-INTERNAL"))
    caller.failure("CaptureService", "WatchCapture", capture_pb2.WatchCaptureRequest(run=f"bare-UNKNOWN {prompt}"))
    for name in ("resumed", "audit-failed", prompt):
        sweep = patching_pb2.RunSweepRequest(model=common_pb2.ModelReference(name=name), pairs=[pair])
        with suppress(grpc.RpcError):
            caller("PatchingService", "RunSweep", sweep)
    bad = caller.channel.unary_unary("/actstore_api.v1.CatalogService/GetRun")
    with pytest.raises(grpc.RpcError):
        bad(prompt.encode(), metadata=caller.metadata)
    process.end()
    said = process.text()
    assert said.count('"actstore_service.access"') >= 7
    assert [secret for secret in SECRETS if secret in said] == []
    assert all(json.loads(line) for line in said.splitlines())
