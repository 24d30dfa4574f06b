"""What a service says it is, and how it meets callers and workers of other versions."""

from collections.abc import Callable

import grpc
import pytest

from actstore_api.levels import API_LEVEL, OLDEST_LEVEL, headers_of, own_version
from actstore_api.v1 import capture_pb2, catalog_pb2, information_pb2
from actstore_service.server import Service
from actstore_service.settings import Limits
from tests.service import stand_in
from tests.service.conftest import Caller, Serve

ASKED = information_pb2.GetServiceInfoRequest()
WORKERS = information_pb2.WorkersInfo(version="9.9.9", api_level=API_LEVEL, formats_read=[1, 2, 3, 4], format_written=4)
CANCEL = capture_pb2.CancelCaptureRequest(run="new")


def _info(call: Caller) -> information_pb2.ServiceInfo:
    return call("InformationService", "GetServiceInfo", ASKED).info


def test_a_service_without_workers(serve: Serve, connect: Callable[..., Caller]) -> None:
    info = _info(connect(serve(limits=Limits(request_bytes=1 << 16, stalled_seconds=7))))
    assert (info.version, info.api_level, info.oldest_client_level) == (own_version(), API_LEVEL, OLDEST_LEVEL)
    assert list(info.formats_read) == [1, 2, 3, 4]
    assert (info.limits.request_bytes, info.limits.stalled_seconds) == (1 << 16, 7)
    assert "reader" in info.roles
    assert not info.capabilities.workers
    assert info.capabilities.request_ids
    assert not info.HasField("workers")


def test_strangers_are_told_nothing(serve: Serve, connect: Callable[..., Caller]) -> None:
    code, _ = connect(serve(), token=None).failure("InformationService", "GetServiceInfo", ASKED)
    assert code is grpc.StatusCode.UNAUTHENTICATED


def test_a_service_says_what_its_workers_are(call: Caller, workers: stand_in.StandIn) -> None:
    workers.info = WORKERS
    info = _info(call)
    assert info.workers == WORKERS
    assert info.capabilities.workers
    # The workers are told in turn who asks.
    assert {name: workers.metadata[name] for name, _ in headers_of("service")} == dict(headers_of("service"))


def test_workers_that_are_away_or_too_old_leave_the_answer(call: Caller, workers: stand_in.StandIn) -> None:
    assert not _info(call).HasField("workers")
    workers.close()
    info = _info(call)
    assert not info.HasField("workers")
    assert info.capabilities.workers


def test_a_client_that_is_too_old_is_refused(call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actstore_api.levels.OLDEST_LEVEL", 2)
    listed = call.stub("CatalogService").ListRuns
    for level in ("", "2", "3", "of another time"):  # none, or unknown: not restricted
        listed(catalog_pb2.ListRunsRequest(), metadata=[*call.metadata, ("actstore-api-level", level)])
    old = [*call.metadata, ("actstore-client", "python/0.1.9"), ("actstore-api-level", "1")]
    monkeypatch.setattr(Caller, "metadata", old)
    code, failure = call.failure("CatalogService", "ListRuns", catalog_pb2.ListRunsRequest())
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert failure is not None
    assert failure.reason == "CLIENT_TOO_OLD"
    assert f"python/0.1.9 has API level 1; the service has version {own_version()}" in failure.message
    assert failure.details == {"field": "actstore-api-level", "value": "1", "allowed": "2 or higher"}


def test_a_call_that_the_workers_would_not_understand_is_refused(
    call: Caller, workers: stand_in.StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actstore_api.levels.SINCE", {"CancelCapture": 7})
    code, failure = call.failure("CaptureService", "CancelCapture", CANCEL)
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert failure is not None
    assert failure.reason == "WORKERS_TOO_OLD"
    assert failure.details["allowed"] == f"API level {API_LEVEL} or higher"
    workers.info = WORKERS
    code, failure = call.failure("CaptureService", "CancelCapture", CANCEL)
    assert failure is not None
    assert f"version 9.9.9, with API level {API_LEVEL}; the service has version {own_version()}" in failure.message
    assert failure.details["allowed"] == "API level 7 or higher"
    assert [type(request).__name__ for request in workers.requests] == ["GetWorkersInfoRequest"] * 2
    # Once they are upgraded, they are asked at once, and only once.
    workers.info = information_pb2.WorkersInfo(version="10", api_level=7)
    for _ in range(2):
        assert call("CaptureService", "CancelCapture", CANCEL).progress.run == "new"
    assert [type(request).__name__ for request in workers.requests[2:]] == [
        "GetWorkersInfoRequest",
        "CancelCaptureRequest",
        "CancelCaptureRequest",
    ]


def test_calls_that_every_version_understands_ask_for_none(
    forwarding: Service, call: Caller, workers: stand_in.StandIn
) -> None:
    call("CaptureService", "CancelCapture", CANCEL)
    assert [type(request).__name__ for request in workers.requests] == ["CancelCaptureRequest"]
