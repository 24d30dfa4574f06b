"""A store that goes away and comes back: the metrics say so, and the service stays ready."""

import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from uuid import uuid4

import grpc
import pytest

from actstore_api.v1 import catalog_pb2
from actstore_service.settings import Limits
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.access import S3Access
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import BadRequest
from tests.servers import SeaweedServer
from tests.service.conftest import Caller, Serve
from tests.service.observed.scrapes import scrape
from tests.stored_run import write_stored_run
from tests.waiting import PATIENCE_SECONDS, wait_until


@pytest.fixture(scope="module")
def weed() -> Iterator[SeaweedServer]:
    """One that may be killed."""
    with SeaweedServer() as server:
        yield server


def test_an_outage_is_seen_and_empties_no_endpoints(
    serve: Serve, connect: Callable[..., Caller], until: Callable[..., None], weed: SeaweedServer
) -> None:
    bucket = open_bucket(
        f"s3://{weed.bucket}/{uuid4().hex}", S3Access(weed.endpoint, weed.access_key, weed.secret_key, secure=False)
    )
    write_stored_run(bucket)
    service = serve(bucket, limits=Limits(store_quiet_seconds=0.5))
    call = connect(service)
    call("CatalogService", "ListRuns", catalog_pb2.ListRunsRequest())
    wait_until(lambda: scrape(service)["actstore_store_up", ()] == 1, "the store to be up")
    assert scrape(service)["actstore_store_bytes_total", ("read",)] > 0
    weed.kill()
    wait_until(lambda: scrape(service)["actstore_store_up", ()] == 0, "the outage to be seen though nobody asks")
    with urllib.request.urlopen(f"http://{service.metrics_address}/readyz", timeout=PATIENCE_SECONDS) as answer:
        assert answer.status == 200
    code, failure = call.failure("CatalogService", "ListRuns", catalog_pb2.ListRunsRequest())
    assert code is grpc.StatusCode.UNAVAILABLE
    assert failure is not None
    assert failure.reason == "STORE_UNREACHABLE"
    found = scrape(service)
    assert found["actstore_store_operations_total", ("list", "unreachable")] >= 2
    assert found["actstore_refused_total", ("catalog", "STORE_UNREACHABLE")] == 1
    weed.restart()
    wait_until(lambda: scrape(service)["actstore_store_up", ()] == 1, "the store to be back")
    until(lambda: bool(call("CatalogService", "ListRuns", catalog_pb2.ListRunsRequest()).runs))


def test_a_service_that_cannot_listen_watches_no_store(serve: Serve, bucket: Bucket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        before = _watches()
        with pytest.raises(BadRequest, match="cannot listen"):
            serve(bucket, listen=f"127.0.0.1:{taken.getsockname()[1]}")
        wait_until(lambda: _watches() <= before, "the end of the watch")


def _watches() -> set[int | None]:
    return {thread.ident for thread in threading.enumerate() if thread.name == "store watch"}
