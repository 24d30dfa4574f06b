"""The workers' environment: what is read, what is refused, and that a refusal names the variable and no secret."""

import os
import pickle
from pathlib import Path

import pytest
from minio.credentials.providers import AWSConfigProvider

from actstore_storage.bucket.access import S3Access
from actstore_worker.capture.limits import CoordinatorLimits, MergeLimits
from actstore_worker.errors import SettingsError
from actstore_worker.files.secrets import TokenFile
from actstore_worker.patching.inputs.limits import PatchingLimits
from actstore_worker.settings import RayLimits, WorkerSettings, read_environment, s3_without_keys
from actstore_worker.training.job import Job
from actstore_worker.training.recipe import Training

LEAST = {"ACTSTORE_STORE": "/store", "ACTSTORE_GATEWAY_TOKEN": "gateway"}
S3 = {
    "ACTSTORE_STORE": "s3://bucket/prefix",
    "ACTSTORE_S3_ENDPOINT": "127.0.0.1:9000",
    "ACTSTORE_S3_ACCESS_KEY": "key",
    "ACTSTORE_S3_SECRET_KEY": "hidden-secret%",
}


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """Where the workers write secrets that they were given by value."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    return folder


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A token and keys in files, as on a cluster."""
    (tmp_path / "token").write_text("current\nprevious\n")
    return {"ACTSTORE_GATEWAY_TOKEN_FILE": f"{tmp_path}/token", "ACTSTORE_S3_CREDENTIALS_FILE": f"{tmp_path}/keys"}


def test_the_least_that_is_needed(secrets: Path) -> None:
    assert read_environment(LEAST, secrets) == WorkerSettings("/store", gateway_token_file=secrets / "gateway-token")


def test_everything(tmp_path: Path, files: dict[str, str]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    found = read_environment(
        files
        | {
            "ACTSTORE_STORE": "s3://bucket/prefix",
            "ACTSTORE_S3_ENDPOINT": "127.0.0.1:9000",
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
            "ACTSTORE_RAY_ISOLATED_BY": "a network policy",
            "ACTSTORE_DEVICE": "cuda",
            "ACTSTORE_WORKER_METRICS_LISTEN": "0.0.0.0:9434",
        }
    )
    assert found == WorkerSettings(
        store="s3://bucket/prefix",
        gateway_token_file=tmp_path / "token",
        gateway_port=7434,
        s3=S3Access("127.0.0.1:9000", region="eu-west-1", secure=False, credentials_file=f"{tmp_path}/keys"),
        model_folders=(tmp_path / "a", tmp_path / "b"),
        dataset_folders=(tmp_path / "b",),
        dataset_stores=("s3://corpora", "s3://more/texts"),
        allow_hub=True,
        sae_cache=tmp_path / "saes",
        capture_workers=3,
        merge=MergeLimits(parts=5),
        ray_address="10.0.0.1:6379",
        ray_isolated_by="a network policy",
        device="cuda",
        worker_metrics_listen="0.0.0.0:9434",
    )


def test_secrets_by_value_become_files_that_only_their_owner_reads(secrets: Path) -> None:
    """The keys come back as they were, through the reader of such files."""
    found = read_environment(LEAST | S3, secrets)
    assert found.token_file.read_text() == "gateway\n"
    assert found.s3 == S3Access("127.0.0.1:9000", credentials_file=f"{secrets}/s3-credentials")
    keys = AWSConfigProvider(found.s3.credentials_file, "default").retrieve()
    assert (keys.access_key, keys.secret_key) == ("key", "hidden-secret%")
    assert {path.stat().st_mode & 0o777 for path in secrets.iterdir()} == {0o600}


def test_keys_do_not_travel_with_trainings(secrets: Path) -> None:
    """Jobs are arguments of Ray's tasks, of which the cluster keeps copies."""
    training = Training("sae", "run", "0" * 64, "resid_post.1", "topk", 8, 2.0, 10_000)
    s3 = S3Access("127.0.0.1:9000", "key", "hidden-secret%")
    assert b"hidden-secret%" in pickle.dumps(Job("s3://bucket", s3, training))
    sent = Job("s3://bucket", s3_without_keys(s3, secrets), training)
    assert b"hidden-secret%" not in pickle.dumps(sent)
    assert sent.s3 is not None
    keys = AWSConfigProvider(sent.s3.credentials_file, "default").retrieve()
    assert (keys.access_key, keys.secret_key) == ("key", "hidden-secret%")
    with pytest.raises(SettingsError, match="ACTSTORE_S3_SECRET_KEY would be sent") as caught:
        s3_without_keys(s3, None)
    assert "hidden-secret%" not in str(caught.value)
    assert s3_without_keys(None, None) is None


@pytest.mark.parametrize("given", [{"ACTSTORE_GATEWAY_TOKEN": "hidden-secret"}, S3])
def test_secrets_by_value_do_not_travel_through_a_cluster(files: dict[str, str], given: dict[str, str]) -> None:
    of_token = {"ACTSTORE_GATEWAY_TOKEN_FILE": files["ACTSTORE_GATEWAY_TOKEN_FILE"]} if given is S3 else {}
    environment = {"ACTSTORE_STORE": "/store"} | given | of_token
    with pytest.raises(
        SettingsError, match=r"would be sent through a Ray cluster.* set ACTSTORE_.*_FILE instead"
    ) as refusal:
        read_environment(environment)
    assert "hidden-secret" not in str(refusal.value)


def test_settings_with_a_secret_are_not_copied() -> None:
    keys = S3Access("127.0.0.1:9000", "key", "hidden-secret")
    for settings in (WorkerSettings("/store", "token"), WorkerSettings("s3://bucket", "", Path("/token"), s3=keys)):
        with pytest.raises(TypeError, match="settings with a secret cannot be copied"):
            pickle.dumps(settings)


def test_a_file_of_tokens_is_read_again_and_a_broken_one_keeps_those_of_before(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    tokens = TokenFile(file)
    assert tokens() == ("first",)
    file.write_text("second\r\n\nfirst\n")
    assert tokens() == ("second", "first")
    for broken in ("", "one\ntwo\nthree", "t\u00f6ken", "hid den"):
        file.write_text(broken)
        assert tokens() == ("second", "first")
    file.unlink()
    assert tokens() == ("second", "first")
    file.write_text("second")
    assert tokens() == ("second",)


def test_a_file_without_tokens_prevents_the_start(tmp_path: Path) -> None:
    for make in (lambda: TokenFile(tmp_path / "none"), lambda: TokenFile(tmp_path)):
        with pytest.raises(SettingsError, match=r"ACTSTORE_GATEWAY_TOKEN_FILE is .*, which cannot be read"):
            make()


def test_folders_are_absolute(tmp_path: Path, secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    found = read_environment(LEAST | {"ACTSTORE_STORE": "./store", "ACTSTORE_MODEL_FOLDERS": "models"}, secrets)
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
        (LEAST | {"ACTSTORE_WRITE_FORMAT": "3"}, "ACTSTORE_WRITE_FORMAT is 3; this version writes 4"),
        (LEAST | {"ACTSTORE_PLANNING_SHARDS_TARGET": "0"}, "ACTSTORE_PLANNING_SHARDS_TARGET"),
        (LEAST | {"ACTSTORE_DEVICE": "tpu"}, "ACTSTORE_DEVICE"),
        (LEAST | {"ACTSTORE_WORKER_METRICS_LISTEN": "9434"}, "ACTSTORE_WORKER_METRICS_LISTEN"),
        (
            LEAST | {"ACTSTORE_GATEWAY_TOKEN_FILE": "/nowhere", "ACTSTORE_GATEWAY_TOKEN": ""},
            "ACTSTORE_GATEWAY_TOKEN_FILE",
        ),
        (LEAST | {"ACTSTORE_ALLOW_HUB": "yes"}, "ACTSTORE_ALLOW_HUB"),
        (LEAST | {"ACTSTORE_MODEL_FOLDERS": "/nowhere/at/all"}, "ACTSTORE_MODEL_FOLDERS"),
    ],
)
def test_what_cannot_be_is_refused_by_name(environment: dict[str, str], named: str, secrets: Path) -> None:
    with pytest.raises(SettingsError, match=named) as refusal:
        read_environment(environment, secrets)
    assert "hidden-secret" not in str(refusal.value)


def test_no_secret_is_in_the_settings(secrets: Path) -> None:
    """Nor in what is copied to other processes."""
    settings = read_environment(LEAST | S3 | {"ACTSTORE_GATEWAY_TOKEN": "hidden-token"}, secrets)
    for found in (repr(settings).encode(), pickle.dumps(settings)):
        assert b"hidden-" not in found


def test_limits_that_cannot_be_are_refused() -> None:
    for make in (
        lambda: PatchingLimits(cells=0),
        lambda: PatchingLimits(tokens_per_slice=0),
        lambda: CoordinatorLimits(attempts_per_shard=0),
        lambda: RayLimits(worker_gpus=1.0),
    ):
        with pytest.raises(SettingsError, match=r"at least 1|positive|one GPU"):
            make()
