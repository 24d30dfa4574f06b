"""kill -9 of every kind of process, at random moments of a capture: the run ends as if nothing had happened.

ACTSTORE_FAULT_KILLS says how many kills there are (default: one of each kind), ACTSTORE_FAULT_SEED makes the same ones
again; the seed is in the test's name. `make faults` asks for more of them.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import actstore
from actstore_api.v1 import capture_pb2, service_pb2_grpc
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.access import S3Access
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import NotThere, StoreError
from actstore_storage.format.products import NORM_SKETCHES
from actstore_storage.parquet.reading import open_product
from actstore_storage.runs.opening import open_run
from tests.coordinating import ThreadWorker, coordinator, watch
from tests.coordinating import run as run_here
from tests.faults.cluster import KillableLab, killable_lab
from tests.made_models.random_models import WORDS, save_model
from tests.worker_process import inherited, running_workers

pytestmark = pytest.mark.stack

# A run whose coordinator was killed is finished by the next one untold, and goes on where the same is asked for again.
ASKED_AGAIN = "coordinator asked again"
TARGETS = ("worker", "coordinator", ASKED_AGAIN, "node", "service", "store")
SEED = int(os.environ["ACTSTORE_FAULT_SEED"])  # tests/conftest.py chooses one where nobody has
KILLS = int(os.environ.get("ACTSTORE_FAULT_KILLS", str(len(TARGETS))))
SHARDS = 16
ENDS_SECONDS = 600.0
TRIES = 5


def kills() -> list[str]:
    """Each kind once, in random order, then any."""
    chosen = random.Random(SEED)
    order = chosen.sample(TARGETS, len(TARGETS)) + chosen.choices(TARGETS, k=max(0, KILLS - len(TARGETS)))
    return order[:KILLS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    save_model(folder / "models" / "tiny", "llama-grouped")
    chosen = random.Random(0)
    lines = (json.dumps({"text": " ".join(chosen.choices(WORDS, k=chosen.randint(1, 70)))}) for _ in range(40 * SHARDS))
    (folder / "data").mkdir()
    (folder / "data" / "words.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def lab(folder: Path) -> Iterator[KillableLab]:
    with killable_lab(folder) as lab:
        yield lab


@pytest.fixture(scope="module")
def bucket(lab: KillableLab) -> Bucket:
    access = S3Access(lab.seaweed.endpoint, lab.seaweed.access_key, lab.seaweed.secret_key, secure=False)
    return open_bucket(f"s3://{lab.seaweed.bucket}/faults", access)


def start(lab: actstore.Lab, name: str) -> actstore.Capture:
    return lab.capture(
        "tiny", dataset="words.jsonl", dense_sites=["resid_post.1", "z.2"], run=name,
        batching=actstore.Batching(packing=True, sequences_per_batch=4, sequences_per_shard=60),
    )  # fmt: skip


def contents(bucket: Bucket, run: str) -> dict[int, dict[str, tuple[int, int, str]]]:
    """By shard and product, the bytes, rows and SHA-256 of what was committed, but for sketches, drawn by chance."""
    snapshot = open_run(bucket, run)
    assert snapshot.complete
    assert [commit.shard for commit in snapshot.commits] == list(range(snapshot.record.shards_total))
    return {
        commit.shard: {
            product: (item.bytes, item.rows, item.sha256)
            for product, item in commit.objects.items()
            if product != NORM_SKETCHES
        }
        for commit in snapshot.commits
    }


@pytest.fixture(scope="module")
def undisturbed(lab: KillableLab, bucket: Bucket) -> dict[int, dict[str, tuple[int, int, str]]]:
    with lab.connect() as found:
        start(found, "undisturbed").wait(progress=False, check_saes=False)
    return contents(bucket, "undisturbed")


@contextmanager
def reading(bucket: Bucket, run: str) -> Iterator[list[Exception]]:
    """A reader who opens a run that has begun, again and again, and reads all that is committed; what went wrong is in
    the list.
    """
    found: list[Exception] = []
    over = threading.Event()

    def read() -> None:
        seen: set[int] = set()
        while not over.wait(0.2):
            try:
                for commit in open_run(bucket, run).commits:
                    if commit.shard in seen:
                        continue
                    for product, item in commit.objects.items():
                        with open_product(bucket, commit, product) as file:
                            assert file.read().num_rows == item.rows
                    seen.add(commit.shard)
            except StoreError:
                pass  # the store itself was killed
            except Exception as error:  # noqa: BLE001  told to the test
                found.append(error)
                return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield found
    finally:
        over.set()
        reader.join()


def wait(lab: KillableLab, run: str, target: str) -> None:
    """To the end, whoever has to be asked again on the way."""
    give_up = time.monotonic() + ENDS_SECONDS
    while time.monotonic() < give_up:
        with lab.connect() as found, suppress(actstore.Unavailable, actstore.NotFound):
            capture = start(found, run) if target == ASKED_AGAIN else found.attach(run)
            assert capture.wait(progress=False, check_saes=False).complete
            return
        time.sleep(0.5)
    pytest.fail(f"run {run} did not end in {ENDS_SECONDS} s: {lab.said()}")


@pytest.mark.parametrize(("number", "target"), list(enumerate(kills())), ids=lambda value: f"{SEED}-{value}")
def test_a_killed_process_loses_nothing(
    number: int, target: str, lab: KillableLab, bucket: Bucket, undisturbed: dict[int, dict[str, tuple[int, int, str]]]
) -> None:
    chosen = random.Random(SEED + number)
    for attempt in range(TRIES):
        run = f"killed-{number}-{attempt}"
        with lab.connect() as found:
            start(found, run)
        with reading(bucket, run) as went_wrong:
            with lab.connect() as found:
                committed = chosen.randrange(SHARDS // 2)
                next(news for news in found.attach(run).progress() if news.shards_committed >= committed)
            time.sleep(chosen.random() * 0.3)
            in_time = not open_run(bucket, run).complete
            if in_time:
                lab.kill("coordinator" if target == ASKED_AGAIN else target)
            wait(lab, run, target)
        assert not went_wrong
        assert contents(bucket, run) == undisturbed
        if in_time:
            return
    pytest.fail(f"each of {TRIES} kills would have come too late to matter")


def test_the_queue_survives_a_killed_coordinator(
    lab: KillableLab, bucket: Bucket, undisturbed: dict[int, dict[str, tuple[int, int, str]]]
) -> None:
    """Those that waited end in the order in which they were submitted, which is not that of their names."""
    for attempt in range(TRIES):
        names = [f"queued-{attempt}-{name}" for name in "dcba"]
        with lab.connect() as found:
            for name in names:
                start(found, name)
            places = {row["run"]: row["position"] for row in found.captures().to_dict()["rows"]}
        in_time = [places.get(name) for name in names] == [None, None, 1, 2] and names[0] in places
        if in_time:
            lab.kill("coordinator")
        ended: list[str] = []
        give_up = time.monotonic() + ENDS_SECONDS
        while len(ended) < len(names):
            assert time.monotonic() < give_up, f"of {names} only {ended} ended: {lab.said()}"
            wanted = {key.rpartition("/")[2].removesuffix(".json") for key in bucket.keys("captures")}
            ended += [name for name in names if name not in wanted and name not in ended]
            time.sleep(0.2)
        assert ended == names
        assert all(contents(bucket, name) == undisturbed for name in names)
        if in_time:
            return
    pytest.fail(f"each of {TRIES} kills would have come too late to matter")


def test_two_coordinators_share_a_run(
    folder: Path, lab: KillableLab, bucket: Bucket, undisturbed: dict[int, dict[str, tuple[int, int, str]]]
) -> None:
    """Two who know nothing of each other, of which one has a Ray cluster: each shard has one winner, both end well."""
    for attempt in range(TRIES):
        run = f"shared-{attempt}"
        with lab.connect() as found:
            capture = start(found, run)
            with reading(bucket, run) as went_wrong:
                shards_won = take_part(folder, bucket, run)
                assert capture.wait(progress=False, check_saes=False).complete
        assert not went_wrong
        assert contents(bucket, run) == undisturbed
        named = {item.key for commit in open_run(bucket, run).commits for item in commit.objects.values()}
        assert set(bucket.keys(f"runs/{run}/data")) == named
        if shards_won:
            return
    pytest.fail(f"each of {TRIES} captures was over before the second coordinator could take part")


def take_part(folder: Path, bucket: Bucket, run: str) -> int:
    """Shards that a coordinator in this process won of a run that is being captured, which it finishes."""
    captures = coordinator(folder, bucket, ThreadWorker(bucket))

    async def work() -> int:
        assert await captures.resume()
        last = (await watch(captures, run))[-1]
        assert (last.state, last.shards_committed) == ("complete", last.shards_total)
        return (await captures.totals()).shards_committed

    with suppress(NotThere):  # it was over before
        won: int = run_here(work())
        return won
    return 0


def test_a_cluster_that_answers_strangers_is_refused(lab: KillableLab) -> None:
    """The workers of this one run on it because they were told what isolates it."""
    refused = subprocess.run(
        [sys.executable, "-m", "actstore_worker"],
        env=inherited() | {name: value for name, value in lab.variables.items() if name != "ACTSTORE_RAY_ISOLATED_BY"},
        stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert f"the GCS of the Ray cluster at {lab.variables['ACTSTORE_RAY_ADDRESS']} does not refuse" in refused.stderr


def test_a_second_start_takes_the_serve_that_runs(folder: Path, lab: KillableLab) -> None:
    """The last test, for it kills the workers: while they live, others are refused. The next take the port, which Serve
    keeps, and of those that were killed nothing: neither their coordinator nor their settings.
    """
    assert len(lab.on_head("ray::_Claim")) == 1  # on another node it would die with that, and nobody knew who is here
    (folder / "more").mkdir()
    (folder / "more" / "more.jsonl").write_text('{"text": "a"}')
    second = subprocess.run(
        [sys.executable, "-m", "actstore_worker"],
        env=inherited() | lab.variables,
        stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    assert second.returncode == 2
    store = lab.variables["ACTSTORE_STORE"]
    assert f"there are already workers over {store}, process {lab.workers.pid}" in second.stderr
    os.kill(lab.workers.pid, signal.SIGKILL)
    folders = {"model_folder": folder / "models", "dataset_folder": folder / "more", "log": folder / "next.log"}
    with running_workers(store, **folders, environment=lab.variables) as workers, workers.channel() as channel:
        assert workers.address == lab.workers.address
        captures = service_pb2_grpc.CaptureServiceStub(channel)
        found = captures.ListSources(capture_pb2.ListSourcesRequest(), metadata=workers.metadata())
        assert list(found.datasets) == ["more.jsonl"]
