"""A flood is refused with words: how many are too many, and when to come back. What is counted is what clients saw."""

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from actstore_api.reasons import from_status
from actstore_api.v1 import catalog_pb2, norm_pb2
from actstore_service.calls.admission import Room
from actstore_storage.errors import ActstoreError
from tests.service.calls.conftest import service_over
from tests.waiting import PATIENCE_SECONDS

CALLS = 80
PUSHBACK = "grpc-retry-pushback-ms"


def test_a_floods_refusals_are_counted_and_say_when_to_come_back(wide_store: str) -> None:
    with service_over(wide_store, catalog_threads=1, waiting_calls=1, retry_seconds=2) as service:
        call = service.caller()
        ask = call.stub("CatalogService").ListRuns
        with ThreadPoolExecutor(CALLS) as pool:
            flood = [pool.submit(_outcome, ask, call.metadata) for _ in range(CALLS)]
        refused = [error for error in (one.result() for one in flood) if error is not None]
        counts = service.counts()
        call.channel.close()
    assert refused
    assert len(refused) == counts["actstore_refused_total", "catalog", "BUSY"]
    assert CALLS - len(refused) == counts["actstore_calls_total", "OK", "/actstore_api.v1.CatalogService/ListRuns"]
    for error in refused:
        status = rpc_status.from_call(error)
        failure = from_status(status)
        assert failure is not None
        assert (error.code(), failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "BUSY")
        assert (failure.details["value"], failure.details["allowed"]) == ("3", "2")
        assert 1000 <= _retry_milliseconds(status) <= 3000
        assert dict(error.trailing_metadata())[PUSHBACK] == str(_retry_milliseconds(status))
    # So that those who were refused together do not come back together.
    assert len(Counter(_retry_milliseconds(rpc_status.from_call(error)) for error in refused)) > 1 or len(refused) == 1


def _outcome(ask, metadata) -> grpc.RpcError | None:
    try:
        ask(catalog_pb2.ListRunsRequest(), timeout=PATIENCE_SECONDS, metadata=metadata)
    except grpc.RpcError as error:
        return error
    return None


def _retry_milliseconds(status) -> int:
    retry = error_details_pb2.RetryInfo()
    assert any(packed.Unpack(retry) for packed in status.details)
    return retry.retry_delay.ToMilliseconds()


def test_what_is_too_large_is_not_to_be_tried_again(call) -> None:
    much = norm_pb2.GetNormProfileRequest(runs=[f"run{number}" for number in range(1000)])
    with pytest.raises(grpc.RpcError) as caught:
        call("NormService", "GetNormProfile", much)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(caught.value.trailing_metadata())[PUSHBACK] == "-1"


def test_who_waits_is_let_in_by_turns() -> None:
    asyncio.run(_turns())


async def _turns() -> None:
    room = Room("reads", places=1, waiting_max=4)
    await room.enter("holder")
    came: list[str] = []

    async def come(name: str, caller: str) -> None:
        await room.enter(caller)
        came.append(name)

    waiting = [asyncio.create_task(come(f"{caller}{number}", caller)) for caller, number in ("a1", "a2", "a3", "b1")]
    await asyncio.sleep(0)
    with pytest.raises(ActstoreError) as caught:
        await room.enter("c")
    assert caught.value.reason == "BUSY"
    waiting[1].cancel()  # a2 leaves, and its turn with it
    for _ in range(3):
        room.leave()
        await asyncio.sleep(0)
    assert came == ["a1", "b1", "a3"]
    room.leave()
    assert (room.taken, room.waiting) == (0, 0)
