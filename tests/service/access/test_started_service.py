"""Access as an operator sets it up: files and variables, one command, and a process that refuses what is unsafe."""

import subprocess
import sys
from pathlib import Path

import actstore
from actstore_storage.bucket import Bucket
from tests.service.access.made_certificates import made
from tests.service.process import refused_start, running_service
from tests.stored_run import StoredRun


def test_a_service_is_started_with_files_alone(bucket: Bucket, stored: StoredRun, tmp_path: Path) -> None:
    authority = made("an authority")
    certificate, key = made("service", authority).write(tmp_path, "own")
    (tmp_path / "authority.pem").write_bytes(authority.pem)
    token, _, lines = _new_token("ada", "--run-prefixes", "plant").partition("\n\n")
    (tmp_path / "access.toml").write_text(
        lines.replace("[[principals.tokens]]", 'certificates = ["ada"]\n\n[[principals.tokens]]')
    )
    variables = {
        "ACTSTORE_STORE": bucket.address,
        "ACTSTORE_ACCESS_FILE": str(tmp_path / "access.toml"),
        "ACTSTORE_TLS_CERTIFICATE": certificate,
        "ACTSTORE_TLS_KEY": key,
        "ACTSTORE_MUTUAL_TLS_LISTEN": "127.0.0.1:0",
        "ACTSTORE_CLIENT_AUTHORITIES": str(tmp_path / "authority.pem"),
    }
    own, own_key = made("ada", authority, []).write(tmp_path, "ada")
    trusting = {"root_certificates": tmp_path / "authority.pem"}
    with running_service(**variables) as ready:
        with actstore.connect(ready["address"], token=token, **trusting) as lab:
            assert [run["name"] for run in lab.runs()] == ["planted"]
        shown = {"client_certificate": own, "client_key": own_key}
        with actstore.connect(ready["mutual_tls"], **shown, **trusting) as lab:
            assert [run["name"] for run in lab.runs()] == ["planted"]


def _new_token(*arguments: str) -> str:
    command = [sys.executable, "-m", "actstore_service.access", "new-token", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_service_does_not_start_with_broken_files(bucket: Bucket, stored: StoredRun, tmp_path: Path) -> None:
    (tmp_path / "access.toml").write_text('token = "act_secret"')
    said = refused_start(ACTSTORE_STORE=bucket.address, ACTSTORE_ACCESS_FILE=str(tmp_path / "access.toml"))
    assert "unknown field" in said
    assert "act_secret" not in said
    one, other = made("one").write(tmp_path, "one"), made("other").write(tmp_path, "other")
    files = {"ACTSTORE_TLS_CERTIFICATE": one[0], "ACTSTORE_TLS_KEY": other[1]}
    assert "another certificate" in refused_start(ACTSTORE_STORE=bucket.address, ACTSTORE_TOKEN="token", **files)
    assert "nobody may call this service" in refused_start(ACTSTORE_STORE=bucket.address)
