"""`buf curl`, a gRPC client that is not ours and knows nothing of the contract, against the real service process."""

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from google.rpc import error_details_pb2

from actstore_storage.bucket.opening import open_bucket
from tests.service.process import running_service
from tests.stored_run import DENSE_SITE, StoredRun, write_stored_run
from tests.waiting import PATIENCE_SECONDS

BUF = Path(__file__).parents[2] / "node_modules" / ".bin" / "buf"
TOKEN = "service-token"
INVALID_ARGUMENT, NOT_FOUND, UNAUTHENTICATED = 3, 5, 16


@pytest.fixture(scope="module", autouse=True)
def _buf() -> None:
    if not BUF.exists():
        told = "buf is missing (npm was not there at `make setup`): the service is left untested by a foreign client"
        if os.environ.get("CI") == "true":
            pytest.fail(told)
        pytest.skip(told)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, StoredRun]]:
    store = tmp_path_factory.mktemp("store")
    stored = write_stored_run(open_bucket(str(store)))
    with running_service(ACTSTORE_STORE=str(store), ACTSTORE_TOKEN=TOKEN) as ready:
        yield ready["address"], stored


def _curl(address: str, method: str, request: dict[str, Any], token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    """The schema comes from the service itself, by reflection."""
    url = f"http://{address}/actstore_api.v1.{method}"
    tokens = [f"--header=authorization: Bearer {token}", f"--reflect-header=authorization: Bearer {TOKEN}"]
    command = (
        str(BUF),
        "curl",
        "--http2-prior-knowledge",
        "--protocol=grpc",
        *tokens,
        "--data",
        json.dumps(request),
        url,
    )
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)


def _answers(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    decoder, text, answers = json.JSONDecoder(), done.stdout.strip(), []
    while text:
        answer, end = decoder.raw_decode(text)
        answers.append(answer)
        text = text[end:].lstrip()
    return answers


def _error_info(done: subprocess.CompletedProcess[str]) -> error_details_pb2.ErrorInfo:
    details = {detail["type"]: detail["value"] for detail in json.loads(done.stderr)["details"]}
    assert set(details) == {"google.rpc.ErrorInfo", "google.rpc.RequestInfo"}
    unpadded = details["google.rpc.ErrorInfo"]
    return error_details_pb2.ErrorInfo.FromString(base64.b64decode(unpadded + "=" * (-len(unpadded) % 4)))


def test_unary(served: tuple[str, StoredRun]) -> None:
    address, stored = served
    (answer,) = _answers(_curl(address, "CatalogService/GetRun", {"run": "planted"}))
    assert answer["run"]["denseSites"] == [DENSE_SITE]
    assert int(answer["run"]["tokensCommitted"]) == len(stored.tokens.token)


def test_stream(served: tuple[str, StoredRun]) -> None:
    address, stored = served
    answers = _answers(_curl(address, "ActivationService/ReadTokens", {"run": "planted"}))
    tables = [pa.ipc.open_stream(base64.b64decode(answer["rows"]["arrowIpcStream"])).read_all() for answer in answers]
    assert pa.concat_tables(tables)["token"].to_pylist() == stored.tokens.token.tolist()
    assert [answer["provenance"]["run"] for answer in answers if "provenance" in answer] == ["planted"]


def test_rich_error(served: tuple[str, StoredRun]) -> None:
    done = _curl(served[0], "CatalogService/GetRun", {"run": "absent"})
    assert done.returncode == 8 * NOT_FOUND
    info = _error_info(done)
    assert (info.domain, info.reason) == ("actstore", "RUN_NOT_FOUND")
    assert dict(info.metadata) == {"field": "run", "value": "absent", "allowed": "planted"}


def test_rich_error_of_a_stream(served: tuple[str, StoredRun]) -> None:
    request = {"run": "planted", "sites": ["resid_post.99"]}
    done = _curl(served[0], "ActivationService/ReadActivations", request)
    assert done.returncode == 8 * INVALID_ARGUMENT
    assert _error_info(done).reason == "SITE_UNKNOWN"


def test_without_the_token(served: tuple[str, StoredRun]) -> None:
    done = _curl(served[0], "CatalogService/ListRuns", {}, token="wrong")
    assert done.returncode == 8 * UNAUTHENTICATED
