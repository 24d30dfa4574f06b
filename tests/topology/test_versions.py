"""Old and new client, service and workers, each with each, over real workers. Old parts know the release's contract."""

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import actstore
from actstore_service.server import Service
from actstore_service.settings import Settings
from actstore_storage.bucket.opening import open_bucket
from tests.end_to_end.released import Contract, ReleasedClient, released_part
from tests.topology.caller import CALL_SECONDS
from tests.worker_process import WorkerProcess

pytestmark = pytest.mark.stack

OLD, NEW = "old", "new"
TOKEN = "service-token"
TEXT = "Mary gave a book"
PAIR = ("When Mary and John went", "When John and Mary went")
COMPLETE = 3  # CAPTURE_STATE_COMPLETE


@pytest.fixture(scope="module")
def contract() -> Contract:
    return Contract()


@pytest.fixture(params=itertools.product((OLD, NEW), repeat=2), ids="-".join)
def address(
    request: pytest.FixtureRequest, folder: Path, workers: WorkerProcess, contract: Contract
) -> Iterator[tuple[str, str]]:
    """A service before the workers, each old or new; and which service it is."""
    service_age, workers_age = request.param
    with ExitStack() as stack:
        gateway = (
            stack.enter_context(released_part(workers.address, contract)) if workers_age == OLD else workers.address
        )
        free = {"listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0", "token": TOKEN}
        service = Service(
            open_bucket(str(folder / "store")), Settings(**free, gateway=gateway, gateway_token=workers.token)
        )
        stack.callback(service.stop)
        old = stack.enter_context(released_part(service.address, contract))
        yield (old if service_age == OLD else service.address), "-".join(request.param)


def test_a_client_of_the_release_captures_and_asks(address: tuple[str, str], contract: Contract) -> None:
    where, ages = address
    with ReleasedClient(where, TOKEN, contract) as client:
        specification = {
            "run": f"old-{ages}",
            "model": {"name": "tiny"},
            "dataset": {"name": "words.jsonl", "max_documents": 20},
            "dense_sites": ["resid_post.1"],
        }
        [started] = client.ask("CaptureService", "StartCapture", CALL_SECONDS, specification=specification)
        *_, last = client.ask("CaptureService", "WatchCapture", CALL_SECONDS, run=started.run)
        assert last.progress.state == COMPLETE
        assert last.progress.tokens_committed == last.progress.tokens_total > 0
        [lens] = client.ask("ModelService", "GetTextLens", CALL_SECONDS, model={"name": "tiny"}, text={"text": TEXT})
        assert lens.tops.arrow_ipc_stream
        answers = {"clean_answer": {"text": "John"}, "corrupt_answer": {"text": "Mary"}}
        pair = {"clean": {"text": PAIR[0]}, "corrupt": {"text": PAIR[1]}, **answers}
        *_, end = client.ask("PatchingService", "RunSweep", CALL_SECONDS, model={"name": "tiny"}, pairs=[pair])
        assert end.result.clean_logit_difference != end.result.corrupt_logit_difference


def test_a_client_of_this_version_captures_and_asks(address: tuple[str, str]) -> None:
    where, ages = address
    with actstore.connect(where, token=TOKEN) as lab:
        asked = {"dataset": "words.jsonl", "max_tokens": 300, "dense_sites": ["resid_post.1"], "run": f"new-{ages}"}
        run = lab.capture("tiny", **asked).wait(progress=False)
        assert run.complete
        assert lab.tokens("tiny", TEXT).ids[1:]
        sweep = lab.patch("tiny", clean=PAIR[0], corrupt=PAIR[1], answers=("John", "Mary"))
        assert len(sweep.table)
        if ages.startswith(OLD):
            with pytest.raises(actstore.BadRequest, match="a version that does not say what it is"):
                lab.service_info()
        else:
            assert (lab.service_info().workers is None) == ages.endswith(OLD)


def test_what_old_workers_would_ignore_is_refused_by_a_new_service_and_client(
    address: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where, ages = address
    monkeypatch.setattr("actstore_api.levels.SINCE", {"RunSweep.fresh": 2})
    with actstore.connect(where, token=TOKEN) as lab:
        asked = {"clean": PAIR[0], "corrupt": PAIR[1], "answers": ("John", "Mary")}
        assert len(lab.patch("tiny", **asked).table)
        if OLD not in ages:
            assert len(lab.patch("tiny", **asked, fresh=True).table)
            return
        with pytest.raises(actstore.BadRequest, match="this call needs API level 2") as refused:
            lab.patch("tiny", **asked, fresh=True)
        assert refused.value.reason == ("SERVICE_TOO_OLD" if ages.startswith(OLD) else "WORKERS_TOO_OLD")
