"""Stores that break under real processes, seen through the public client: cut objects, a full disk, refused keys."""

import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

import actstore
from actstore._stack import seaweed as _seaweed
from actstore._stack import stack as _local_stack
from models import corpus
from tests.worker_process import WorkerProcess

pytestmark = pytest.mark.stack

MODELS = Path(__file__).parents[2] / "models"
SAE = "pystdlib-resid_post.1"
SITE = "resid_post.1"
FEATURE = 303
TRIES = 5
# Each product of a shard, by the beginning of its file's name, and a question that reads it; first those that are soon
# read from merged objects instead.
PRODUCTS: dict[str, Callable[[actstore.Run], object]] = {
    f"index-{SAE}": lambda run: run.feature(SAE, FEATURE).top(),
    f"statistics-{SAE}": lambda run: run.feature(SAE, FEATURE).statistics(),
    "tokens": lambda run: run.tokens(),
    "resid_post.1": lambda run: run.activations(SITE),
    "norms": lambda run: run.norms(by="position"),
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[actstore.LocalStack]:
    folder = tmp_path_factory.mktemp("failing-store")
    (folder / "datasets").mkdir()
    texts = [text for text, _ in zip(corpus.texts(held_out=True), range(20), strict=False)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "datasets" / "stdlib.jsonl").write_text(lines)
    with actstore.LocalStack(
        model_folders=[MODELS], dataset_folders=[folder / "datasets"], port=0, state_folder=folder / "state"
    ) as started:
        yield started


@pytest.fixture(scope="module")
def lab(stack: actstore.LocalStack) -> Iterator[actstore.Lab]:
    with stack.lab as found:
        yield found


def capture(lab: actstore.Lab, name: str, max_tokens: int) -> actstore.Capture:
    return lab.capture(
        "pystdlib",
        dataset="stdlib.jsonl",
        sites=[SITE],
        saes=[SAE],
        name=name,
        max_tokens=max_tokens,
        sequences_per_shard=4,
    )


@pytest.fixture(scope="module")
def whole(lab: actstore.Lab) -> actstore.Run:
    return capture(lab, "whole", 5_000).wait(progress=False, check_saes=False)


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_truncated_object_is_named(stack: actstore.LocalStack, whole: actstore.Run, product: str) -> None:
    """The same error through the service and on the bucket; whole again, the object answers again."""
    path = min(Path(stack.store).glob(f"runs/whole/data/*/{product}.parquet"))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    seen = []
    for lab in (stack.lab, actstore.connect(stack.store)):
        with lab, pytest.raises(actstore.CorruptObject) as caught:
            PRODUCTS[product](lab.run("whole"))
        error = caught.value
        seen.append((error.reason, error.message, error.field, error.value, error.next_step))
    path.write_bytes(data)
    assert seen[0] == seen[1]
    assert seen[0][0] == "OBJECT_CORRUPT"
    assert seen[0][3] == path.relative_to(stack.store).as_posix()
    assert PRODUCTS[product](whole) is not None


def test_a_full_disk_fails_the_capture_and_keeps_what_is_committed(
    stack: actstore.LocalStack, lab: actstore.Lab
) -> None:
    """The kernel refuses the capture worker's bytes past a limit on file size: a real failing write."""
    error = None
    (worker,) = WorkerProcess("", "", stack._processes["workers"].pid).processes("ray::_CaptureActor")
    for attempt in range(TRIES):  # a capture may be over before it meets the limit
        started = capture(lab, f"full-{attempt}", 12_000)
        next(news for news in started.progress() if news.shards_committed)
        unlimited = resource.prlimit(worker, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        try:
            started.wait(progress=False, check_saes=False)
        except actstore.StoreFailed as failed:
            error = failed
            break
        resource.prlimit(worker, resource.RLIMIT_FSIZE, unlimited)
    assert error is not None
    assert error.reason == "STORE_FULL"
    assert (error.field, error.value) == ("store", stack.store)
    assert "what is committed is kept" in str(error)
    for door in (stack.lab, actstore.connect(stack.store)):
        with door:
            run = door.run(started.run_name)
            assert not run.complete
            assert len(run.tokens()) == len(run.activations(SITE)) == run.tokens_committed > 0
    resource.prlimit(worker, resource.RLIMIT_FSIZE, unlimited)
    finished = capture(lab, started.run_name, 12_000).wait(progress=False, check_saes=False)
    assert finished.complete
    assert len(finished.tokens()) == finished.tokens_total


class ReaderKeys(_seaweed.SeaweedFS):
    def __enter__(self) -> Self:
        super().__enter__()
        self.access_key, self.secret_key = self.reader_access_key, self.reader_secret_key
        return self


class WrongKeys(_seaweed.SeaweedFS):
    def __enter__(self) -> Self:
        super().__enter__()
        self.secret_key = "not-the-secret"
        return self


@pytest.mark.parametrize(
    ("keys", "says"),
    [(ReaderKeys, "may not write to s3://actstore"), (WrongKeys, "s3://actstore refuses these credentials")],
)
def test_workers_refuse_a_store_that_refuses_them(
    keys: type[_seaweed.SeaweedFS], says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_local_stack, "SeaweedFS", keys)
    stack = actstore.LocalStack(s3=True, port=0, state_folder=tmp_path / "state")
    with pytest.raises(actstore.StackFailed, match="status 2 before it was ready") as caught:
        stack.start()
    said = [line for line in str(caught.value).splitlines() if "actstore_worker:" in line]
    assert len(said) == 1
    assert says in said[0]
    assert "Traceback" not in str(caught.value)
    assert "not-the-secret" not in str(caught.value)
    assert not (tmp_path / "state" / "stack.json").exists()
