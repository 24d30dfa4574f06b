"""A caller's bytes a minute: who is beyond them is told how many, and when to come back."""

import asyncio
from dataclasses import replace

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from actstore_api.reasons import from_status
from actstore_api.v1 import catalog_pb2
from actstore_service.access.principals import EVERY_ROLE, EVERY_RUN, Principal
from actstore_service.calls.byte_quota import ByteQuota
from actstore_service.calls.call import Call
from actstore_service.calls.classes import CallClass
from actstore_service.settings import Limits
from actstore_storage.errors import ActstoreError
from tests.service.calls.conftest import Running, service_over
from tests.service.conftest import TOKEN
from tests.waiting import PATIENCE_SECONDS

QUESTION = catalog_pb2.ListRunsRequest()


def runs(service: Running, token: str = TOKEN) -> catalog_pb2.ListRunsResponse:
    call = service.caller(token)
    try:
        return call.stub("CatalogService").ListRuns(QUESTION, timeout=PATIENCE_SECONDS, metadata=call.metadata)
    finally:
        call.channel.close()


def test_who_is_beyond_the_bytes_of_a_minute_is_refused_until_they_are_back(wide_store: str) -> None:
    with service_over(wide_store) as service:
        moved = runs(service).ByteSize() + QUESTION.ByteSize()
        assert service.counts()["actstore_principal_bytes_total", "shared"] == moved
    # So many that six seconds bring back what the first answer was too much.
    with service_over(wide_store, principal_bytes_a_minute=int(moved / 1.1)) as service:
        runs(service)
        with pytest.raises(grpc.RpcError) as caught:
            runs(service)
        status = rpc_status.from_call(caught.value)
        failure, retry = from_status(status), error_details_pb2.RetryInfo()
        assert failure is not None
        assert (failure.reason, failure.details["field"]) == ("BUSY", "principal_bytes_a_minute")
        assert int(moved / 1.1) < float(failure.details["value"]) <= moved
        assert failure.details["allowed"].startswith(f"at most {int(moved / 1.1)}; again in ")
        assert any(packed.Unpack(retry) for packed in status.details)
        assert retry.retry_delay.ToMilliseconds() >= 1000 * float(failure.details["retry_seconds"]) > 0
        assert service.counts()["actstore_quota_refusals_total", "principal_bytes_a_minute"] == 1
        assert service.counts()["actstore_quota_refusals_total", "tokens_a_minute"] == 0


def test_who_would_have_to_wait_for_long_is_not_told_to(wide_store: str) -> None:
    with service_over(wide_store, principal_bytes_a_minute=1) as service:
        runs(service)
        with pytest.raises(grpc.RpcError) as caught:
            runs(service)
        failure = from_status(rpc_status.from_call(caught.value))
        assert failure is not None
        assert failure.reason == "LIMIT_EXCEEDED"
        assert dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"] == "-1"


def test_a_stream_that_has_begun_waits_until_there_is_room_and_others_do_not() -> None:
    async def work() -> None:
        quota = ByteQuota(Limits(principal_bytes_a_minute=60_000))
        ann, bob = (
            Call("m", CallClass.STREAMS, None, {}, "", Principal(name, EVERY_ROLE, EVERY_RUN))
            for name in ("ann", "bob")
        )
        health = replace(ann, kind=CallClass.STANDARD)
        quota.received(health, bytes(90_000))
        quota.sent(health, bytes(90_000))
        quota.check("ann")
        quota.received(ann, bytes(60_000))
        quota.sent(ann, bytes(200))
        with pytest.raises(ActstoreError):
            quota.check("ann")
        await quota.pause(bob)
        quota.check("bob")
        await quota.pause(ann)
        quota.check("ann")
        assert (ann.received_bytes, quota.refusals) == (60_000, 1)

    asyncio.run(work())
