"""What the workers open to nobody: without the token, of a poisoned folder, to the home directory."""

import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from actstore_api.v1 import capture_pb2, model_pb2, patching_pb2, sae_pb2
from tests.made_models.poisoned_models import POISONS, assert_refused_by_every_door
from tests.topology.caller import (
    CALL_SECONDS,
    Caller,
    failure,
)
from tests.worker_process import WorkerProcess, command_line, descendants, inherited

pytestmark = pytest.mark.stack


@pytest.mark.parametrize("token", ["", "wrong", "gateway-toke", "gateway-token "])
def test_a_wrong_token_opens_nothing(workers: WorkerProcess, caller: Caller, token: str) -> None:
    wrong = {"metadata": workers.metadata(token), "timeout": CALL_SECONDS}
    calls = [
        lambda: caller.captures.StartCapture(capture_pb2.StartCaptureRequest(), **wrong),
        lambda: caller.captures.CancelCapture(capture_pb2.CancelCaptureRequest(), **wrong),
        lambda: caller.captures.GetCaptureTotals(capture_pb2.GetCaptureTotalsRequest(), **wrong),
        lambda: next(caller.captures.WatchCapture(capture_pb2.WatchCaptureRequest(), **wrong)),
        lambda: next(caller.sweeps.RunSweep(patching_pb2.RunSweepRequest(), **wrong)),
        lambda: caller.saes.CheckSae(sae_pb2.CheckSaeRequest(), **wrong),
        lambda: caller.models.SteerText(model_pb2.SteerTextRequest(), **wrong),
    ]
    for call in calls:
        with pytest.raises(grpc.RpcError) as refusal:
            call()
        assert refusal.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert failure(refusal.value).reason == "UNAUTHENTICATED"


@pytest.mark.parametrize("poison", POISONS)
def test_a_poisoned_model_is_refused_by_every_door_and_begins_nothing(
    caller: Caller, folder: Path, poison: str
) -> None:
    assert_refused_by_every_door(caller, folder, poison)


def test_nothing_is_written_into_the_home_directory(workers: WorkerProcess, folder: Path) -> None:
    """HOME of the process is the lab's folder."""
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_ray_of_our_own_refuses_who_has_not_its_token(workers: WorkerProcess, folder: Path, tmp_path: Path) -> None:
    commands = {pid: command_line(pid).split() for pid in descendants(workers.pid)}
    raylet = next(pid for pid, words in commands.items() if words[0].endswith("/raylet"))
    address = next(word.partition("=")[2] for word in commands[raylet] if word.startswith("--gcs-address="))
    variables = Path(f"/proc/{raylet}/environ").read_text().split("\0")
    token = next(each.partition("=")[2] for each in variables if each.startswith("RAY_AUTH_TOKEN="))
    assert asks_ray(address, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}, tmp_path)
    assert not asks_ray(address, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "w" * 43}, tmp_path)
    assert not asks_ray(address, {"RAY_AUTH_MODE": "disabled"}, tmp_path)
    assert not asks_ray(address, {}, tmp_path)
    assert token not in (folder / "workers.log").read_text()
    assert not (folder / ".ray").exists()


def asks_ray(address: str, authentication: dict[str, str], folder: Path) -> bool:
    """Whether another client of the cluster is answered."""
    code = f"from ray._raylet import GcsClient; GcsClient(address={address!r}).internal_kv_keys(b'', None, 10)"
    environment = inherited() | authentication | {"HOME": str(folder)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True).returncode == 0
