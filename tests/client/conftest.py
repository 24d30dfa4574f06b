"""The same store behind two doors: a real service on a real socket, and the bucket by itself."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import actstore
from actstore_service.server import Service
from actstore_service.settings import Settings
from actstore_storage.bucket.opening import open_bucket
from tests.client.lab.doors import served
from tests.client.workers.stand_in import TOKEN, StandInWorkers
from tests.stored_run import StoredRun, write_stored_run

SERVICE_TOKEN = "service-token"
PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
# Runs of one model at several steps of training.
RUNS, STEPS = ("at-100", "at-200", "at-400"), [100, 200, 400]


@pytest.fixture(autouse=True)
def _no_address_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ACTSTORE_ADDRESS", raising=False)
    monkeypatch.delenv("ACTSTORE_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `planted` (float32), `bfloat16` and `float16`; `partial` has shards 0 and 2; `empty` has none."""
    folder = tmp_path_factory.mktemp("store")
    bucket = open_bucket(str(folder))
    write_stored_run(bucket)
    for dtype in ("bfloat16", "float16"):
        write_stored_run(bucket, dtype, dtype)
    write_stored_run(bucket, "partial", shards=(0, 2))
    write_stored_run(bucket, "empty", shards=())
    return folder


@pytest.fixture(scope="session")
def stored() -> StoredRun:
    from tests.stored_run import plant

    return plant()


@pytest.fixture
def workers() -> Iterator[StandInWorkers]:
    started = StandInWorkers()
    yield started
    started.close()


@pytest.fixture
def service(store: Path, workers: StandInWorkers) -> Iterator[Service]:
    settings = Settings(
        listen="127.0.0.1:0",
        metrics_listen="127.0.0.1:0",
        token=SERVICE_TOKEN,
        gateway=workers.address,
        gateway_token=TOKEN,
    )
    started = Service(open_bucket(str(store)), settings)
    yield started
    started.stop()


@pytest.fixture
def remote(service: Service) -> Iterator[actstore.Lab]:
    with actstore.connect(service.address, token=SERVICE_TOKEN) as lab:
        yield lab


@pytest.fixture
def direct(store: Path) -> Iterator[actstore.Lab]:
    with actstore.connect(store) as lab:
        yield lab


@pytest.fixture(params=["remote", "direct"])
def lab(request: pytest.FixtureRequest) -> actstore.Lab:
    """Each test of stored data runs through both doors."""
    found: actstore.Lab = request.getfixturevalue(request.param)
    return found


Plant = Callable[[str], None]


@pytest.fixture
def plant_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Makes `python -m actstore_worker` of processes that this test starts run this code, with the house importable."""
    folder = tmp_path / "stand-in"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(Path(__file__).parents[2])]))

    def plant(code: str = "from tests.client.workers.stand_in import main; main()") -> None:
        (folder / "actstore_worker").mkdir(parents=True)
        (folder / "actstore_worker" / "__init__.py").touch()
        (folder / "actstore_worker" / "__main__.py").write_text(code)

    return plant


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of three revisions, `step100` and so on, whose norms are the planted ones times 1, 2 and 4; and `coarse`, of
    `step800`, times 8, which was computed in bfloat16.
    """
    folder = tmp_path_factory.mktemp("training")
    bucket = open_bucket(str(folder))
    for run, step in zip(RUNS, STEPS, strict=True):
        write_stored_run(bucket, run, revision=f"step{step}", scale=step / 100)
    write_stored_run(bucket, "coarse", "bfloat16", revision="step800", scale=8)
    return folder


@pytest.fixture(scope="module")
def far(training: Path) -> Iterator[actstore.Lab]:
    with served(training) as lab:
        yield lab


@pytest.fixture(scope="module")
def near(training: Path) -> Iterator[actstore.Lab]:
    with actstore.connect(training) as lab:
        yield lab
