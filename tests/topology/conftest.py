"""Workers as their callers meet them, once for all of this folder: one real process, real Ray, real sockets, a real
store, and a service before them.
"""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

import actstore
from actstore_service.server import Service
from actstore_service.settings import Settings
from actstore_storage.bucket.opening import open_bucket
from models import corpus
from tests.made_models.random_models import WORDS, save_model
from tests.made_models.small_models import BUNDLED_MODELS, save_sae
from tests.service.observed.otlp import Receiver, receiving
from tests.topology.caller import Caller
from tests.worker_process import WorkerProcess, command_line, running_workers

DOCUMENTS = 400


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    for name in ("store", "models", "data"):
        (folder / name).mkdir()
    save_model(folder / "models" / "tiny", "neox")
    save_sae(folder / "models" / "small-sae", "topk", d_in=24, d_sae=32)
    chosen = random.Random(0)
    texts = (" ".join(chosen.choices(WORDS, k=chosen.randint(1, 70))) for _ in range(DOCUMENTS))
    (folder / "data" / "words.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    held_out = (text for text, _ in zip(corpus.texts(held_out=True), range(20), strict=False))
    (folder / "data" / "stdlib.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in held_out))
    return folder


@pytest.fixture(scope="package")
def with_torch_at_rest() -> list[str]:
    """The processes of `workers` that had loaded torch before anybody asked anything."""
    return []


@pytest.fixture(scope="package")
def receiver() -> Iterator[Receiver]:
    """To which the workers send their spans."""
    with receiving() as found:
        yield found


@pytest.fixture(scope="package")
def workers(folder: Path, with_torch_at_rest: list[str], receiver: Receiver) -> Iterator[WorkerProcess]:
    with running_workers(
        folder / "store",
        model_folder=f"{folder / 'models'}{os.pathsep}{BUNDLED_MODELS}",
        dataset_folder=folder / "data",
        log=folder / "workers.log",
        environment={
            "ACTSTORE_CAPTURE_WORKERS": "2",
            "ACTSTORE_COORDINATOR_WORKERS_MIN": "2",
            "ACTSTORE_SAE_CACHE": str(folder / "saes"),
            **receiver.variables,
        },
    ) as process:
        with_torch_at_rest += map(command_line, process.with_library("libtorch"))
        yield process


@pytest.fixture(scope="package")
def channel(workers: WorkerProcess) -> Iterator[grpc.Channel]:
    with workers.channel() as channel:
        yield channel


@pytest.fixture(scope="package")
def caller(workers: WorkerProcess, channel: grpc.Channel) -> Caller:
    return Caller(workers, channel)


@pytest.fixture(scope="package")
def lab(folder: Path, workers: WorkerProcess) -> Iterator[actstore.Lab]:
    """The public client, of a service before these workers."""
    settings = Settings(
        listen="127.0.0.1:0",
        metrics_listen="127.0.0.1:0",
        gateway=workers.address,
        gateway_token=workers.token,
        anonymous=("reader", "writer", "admin"),
    )
    service = Service(open_bucket(str(folder / "store")), settings)
    with actstore.connect(service.address) as lab:
        yield lab
    service.stop()
