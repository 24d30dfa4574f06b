"""The workers' environment: what is read, what is refused, and that a refusal names the variable and no secret."""

import os
from pathlib import Path

import pytest

from actstore_storage.bucket.access import S3Access
from actstore_worker.capture.limits import CoordinatorLimits, MergeLimits
from actstore_worker.errors import SettingsError
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.settings import RayLimits, WorkerSettings, read_environment

LEAST = {"ACTSTORE_STORE": "/store", "ACTSTORE_GATEWAY_TOKEN": "gateway"}
S3 = {
    "ACTSTORE_STORE": "s3://bucket/prefix",
    "ACTSTORE_S3_ENDPOINT": "127.0.0.1:9000",
    "ACTSTORE_S3_ACCESS_KEY": "key",
    "ACTSTORE_S3_SECRET_KEY": "hidden-secret",
}


def test_the_least_that_is_needed() -> None:
    assert read_environment(LEAST) == WorkerSettings(store="/store", gateway_token="gateway")


def test_everything(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    found = read_environment(
        LEAST
        | S3
        | {
            "ACTSTORE_S3_REGION": "eu-west-1",
            "ACTSTORE_S3_SECURE": "0",
            "ACTSTORE_MODEL_FOLDERS": os.pathsep.join([f"{tmp_path}/a", f"{tmp_path}/b"]),
            "ACTSTORE_DATASET_FOLDERS": f"{tmp_path}/b",
            "ACTSTORE_DATASET_STORES": "s3://corpora s3://more/texts",
            "ACTSTORE_ALLOW_HUB": "1",
            "ACTSTORE_SAE_CACHE": f"{tmp_path}/saes",
            "ACTSTORE_GATEWAY_PORT": "7434",
            "ACTSTORE_CAPTURE_WORKERS": "3",
            "ACTSTORE_MERGE_PARTS": "5",
            "ACTSTORE_RAY_ADDRESS": "10.0.0.1:6379",
        }
    )
    assert found == WorkerSettings(
        store="s3://bucket/prefix",
        gateway_token="gateway",
        gateway_port=7434,
        s3=S3Access("127.0.0.1:9000", "key", "hidden-secret", "eu-west-1", secure=False),
        model_folders=(tmp_path / "a", tmp_path / "b"),
        dataset_folders=(tmp_path / "b",),
        dataset_stores=("s3://corpora", "s3://more/texts"),
        allow_hub=True,
        sae_cache=tmp_path / "saes",
        capture_workers=3,
        merge=MergeLimits(parts=5),
        ray_address="10.0.0.1:6379",
    )


def test_keys_in_a_file(tmp_path: Path) -> None:
    environment = {name: value for name, value in (LEAST | S3).items() if not name.endswith("_KEY")}
    found = read_environment(environment | {"ACTSTORE_S3_CREDENTIALS_FILE": f"{tmp_path}/keys"})
    assert found.s3 == S3Access("127.0.0.1:9000", credentials_file=f"{tmp_path}/keys")


def test_folders_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    found = read_environment(LEAST | {"ACTSTORE_STORE": "./store", "ACTSTORE_MODEL_FOLDERS": "models"})
    assert (found.store, found.model_folders) == (str(tmp_path / "store"), (tmp_path / "models",))


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"ACTSTORE_GATEWAY_TOKEN": "gateway"}, "ACTSTORE_STORE"),
        ({"ACTSTORE_STORE": "/store"}, "ACTSTORE_GATEWAY_TOKEN"),
        (LEAST | {"ACTSTORE_GATEWAY_TOKEN": ""}, "ACTSTORE_GATEWAY_TOKEN"),
        (LEAST | {"ACTSTORE_GATEWAY_TOKEN": "hidden-secret\n"}, "ACTSTORE_GATEWAY_TOKEN contains a character"),
        (LEAST | {"ACTSTORE_STORE": "s3://bucket"}, "ACTSTORE_S3_ENDPOINT"),
        (LEAST | S3 | {"ACTSTORE_STORE": "/store"}, "ACTSTORE_S3_ENDPOINT"),
        (LEAST | S3 | {"ACTSTORE_S3_SECRET_KEY": ""}, "ACTSTORE_S3_SECRET_KEY"),
        (LEAST | S3 | {"ACTSTORE_S3_SECURE": "no"}, "ACTSTORE_S3_SECURE"),
        (LEAST | {"ACTSTORE_DATASET_STORES": "s3://corpora"}, "ACTSTORE_DATASET_STORES"),
        (LEAST | S3 | {"ACTSTORE_DATASET_STORES": "/corpora"}, "ACTSTORE_DATASET_STORES"),
        (LEAST | {"ACTSTORE_GATEWAY_PORT": "http"}, "ACTSTORE_GATEWAY_PORT"),
        (LEAST | {"ACTSTORE_GATEWAY_PORT": "65536"}, "ACTSTORE_GATEWAY_PORT"),
        (LEAST | {"ACTSTORE_CAPTURE_WORKERS": "0"}, "ACTSTORE_CAPTURE_WORKERS"),
        (LEAST | {"ACTSTORE_MERGE_PARTS": "0"}, "ACTSTORE_MERGE_PARTS"),
        (LEAST | {"ACTSTORE_MERGE_PARTS": "few"}, "ACTSTORE_MERGE_PARTS"),
        (LEAST | {"ACTSTORE_ALLOW_HUB": "yes"}, "ACTSTORE_ALLOW_HUB"),
        (LEAST | {"ACTSTORE_MODEL_FOLDERS": "/nowhere/at/all"}, "ACTSTORE_MODEL_FOLDERS"),
    ],
)
def test_what_cannot_be_is_refused_by_name(environment: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named) as refusal:
        read_environment(environment)
    assert "hidden-secret" not in str(refusal.value)


def test_no_secret_is_shown() -> None:
    shown = repr(read_environment(LEAST | S3))
    assert "hidden-secret" not in shown
    assert "gateway'" not in shown


def test_limits_that_cannot_be_are_refused() -> None:
    for make in (
        lambda: PatchingLimits(cells=0),
        lambda: PatchingLimits(tokens_per_slice=0),
        lambda: CoordinatorLimits(attempts_per_shard=0),
        lambda: RayLimits(worker_gpus=1.0),
    ):
        with pytest.raises(SettingsError, match=r"at least 1|positive|one GPU"):
            make()
