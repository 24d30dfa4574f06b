"""What the manifests start, started: processes read the settings of their pods, and jobs do their work on a bucket."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from actstore._stack.seaweed import SeaweedFS
from actstore_service.settings import SETTINGS_BESIDE, Settings
from actstore_storage.bucket.access import S3Access
from actstore_storage.bucket.opening import open_bucket
from actstore_storage.errors import SettingsError
from actstore_storage.settings.reading import read_settings
from actstore_storage.settings.store import StoreSettings
from actstore_worker.settings import SETTINGS_BESIDE as BESIDE_WORKERS
from actstore_worker.settings import WorkerSettings
from tests.deploy.manifests import OVERLAYS, Pod, environment, manifests, pods
from tests.stored_run import write_stored_run

# The jobs whose work is a bucket's: the Secret of their keys, and what they must not be able to do.
FSCK, STORE_CHECK = "CronJob/actstore-fsck", "Job/actstore-store-check"


def _pod(path: str, overlay: str = "fleet") -> tuple[Pod, dict[str, str]]:
    objects = manifests(overlay)
    (found,) = [pod for pod in pods(objects) if pod.path == path]
    return found, environment(objects, found.spec["containers"][0])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_service_reads_the_settings_of_its_pod(overlay: str) -> None:
    _, variables = _pod("Deployment/actstore-service", overlay)
    found = read_settings((StoreSettings, Settings), variables, SETTINGS_BESIDE)
    own = found.made(Settings)
    assert found.made(StoreSettings).store.startswith("s3://")
    assert own.access_file
    assert own.tls_certificate
    assert (own.anonymous, own.token, own.gateway_token) == ((), None, None)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_workers_read_the_settings_of_their_pods(overlay: str) -> None:
    for pod in (pod for pod in pods(manifests(overlay)) if pod.ray):
        _, variables = _pod(pod.path, overlay)
        settings = read_settings((WorkerSettings,), variables, BESIDE_WORKERS).made(WorkerSettings)
        assert settings.gateway_port == pod.ports()["serve-grpc"]
        assert settings.device == "cuda"
        if pod.ray == "head":
            assert settings.worker_metrics_listen == f"0.0.0.0:{pod.ports()['own-metrics']}"


def test_a_misspelt_setting_is_refused() -> None:
    _, variables = _pod("Deployment/actstore-service")
    with pytest.raises(SettingsError, match="ACTSTORE_ACCES_FILE"):
        read_settings((StoreSettings, Settings), {**variables, "ACTSTORE_ACCES_FILE": "/x"}, SETTINGS_BESIDE)


def _run(path: str, folder: Path, weed: SeaweedFS, keys: tuple[str, str]) -> "subprocess.CompletedProcess[str]":
    """Runs the command of a pod with its settings; only the places of the bucket and of its keys are others."""
    pod, variables = _pod(path)
    file = folder / "credentials"
    file.write_text(f"[default]\naws_access_key_id = {keys[0]}\naws_secret_access_key = {keys[1]}\n")
    places = {
        "ACTSTORE_STORE": f"s3://{weed.bucket}/lab",
        "ACTSTORE_S3_ENDPOINT": weed.endpoint,
        "ACTSTORE_S3_SECURE": "0",
        "ACTSTORE_S3_CREDENTIALS_FILE": str(file),
    }
    places |= {"ACTSTORE_ADDRESS": places["ACTSTORE_STORE"]} if "ACTSTORE_ADDRESS" in variables else {}
    assert set(places) - {"ACTSTORE_S3_SECURE"} <= set(variables)
    inherited: Mapping[str, str] = {name: one for name, one in os.environ.items() if not name.startswith("ACTSTORE_")}
    command = [sys.executable, "-P", *pod.spec["containers"][0]["args"]]
    return subprocess.run(command, env={**inherited, **variables, **places}, capture_output=True, text=True, cwd=folder)


def test_jobs_do_their_work_with_the_keys_that_they_get(tmp_path: Path) -> None:
    with SeaweedFS(tmp_path / "weed") as weed:
        writer, reader = (weed.access_key, weed.secret_key), (weed.reader_access_key, weed.reader_secret_key)
        bucket = open_bucket(f"s3://{weed.bucket}/lab", S3Access(weed.endpoint, *writer, secure=False))
        write_stored_run(bucket)
        checked = _run(STORE_CHECK, tmp_path, weed, writer)
        assert (checked.returncode, checked.stdout) == (0, f'{{"checked": "{bucket.address}"}}\n'), checked.stderr
        refused = _run(STORE_CHECK, tmp_path, weed, reader)
        assert (refused.returncode, refused.stdout) == (2, "")
        sound = _run(FSCK, tmp_path, weed, reader)
        assert sound.returncode == 0, sound.stderr
        (commit,) = [key for key in bucket.keys("runs") if "norms" in key][:1]
        bucket.delete(commit)
        assert _run(FSCK, tmp_path, weed, reader).returncode == 3


def test_the_workers_check_a_store_without_starting(tmp_path: Path) -> None:
    token = tmp_path / "tokens"
    token.write_text("only-for-this-test\n")
    variables = {"ACTSTORE_STORE": str(tmp_path), "ACTSTORE_GATEWAY_TOKEN_FILE": str(token), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-P", "-m", "actstore_worker", "--check-store"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f'{{"checked": "{tmp_path}"}}\n'), done.stderr
