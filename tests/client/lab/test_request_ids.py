"""The id of a request in errors of the client: of single answers and of streams, the same in all tries of a call."""

import asyncio
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

import actstore
from actstore import ActstoreError
from actstore_api.reasons import to_status
from actstore_api.records.terms import Failure
from actstore_api.request_ids import HEADER
from actstore_api.v1 import catalog_pb2, service_pb2_grpc

MADE = re.compile("[0-9a-f]{32}")


class Refusing(service_pb2_grpc.CatalogServiceServicer, service_pb2_grpc.ActivationServiceServicer):
    """Notes the id of each try, and says it again with the error, as a service does."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.failure = Failure("SERVICE_UNAVAILABLE", "not now", {})

    def ListRuns(self, request: Any, context: Any) -> Any:
        self._refuse(context)

    def GetRun(self, request: Any, context: Any) -> Any:
        return catalog_pb2.GetRunResponse()

    def ReadTokens(self, request: Any, context: Any) -> Iterator[Any]:
        self._refuse(context)
        yield

    def _refuse(self, context: Any) -> None:
        self.ids.append(dict(context.invocation_metadata())[HEADER])
        status = rpc_status.to_status(to_status(self.failure))
        context.set_trailing_metadata((*status.trailing_metadata, (HEADER, self.ids[-1])))
        context.abort(status.code, status.details)


@pytest.fixture
def refusing() -> Refusing:
    return Refusing()


@pytest.fixture
def address(refusing: Refusing) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_CatalogServiceServicer_to_server(refusing, server)
    service_pb2_grpc.add_ActivationServiceServicer_to_server(refusing, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def _error(lab: actstore.Lab) -> ActstoreError:
    with pytest.raises(ActstoreError) as caught:
        lab.runs()
    return caught.value


def test_all_tries_of_a_call_have_one_id_and_the_next_call_another(address: str, refusing: Refusing) -> None:
    retries = actstore.Retries(3, initial_backoff_seconds=0.01)
    with actstore.connect(address, retries=retries) as lab:
        first, second = _error(lab), _error(lab)
    assert refusing.ids == [first.request_id] * 3 + [second.request_id] * 3
    assert first.request_id != second.request_id
    assert all(MADE.fullmatch(one) for one in refusing.ids)


def test_only_a_fault_prints_its_id(address: str, refusing: Refusing) -> None:
    """What a user can mend needs no log."""
    with actstore.connect(address) as lab:
        refusing.failure = Failure("INTERNAL", "internal error", {})
        fault = _error(lab)
        assert f"\n  request: {fault.request_id}\n" in str(fault)
        refusing.failure = Failure("RUN_NOT_FOUND", "there is no such run", {})
        mistake = _error(lab)
        assert mistake.request_id == refusing.ids[-1]
        assert str(mistake.request_id) not in str(mistake)


def test_an_error_of_asyncio_has_it(address: str, refusing: Refusing) -> None:
    async def asked() -> ActstoreError:
        async with actstore.connect_async(address, retries=actstore.Retries(1)) as lab:
            with pytest.raises(ActstoreError) as caught:
                await lab.runs()
        return caught.value

    assert asyncio.run(asked()).request_id == refusing.ids[-1]


def test_an_error_of_a_stream_has_it(remote: actstore.Lab) -> None:
    """Of a real service, which found the error after it had begun to answer."""
    run = remote.run("planted")
    with pytest.raises(ActstoreError) as caught:
        list(run.activations("resid_post.77"))
    assert MADE.fullmatch(str(caught.value.request_id))


def test_an_error_without_a_service_has_none(free_port: int) -> None:
    with actstore.connect(f"127.0.0.1:{free_port}", retries=actstore.Retries(1)) as lab:
        assert _error(lab).request_id is None
