"""The life of a local stack: real processes, only the workers are stand-ins (real ones: tests/end_to_end)."""

import json
import os
import signal
import socket
import stat
from pathlib import Path

import pytest

import actstore
from actstore import BadRequest, LimitExceeded, LocalStack, StackFailed
from actstore._stack import stack as _local_stack
from actstore_service.server import Service
from actstore_storage.bucket.opening import open_bucket
from actstore_worker.__main__ import RAY_GONE
from tests.client.conftest import PROXIES, Plant
from tests.stored_run import write_stored_run
from tests.waiting import PATIENCE_SECONDS, wait_until
from tests.worker_process import descendants


def running(pid: int) -> bool:
    """A zombie does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until_gone(pid: int) -> None:
    wait_until(lambda: not running(pid), f"the end of process {pid}")


def test_a_stack_answers_and_leaves_nothing_behind(plant_workers: Plant, tmp_path: Path) -> None:
    plant_workers()
    with LocalStack(port=0) as stack:
        write_stored_run(open_bucket(stack.store))
        file = Path(".actstore/stack.json")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert json.loads(file.read_text())["address"] == stack.address
        with actstore.connect() as lab:
            assert lab.address == stack.address
            assert [row["name"] for row in lab.runs()] == ["planted"]
            assert lab.capture("planted-model", dataset="text").wait().name == "planted"
        stack.check()
        pids = [process.pid for process in stack._processes.values()]
        assert len(pids) == 2
    for pid in pids:
        until_gone(pid)
    assert not file.exists()
    assert sorted(path.name for path in Path(".actstore/logs").glob("*.log")) == ["service.log", "workers.log"]


def test_a_second_stack_leaves_the_first_alone(plant_workers: Plant) -> None:
    plant_workers()
    file = Path(".actstore/stack.json")
    with LocalStack(port=0):
        before = file.read_text(), {path: path.read_bytes() for path in Path(".actstore/logs").iterdir()}
        with pytest.raises(StackFailed, match="already runs in") as caught:
            LocalStack(port=0).start()
        assert (file.read_text(), {path: path.read_bytes() for path in Path(".actstore/logs").iterdir()}) == before
        assert caught.value.field == "state_folder"
        assert "another state_folder" in str(caught.value)
        with LocalStack(port=0, state_folder="other"), actstore.connect() as lab:
            assert len(lab.runs()) == 0
        with actstore.connect() as lab:
            assert len(lab.runs()) == 0


@pytest.mark.parametrize("left", ["", '{"address": "127.0.0.1:1", "token": "x"}', "another service"])
def test_what_a_killed_stack_left_is_replaced(
    left: str, plant_workers: Plant, service: Service, tmp_path: Path
) -> None:
    """Also where its port is by now another service's, to which its token means nothing."""
    plant_workers()
    file = Path(".actstore/stack.json")
    file.parent.mkdir()
    another = json.dumps({"address": service.address, "token": "of the one that was killed"})
    file.write_text(another if left == "another service" else left)
    with LocalStack(port=0) as stack:
        assert json.loads(file.read_text())["address"] == stack.address
        assert [path.name for path in file.parent.glob("stack.json*")] == ["stack.json"]
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_only_its_own_stack_file_is_removed(plant_workers: Plant) -> None:
    plant_workers()
    file = Path(".actstore/stack.json")
    with LocalStack(port=0):
        file.write_text(json.dumps({"address": "127.0.0.1:1", "token": "of another"}))
    assert json.loads(file.read_text())["token"] == "of another"


def test_the_files_of_an_s3_server_have_a_folder_of_their_own() -> None:
    assert (LocalStack().store_folder.name, LocalStack(s3=True).store_folder.name) == ("store", "store-s3")


def test_tokens_are_new_with_each_stack() -> None:
    first, second = LocalStack(), LocalStack()
    assert first.token != second.token
    assert len(first.token) >= 43


def test_a_stack_over_s3_whatever_proxy_the_environment_names(
    plant_workers: Plant, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    plant_workers()
    for kind in PROXIES:
        monkeypatch.setenv(kind, f"http://127.0.0.1:{free_port}")
    waited: list[str] = []
    with LocalStack(port=0, s3=True, waits=waited.append) as stack:
        assert list(dict.fromkeys(waited)) == ["SeaweedFS", "workers", "service"]
        assert stack.s3_access is not None
        write_stored_run(open_bucket(stack.store, _local_stack_access(stack)))
        with actstore.connect(stack.store, s3=stack.s3_access) as direct, stack.lab as lab:
            assert direct.run("planted").norms() == lab.run("planted").norms()
            assert [row["name"] for row in lab.datasets()] == ["asyncio", "text.jsonl"]
        assert stack.s3_access.secret_key not in Path(".actstore/stack.json").read_text()
        stack.check()
        os.kill(stack._processes["SeaweedFS"].pid, signal.SIGKILL)
        stack._processes["SeaweedFS"].wait(PATIENCE_SECONDS)
        with pytest.raises(StackFailed, match="the SeaweedFS process ended with status -9"):
            stack.check()


def _local_stack_access(stack: LocalStack):
    from dataclasses import asdict

    from actstore_storage.bucket.access import S3Access

    return S3Access(**asdict(stack.s3_access))


def test_a_process_that_dies_at_start_shows_the_end_of_its_log(plant_workers: Plant) -> None:
    plant_workers("import sys; print('line of the log', file=sys.stderr); sys.exit('out of luck')")
    with pytest.raises(StackFailed, match="status 1 before it was ready") as caught:
        LocalStack(port=0).start()
    assert "| line of the log\n  | out of luck" in str(caught.value)
    assert "workers.log" in caught.value.next_step


def test_workers_whose_ray_died_are_told_apart(plant_workers: Plant) -> None:
    plant_workers(f"import sys; print('the raylet has ended', file=sys.stderr); sys.exit({RAY_GONE})")
    with pytest.raises(StackFailed, match=r"^the Ray of the workers has gone, and they ended with status 3") as caught:
        LocalStack(port=0).start()
    assert "| the raylet has ended" in str(caught.value)


def test_what_was_started_is_stopped_when_the_rest_does_not_start(plant_workers: Plant, tmp_path: Path) -> None:
    plant_workers(
        f"import os, pathlib; pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "from tests.client.workers.stand_in import main; main()"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        stack = LocalStack(port=taken.getsockname()[1])
        with pytest.raises(StackFailed, match="the service process"):
            stack.start()
    until_gone(int((tmp_path / "pid").read_text()))
    assert not Path(".actstore/stack.json").exists()


def test_a_process_that_is_never_ready(plant_workers: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_local_stack, "START_SECONDS", 1.0)
    plant_workers("import time; print('{}', flush=True); time.sleep(600)")
    with pytest.raises(StackFailed, match="not ready within 1 seconds"):
        LocalStack(port=0).start()


def test_a_process_that_does_not_end_is_killed_with_its_children(
    plant_workers: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_local_stack, "STOP_SECONDS", 0.5)
    plant_workers(
        "import pathlib, signal, subprocess, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\n"
        "from tests.client.workers.stand_in import StandInWorkers\n"
        "signal.sigwait = lambda _: child.wait()\n"
        "from tests.client.workers.stand_in import main; main()\n"
    )
    with LocalStack(port=0):
        child = int((tmp_path / "pid").read_text())
        assert running(child)
    assert not running(child)


def test_what_lies_in_the_folder_of_its_start_is_not_imported(plant_workers: Plant) -> None:
    Path("queue.py").write_text("raise RuntimeError('of the user')")
    plant_workers()
    with LocalStack(port=0) as stack, stack.lab as lab:
        assert len(lab.runs()) == 0


def test_a_stack_has_one_lab_until_that_is_closed(plant_workers: Plant) -> None:
    plant_workers()
    with LocalStack(port=0) as stack:
        assert stack.lab is stack.lab
        with stack.lab as first:
            pass
        assert stack.lab is not first
        assert len(stack.lab.runs()) == 0
        last = stack.lab
    assert last.closed


def test_a_stack_that_was_not_started_has_no_lab() -> None:
    with pytest.raises(StackFailed, match="not started"):
        _ = LocalStack().lab


def test_folders_of_a_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    stack = LocalStack("~/store", model_folders=["~/models"], state_folder="~/state")
    assert (stack.store, stack.state_folder) == (str(tmp_path / "store"), tmp_path / "state")
    assert stack._found_in["MODEL"] == str(tmp_path / "models")
    with pytest.raises(BadRequest, match="separates folders") as caught:
        LocalStack(dataset_folders=["runs/12:30"])
    assert (caught.value.field, caught.value.value) == ("folder", str(tmp_path / "runs" / "12:30"))


def test_a_death_is_noticed(plant_workers: Plant) -> None:
    plant_workers()
    with LocalStack(port=0) as stack:
        guard = stack._processes["workers"]
        (workers,) = descendants(guard.pid)
        os.kill(guard.pid, signal.SIGKILL)
        guard.wait(PATIENCE_SECONDS)
        until_gone(workers)  # for nobody would end them any more
        with pytest.raises(StackFailed, match="the workers process ended with status -9"):
            stack.check()


def test_the_documented_port_where_it_is_free(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setattr(_local_stack, "SERVICE_PORT", free_port)
    assert _local_stack._preferred_port() == free_port
    with socket.create_server(("127.0.0.1", free_port)):
        assert _local_stack._preferred_port() == 0


def test_settings_of_the_callers_environment_do_not_leak_into_a_stack(
    plant_workers: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTSTORE_STORE", "/nowhere")
    monkeypatch.setenv("ACTSTORE_S3_ENDPOINT", "127.0.0.1:1")
    plant_workers()
    with LocalStack(port=0) as stack, stack.lab as lab:
        assert len(lab.runs()) == 0


def test_a_file_of_settings_reaches_the_processes(plant_workers: Plant, tmp_path: Path) -> None:
    plant_workers()
    file = tmp_path / "lab.toml"
    file.write_text("[limits]\ngrace_second = 1")
    with pytest.raises(StackFailed, match=r"limits\.grace_second in the file .* the closest is limits\.grace_seconds"):
        LocalStack(port=0, config=file).start()
    file.write_text("[limits]\nrequest_bytes = 100")
    with LocalStack(port=0, config=file) as stack, stack.lab as lab, pytest.raises(LimitExceeded):
        lab.capture("planted-model", dataset="x" * 200)
