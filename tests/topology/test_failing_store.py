"""A store that breaks under real processes, seen through the public client: cut objects, a full disk."""

import resource
from collections.abc import Callable
from pathlib import Path

import pytest

import actstore
from tests.worker_process import WorkerProcess

pytestmark = pytest.mark.stack

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


@pytest.fixture
def store(folder: Path) -> Path:
    return folder / "store"


def capture(lab: actstore.Lab, name: str, max_tokens: int) -> actstore.Capture:
    return lab.capture(
        "pystdlib",
        dataset="stdlib.jsonl",
        dense_sites=[SITE],
        saes=[SAE],
        run=name,
        max_tokens=max_tokens,
        batching=actstore.Batching(sequences_per_shard=4),
    )


@pytest.fixture(scope="package")
def whole(lab: actstore.Lab) -> actstore.Run:
    return capture(lab, "stdlib", 5_000).wait(progress=False, check_saes=False)


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_truncated_object_is_named(store: Path, lab: actstore.Lab, whole: actstore.Run, product: str) -> None:
    """The same error through the service and on the bucket; whole again, the object answers again."""
    path = min(store.glob(f"runs/stdlib/data/*/{product}.parquet"))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    seen = []
    for door in (lab, actstore.connect(store)):
        with pytest.raises(actstore.CorruptObject) as caught:
            PRODUCTS[product](door.run("stdlib"))
        error = caught.value
        seen.append((error.reason, error.message, error.field, error.value, error.next_step))
    path.write_bytes(data)
    assert seen[0] == seen[1]
    assert seen[0][0] == "OBJECT_CORRUPT"
    assert seen[0][3] == path.relative_to(store).as_posix()
    assert PRODUCTS[product](whole) is not None


def test_a_full_disk_fails_the_capture_and_keeps_what_is_committed(
    store: Path, lab: actstore.Lab, workers: WorkerProcess
) -> None:
    """The kernel refuses the capture workers' bytes past a limit on file size: a real failing write."""
    error = None
    for attempt in range(TRIES):  # a capture may be over before it meets the limit
        started = capture(lab, f"full-{attempt}", 12_000)
        next(news for news in started.progress() if news.shards_committed)
        limit_files(workers, 20_000)
        try:
            started.wait(progress=False, check_saes=False)
        except actstore.StoreFailed as failed:
            error = failed
            break
        limit_files(workers, resource.RLIM_INFINITY)
    assert error is not None
    assert error.reason == "STORE_FULL"
    assert (error.field, error.value) == ("store", str(store))
    assert "committed shards are kept" in str(error)
    for door in (lab, actstore.connect(store)):
        run = door.run(started.run)
        assert not run.complete
        assert len(run.tokens()) == len(run.activations(SITE)) == run.tokens_committed > 0
    limit_files(workers, resource.RLIM_INFINITY)
    finished = capture(lab, started.run, 12_000).wait(progress=False, check_saes=False)
    assert finished.complete
    assert len(finished.tokens()) == finished.tokens_total


def limit_files(workers: WorkerProcess, size: int) -> None:
    """Of each capture worker, from now on."""
    for worker in workers.processes("ray::_CaptureActor"):
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
