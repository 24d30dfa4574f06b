"""A call that lasts longer than what its caller may do is ended: at real services, with files that change."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from actstore_api.reasons import from_status
from actstore_api.records.terms import Failure
from actstore_api.v1 import capture_pb2
from actstore_service.server import Service
from actstore_service.settings import Limits
from tests.service import stand_in
from tests.service.access.test_access_file import entry, written
from tests.service.conftest import Caller, Serve
from tests.waiting import PATIENCE_SECONDS

SOON = Limits(recheck_seconds=0.05)


class Watched:
    """A capture's progress that goes on until somebody ends it."""

    def __init__(self, service: Any, workers: stand_in.StandIn, token: str = "ada") -> None:
        self._caller = Caller(service.address, token)
        workers.waiting.clear()
        watch = self._caller.stub("CaptureService").WatchCapture
        self.stream = watch(capture_pb2.WatchCaptureRequest(run="waiting"), metadata=self._caller.metadata)
        assert workers.waiting.wait(PATIENCE_SECONDS)

    def failure(self) -> Failure:
        with pytest.raises(grpc.RpcError) as caught:
            next(self.stream)
        status = rpc_status.from_call(caught.value)
        assert status is not None
        found = from_status(status)
        assert found is not None
        self._caller.channel.close()
        return found


def ada(*tokens: str, **more: Any) -> dict[str, Any]:
    return entry("ada", *(tokens or ("ada",)), **{"roles": ["reader"], "run_prefixes": ["*"]} | more)


@pytest.fixture
def service(serve: Serve, workers: stand_in.StandIn, tmp_path: Path) -> Service:
    """Knows ada, by two tokens, until its file changes."""
    file = Path(written(tmp_path / "access", ada("ada", "old")))
    return serve(token=None, access_file=file, gateway=workers.address, gateway_token=stand_in.TOKEN, limits=SOON)


def test_a_stream_ends_soon_after_its_token_has_expired(
    service: Service, workers: stand_in.StandIn, tmp_path: Path
) -> None:
    watched = Watched(service, workers)
    written(tmp_path / "access", ada(expires=datetime.now(UTC) + timedelta(seconds=1.5)))
    found = watched.failure()
    assert (found.reason, found.message) == ("UNAUTHENTICATED", "the token has expired")


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (entry("bob", "bob"), "UNAUTHENTICATED"),  # the token was withdrawn
        (ada(run_prefixes=["other-"]), "PERMISSION_DENIED"),
        (ada(roles=["writer"]), "PERMISSION_DENIED"),
        (entry("bob", "ada", roles=["reader"], run_prefixes=["*"]), "PERMISSION_DENIED"),
    ],
)
def test_a_stream_ends_soon_after_its_caller_may_do_less(
    service: Service, workers: stand_in.StandIn, tmp_path: Path, now: dict[str, Any], reason: str
) -> None:
    watched = Watched(service, workers)
    written(tmp_path / "access", now)
    assert watched.failure().reason == reason
    assert workers.cancelled.wait(PATIENCE_SECONDS)  # the workers stop, too


def test_a_stream_whose_caller_may_do_more_goes_on(service: Service, workers: stand_in.StandIn, tmp_path: Path) -> None:
    watched, other = Watched(service, workers), Watched(service, workers, "old")
    written(tmp_path / "access", ada(roles=["reader", "writer"]))
    # Looked at together; the workers of the other one go on once this one is cancelled there.
    assert other.failure().reason == "UNAUTHENTICATED"
    assert [message.progress.run for message in watched.stream] == ["waiting"] * stand_in.PROGRESS


def test_one_caller_does_not_take_every_place_for_calls_to_the_workers(
    serve: Serve, workers: stand_in.StandIn, tmp_path: Path
) -> None:
    bob = entry("bob", "bob", roles=["reader"], run_prefixes=["*"])
    service = serve(
        token=None,
        access_file=Path(written(tmp_path / "access", ada(), bob)),
        gateway=workers.address,
        gateway_token=stand_in.TOKEN,
        limits=Limits(forwarded_calls=2, principal_forwarded_calls=1),
    )
    watched = Watched(service, workers)
    watch = capture_pb2.WatchCaptureRequest(run="new")
    code, failure = Caller(service.address, "ada").failure("CaptureService", "WatchCapture", watch)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failure is not None
    assert (failure.reason, failure.details["allowed"]) == ("BUSY", "1")
    assert len(Caller(service.address, "bob")("CaptureService", "WatchCapture", watch)) == stand_in.PROGRESS
    workers.cancelled.set()  # lets the workers go on
    assert len(list(watched.stream)) == stand_in.PROGRESS
