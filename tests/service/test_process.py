"""The whole process: what it says when it is ready, how it ends, and what it refuses to start with."""

import signal
import urllib.request
from pathlib import Path

import grpc
import pytest

from actstore._stack.seaweed import SeaweedFS
from actstore_api.v1 import catalog_pb2, feature_pb2
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.access import S3Access
from actstore_storage.bucket.opening import open_bucket
from tests.service.conftest import TOKEN, Caller
from tests.service.process import refused_start, running_service
from tests.stored_run import FIRING, SAE, StoredRun, write_stored_run
from tests.waiting import PATIENCE_SECONDS

TOP = feature_pb2.SampleExamplesRequest(run="planted", sae=SAE, features=[FIRING])


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_serves_until_the_signal(bucket: Bucket, stored: StoredRun, ending: signal.Signals) -> None:
    with running_service(ending, ACTSTORE_STORE=bucket.address, ACTSTORE_TOKEN=TOKEN) as ready:
        assert ready["ready"] == "service"
        call = Caller(ready["address"])
        with call.channel:
            runs = call("CatalogService", "ListRuns", catalog_pb2.ListRunsRequest()).runs
        assert [run.name for run in runs] == ["planted"]
        with urllib.request.urlopen(f"http://{ready['metrics']}/readyz", timeout=PATIENCE_SECONDS) as answer:
            assert answer.status == 200


def test_the_same_answers_over_s3(tmp_path: Path, bucket: Bucket, stored: StoredRun) -> None:
    with SeaweedFS(tmp_path / "weed") as weed:
        address = f"s3://{weed.bucket}/lab"
        access = S3Access(weed.endpoint, weed.access_key, weed.secret_key, secure=False)
        write_stored_run(open_bucket(address, access))
        # The service only reads, so a key that may only read is enough.
        s3 = {
            "ACTSTORE_STORE": address,
            "ACTSTORE_S3_ENDPOINT": weed.endpoint,
            "ACTSTORE_S3_ACCESS_KEY": weed.reader_access_key,
            "ACTSTORE_S3_SECRET_KEY": weed.reader_secret_key,
            "ACTSTORE_S3_SECURE": "0",
            "ACTSTORE_ANONYMOUS": "reader",
        }
        with (
            running_service(**s3) as on_s3,
            running_service(ACTSTORE_STORE=bucket.address, ACTSTORE_ANONYMOUS="reader") as on_disk,
        ):
            callers = [Caller(ready["address"], token=None) for ready in (on_s3, on_disk)]
            answers = [call("FeatureService", "SampleExamples", TOP) for call in callers]
            for call in callers:
                call.channel.close()
        assert answers[0] == answers[1]
        refusal = refused_start(**(s3 | {"ACTSTORE_S3_SECRET_KEY": "wrong-secret"}))
        assert "wrong-secret" not in refusal


def test_refuses_to_listen_beyond_loopback_without_a_token(bucket: Bucket) -> None:
    everywhere = "0.0.0.0:0"
    assert "ACTSTORE_TOKEN" in refused_start(ACTSTORE_STORE=bucket.address, ACTSTORE_LISTEN=everywhere)
    # An empty token is none.
    told = {"ACTSTORE_STORE": bucket.address, "ACTSTORE_LISTEN": everywhere}
    assert "ACTSTORE_TOKEN" in refused_start(**told, ACTSTORE_TOKEN="")
    with running_service(**told, ACTSTORE_TOKEN=TOKEN) as ready:
        call = Caller(f"127.0.0.1:{ready['address'].rpartition(':')[2]}", token=None)
        with call.channel:
            code, _ = call.failure("CatalogService", "ListRuns", catalog_pb2.ListRunsRequest())
        assert code is grpc.StatusCode.UNAUTHENTICATED


def test_refuses_to_start_without_what_it_needs(tmp_path: Path) -> None:
    assert "ACTSTORE_STORE" in refused_start()
    assert str(tmp_path / "absent") in refused_start(ACTSTORE_STORE=str(tmp_path / "absent"), ACTSTORE_TOKEN=TOKEN)
    s3 = {"ACTSTORE_STORE": "s3://bucket", "ACTSTORE_S3_ENDPOINT": "127.0.0.1:1"}
    assert "ACTSTORE_S3_ACCESS_KEY" in refused_start(**s3)
    assert "ACTSTORE_GATEWAY_TOKEN" in refused_start(ACTSTORE_STORE=str(tmp_path), ACTSTORE_GATEWAY="127.0.0.1:1")
    assert "ACTSTORE_METRICS_LISTEN" in refused_start(ACTSTORE_STORE=str(tmp_path), ACTSTORE_METRICS_LISTEN="9433")
    for gateway in ("http://lab:1", "lab", "::1:99", "lab:99999"):
        told = {"ACTSTORE_GATEWAY": gateway, "ACTSTORE_GATEWAY_TOKEN": "token"}
        assert f"ACTSTORE_GATEWAY '{gateway}' is not host:port" in refused_start(ACTSTORE_STORE=str(tmp_path), **told)
    for variable in ("ACTSTORE_TOKEN", "ACTSTORE_GATEWAY_TOKEN"):
        refused = refused_start(ACTSTORE_STORE=str(tmp_path), **{variable: "hidden\n"})
        assert f"{variable} contains a character" in refused
        assert "hidden" not in refused
    for bytes_held in ("-1", "much"):
        refused = refused_start(ACTSTORE_STORE=str(tmp_path), ACTSTORE_HELD_ROW_BYTES=bytes_held)
        assert "ACTSTORE_HELD_ROW_BYTES" in refused
