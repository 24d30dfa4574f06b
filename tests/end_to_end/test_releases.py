"""Parts of the last release and of this version, over real sockets, from what that release said.

`releases/<version>.json` has calls of a client of that release to a service of that release, over a golden store: the
bytes of each question and of its answers. proto/baseline.binpb is its contract. At a release, record the next file with
its own client.
"""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

import actstore
from actstore_api.verbs import VERBS
from actstore_service.server import Service
from actstore_service.settings import Settings
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.runs.wanted import Queued, seal_queued
from actstore_storage.upkeep.fsck import check_runs
from actstore_worker.capture.preparing import Preparing, sealed_request
from tests.end_to_end.released import Contract
from tests.waiting import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
RELEASE = json.loads((Path(__file__).parent / "releases" / "0.2.0.json").read_text())
TOKEN = "token"


@pytest.fixture(scope="module")
def contract() -> Contract:
    return Contract()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    golden = ROOT / "tests" / "storage" / "golden" / RELEASE["store"]
    return Path(shutil.copytree(golden, tmp_path_factory.mktemp("released") / "store"))


@pytest.fixture(scope="module")
def service(store: Path) -> Iterator[Service]:
    settings = Settings(listen="127.0.0.1:0", metrics_listen="127.0.0.1:0", token=TOKEN)
    running = Service(open_bucket(str(store)), settings)
    yield running
    running.stop()


def _bytes(texts: list[str]) -> list[bytes]:
    return [bytes.fromhex(text) for text in texts]


@pytest.mark.parametrize("call", RELEASE["calls"], ids=lambda call: call["path"].rpartition("/")[2])
def test_a_client_of_the_release_gets_the_answers_of_its_own_service(
    call: dict[str, Any], service: Service, contract: Contract
) -> None:
    verb = VERBS[call["path"].rpartition("/")[2]]
    (question,) = _bytes([call["question"]])
    with grpc.insecure_channel(service.address) as channel:
        ask = channel.unary_stream(verb.path) if verb.streams else channel.unary_unary(verb.path)
        found = ask(question, metadata=[("authorization", f"Bearer {TOKEN}")], timeout=PATIENCE_SECONDS)
        answers = list(found) if verb.streams else [found]
    expected = [contract.answer(call["path"], data) for data in _bytes(call["answers"])]
    assert [contract.answer(call["path"], data) for data in answers] == expected


class ReleasedService(grpc.GenericRpcHandler):
    """Answers what the service of the release answered. It reads questions as that did, and has only its methods."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._calls = {call["path"]: [] for call in RELEASE["calls"]}
        for call in RELEASE["calls"]:
            question = contract.question(call["path"], bytes.fromhex(call["question"]))
            self._calls[call["path"]].append((question, _bytes(call["answers"])))

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if call.method not in self._calls:
            return None

        def several(asked: bytes, _: Any) -> Iterator[bytes]:
            question = self._contract.question(call.method, asked)
            yield from next(answers for known, answers in self._calls[call.method] if known == question)

        if VERBS[call.method.rpartition("/")[2]].streams:
            return grpc.unary_stream_rpc_method_handler(several)
        return grpc.unary_unary_rpc_method_handler(lambda asked, context: next(several(asked, context)))


@pytest.fixture
def lab(contract: Contract) -> Iterator[actstore.Lab]:
    """A client of this version, at a service of the release."""
    server = grpc.server(ThreadPoolExecutor(2), handlers=[ReleasedService(contract)])
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    with actstore.connect(address, token=TOKEN) as opened:
        yield opened
    server.stop(None).wait()


def test_a_client_gets_its_answers_from_a_service_of_the_release(lab: actstore.Lab, store: Path) -> None:
    own = actstore.connect(str(store)).run("float32")
    run = lab.run("float32")
    assert lab.runs() == actstore.connect(str(store)).runs()
    assert run.norms() == own.norms()
    assert run.fit_growth() == own.fit_growth()
    assert run.tokens().table.equals(own.tokens().table)
    assert (run.activations("resid_post.1").to_numpy() == own.activations("resid_post.1").to_numpy()).all()
    assert run.feature("planted-sae", 3).statistics() == own.feature("planted-sae", 3).statistics()
    assert run.feature("planted-sae", 3).top(3).table.equals(own.feature("planted-sae", 3).top(3).table)


def test_what_a_service_of_the_release_does_not_have_is_refused_with_both_versions(lab: actstore.Lab) -> None:
    with pytest.raises(actstore.BadRequest, match=r"a version that does not say what it is; this client has version"):
        lab.service_info()


def test_an_option_that_a_service_of_the_release_would_ignore_is_refused(
    lab: actstore.Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actstore_api.levels.SINCE", {"GetNormProfile.quantiles": 2})
    run = lab.run("float32")
    assert run.norms() is not None
    with pytest.raises(actstore.BadRequest, match="this call needs API level 2") as refused:
        run.norms(quantiles=(0.5,))
    assert refused.value.reason == "SERVICE_TOO_OLD"
    monkeypatch.setattr("actstore_api.levels.SINCE", {"ReadTokens": 2})
    with pytest.raises(actstore.BadRequest, match="this call needs API level 2"):
        run.tokens()


def test_a_client_is_refused_by_a_service_that_is_too_new_for_it(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with actstore.connect(service.address, token=TOKEN) as opened:
        assert opened.service_info().api_level == 2
        monkeypatch.setattr("actstore_api.levels.OLDEST_LEVEL", 3)
        with pytest.raises(actstore.BadRequest, match=r"python/.* has API level 2; the service has version"):
            opened.runs()


def test_requests_of_the_queue_are_read_across_versions(contract: Contract) -> None:
    """Those of the release by this version, and, after a rollback, those of this version by the release, which refuses
    a record with any field that it does not know.
    """
    store = open_bucket(str(ROOT / "tests" / "storage" / "golden" / "queue"))
    nothing: Any = None
    asked = {request.run: (request, place) for request, place in Preparing(store, nothing, nothing).wanted()}
    old, place = asked["asked-by-0.2.0"]
    assert place == Queued()
    assert (old.dataset.max_documents, old.dense_sites) == (100, ("resid_post.1", "z.1.0"))
    new, place = asked["queued"]
    assert place == Queued("ann", "interactive", 1.75e9, 4096.0)
    assert list(asked) == ["asked-by-0.2.0", "queued"]  # without a place comes first
    record = json.loads(sealed_request(new))
    del record["record_sha256"]  # which the release takes off
    read = json_format.ParseDict(record, contract.message("CaptureSpecification")())
    assert (read.run, read.dataset.max_documents, read.sequences_per_shard) == ("queued", 100, 10)
    assert sealed_request(new) == store.get("captures/queued.json")
    assert seal_queued("queued", place) == store.get("captures-queued/queued.json")
    assert check_runs(store).sound
