"""The command's verbs of a local stack, as a shell and its signals meet them; only the workers are stand-ins."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import pytest

import actstore
from actstore import StackFailed
from actstore._cli.main import main
from actstore._cli.stack import _Waiting
from actstore._stack.folder import StackFile, StackFolder
from actstore_api.levels import API_LEVEL
from actstore_storage.bucket.opening import open_bucket
from tests.client.conftest import Plant
from tests.stored_run import DENSE_SITE, write_stored_run
from tests.waiting import PATIENCE_SECONDS, wait_until
from tests.worker_process import descendants

COMMAND = [sys.executable, "-m", "actstore"]
# Workers that say what they wait for, and have a process of their own, in a session of its own, as Ray has.
WORKERS = """
import subprocess, sys
print('{"starting": "Ray"}', flush=True)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
from tests.client.workers.stand_in import main; main()
"""


def actstore_says(*arguments: str, status: int = 0) -> Any:
    """In this process: the import of the client takes longer than what is asked."""
    with redirect_stdout(io.StringIO()) as said:
        assert main([*arguments, "--json"]) == status
    return json.loads(said.getvalue())


def meeting(ignored: Collection[signal.Signals]) -> Callable[[], None]:
    """As a shell starts background jobs (SIGINT ignored), or nohup a command (SIGHUP), however this process began."""

    def set_signals() -> None:
        for each in (signal.SIGINT, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN if each in ignored else signal.SIG_DFL)

    return set_signals


@contextmanager
def running_up(*options: str, ignored: Collection[signal.Signals] = ()) -> Iterator["subprocess.Popen[str]"]:
    up = subprocess.Popen(
        [*COMMAND, "up", "--port", "0", "--json", *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=meeting(ignored),
    )  # fmt: skip
    try:
        yield up
    finally:
        up.kill()
        up.communicate()


def ready(up: "subprocess.Popen[str]") -> dict[str, str]:
    assert up.stdout is not None
    found: dict[str, str] = json.loads(up.stdout.readline())
    return found


def gone(pids: list[int]) -> bool:
    """A zombie is gone, whoever should have looked after it."""
    for pid in pids:
        with suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                return False
    return True


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_up_until_a_signal_leaves_no_process(ending: signal.Signals, plant_workers: Plant) -> None:
    plant_workers(WORKERS)
    with running_up(ignored=[signal.SIGINT]) as up:
        started = ready(up)
        assert actstore_says("runs")["rows"] == []
        pids = descendants(up.pid)
        assert len(pids) == 5  # two guards, what they guard, and the workers' own process
        up.send_signal(ending)
        _, errors = up.communicate(timeout=PATIENCE_SECONDS)
    assert up.returncode == (-signal.SIGKILL if ending is signal.SIGKILL else 0)
    assert "Traceback" not in errors
    assert started["store"] == str(Path.cwd() / ".actstore" / "store")
    wait_until(lambda: gone(pids), "the end of all that was started")
    assert Path(".actstore/stack.json").exists() == (ending is signal.SIGKILL)


def test_up_says_what_it_waits_for(plant_workers: Plant) -> None:
    plant_workers(WORKERS)
    with running_up() as up:
        ready(up)
        up.terminate()
        _, errors = up.communicate(timeout=PATIENCE_SECONDS)
    lines = [line.partition(" s  waiting for ") for line in errors.splitlines() if "waiting for" in line]
    assert [what for _, _, what in lines] == ["workers", "Ray", "service"]
    seconds = [float(number) for number, _, _ in lines]
    assert seconds == sorted(seconds)


def test_status_and_down(plant_workers: Plant) -> None:
    plant_workers(WORKERS)
    assert actstore_says("status", status=3)["state"] == "down"
    assert not actstore_says("down")["stopped"]
    with running_up(ignored=[signal.SIGHUP]) as up:
        started = ready(up)
        up.send_signal(signal.SIGHUP)  # of a terminal's end, which nohup has it ignore
        found = actstore_says("status")
        assert {name: found[name] for name in started} == started
        assert found["state"] == "up"
        assert found["processes"].keys() == {"stack", "workers", "service"}
        assert found["processes"]["stack"] == up.pid
        assert found["versions"]["workers"] == "9.9.9, API level 2"
        assert found["versions"]["service"].endswith(f", API level {API_LEVEL}")
        with pytest.raises(StackFailed, match="already runs in") as second:
            actstore.LocalStack(port=0).start()
        assert "stop it with `actstore down`" in second.value.next_step
        pids = descendants(up.pid)
        assert actstore_says("down")["stopped"]
        assert gone(pids)
        assert up.wait(PATIENCE_SECONDS) == 0
    assert actstore_says("status", status=3)["state"] == "down"


def test_in_a_terminal_what_is_waited_for_is_one_line() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, seconds = Terminal(), iter((0.0, 0.1, 0.2, 1.4, 1.5))
    waiting = _Waiting(terminal, lambda: next(seconds))
    for what in ("Ray", "Ray", "Ray", "service"):
        waiting.draw(what)
    waiting.end()
    shown = terminal.getvalue().split("\r")
    assert [line.removesuffix("\x1b[K").strip() for line in shown] == [
        "", "0 s  waiting for Ray ...", "1 s  waiting for Ray ...", "2 s  waiting for service ...", ""
    ]  # fmt: skip
    assert "\n" not in terminal.getvalue()


def test_the_status_of_a_stack_whose_workers_do_not_answer(plant_workers: Plant) -> None:
    plant_workers("import json, time; print(json.dumps({'ready': 'workers', 'address': '127.0.0.1:1'}), flush=True)\n"
                  "time.sleep(600)")  # fmt: skip
    with running_up() as up:
        ready(up)
        found = actstore_says("status", status=3)
        assert (found["state"], found["wrong"]) == (
            "unwell",
            "the workers do not answer at the moment; try again later",
        )


def test_a_stack_that_starts_can_be_looked_at_and_stopped(plant_workers: Plant) -> None:
    plant_workers("import time; time.sleep(600)")
    with running_up() as up:
        wait_until(lambda: "workers" in (actstore_says("status", status=3).get("processes") or {}), "the workers")
        assert actstore_says("status", status=3)["state"] == "starting"
        with pytest.raises(StackFailed, match=r"already runs in .*, and does not answer yet"):
            actstore.LocalStack(port=0).start()
        pids = descendants(up.pid)
        assert actstore_says("down")["stopped"]
        assert gone(pids)
        assert up.wait(PATIENCE_SECONDS) == 0


def test_a_stack_file_that_was_left_is_removed_by_down() -> None:
    folder = Path(".actstore")
    folder.mkdir()
    StackFolder(folder).write(StackFile("127.0.0.1:1", "token"))
    assert actstore_says("status", status=3)["state"] == "down"
    assert not actstore_says("down")["stopped"]
    assert not (folder / "stack.json").exists()


def test_a_stack_of_a_program_is_not_stopped_from_outside(
    plant_workers: Plant, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which is more than a stack: a notebook, or this test."""
    plant_workers()
    with actstore.LocalStack(port=0) as stack:
        assert main(["down"]) == 1
        said = capsys.readouterr().err
        assert f"belongs to process {os.getpid()}" in said
        assert "stop() of its LocalStack" in said
        stack.check()


def test_export_and_check_find_the_store_of_a_stack(plant_workers: Plant, tmp_path: Path) -> None:
    plant_workers()
    with actstore.LocalStack(port=0) as stack:
        write_stored_run(open_bucket(stack.store))
        assert actstore_says("export", "planted", DENSE_SITE, str(tmp_path / "out"))["files"] > 0
        assert actstore_says("check", "planted")["sound"]
        _check_leaves_metrics_of_all_or_none(tmp_path / "found.prom")
        assert actstore_says("remove", "planted", "--yes")["objects"] > 0
    assert list((tmp_path / "out").iterdir())


def _check_leaves_metrics_of_all_or_none(file: Path) -> None:
    """A part of the bucket would tell what was found last, and when, as if it had been all."""
    for part in (("planted",), ("--quick",)):
        with redirect_stderr(io.StringIO()) as said:
            assert main(["check", *part, "--metrics", str(file)]) == 1
        assert "metrics tell what a check of the whole bucket found" in said.getvalue()
        assert not file.exists()
    assert actstore_says("check", "--metrics", str(file))["sound"]
    assert "actstore_fsck_last_run_timestamp_seconds " in file.read_text()


def test_a_trainer_ends_with_its_command(plant_workers: Plant, tmp_path: Path) -> None:
    plant_workers()
    trainer = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(600)"
    (tmp_path / "stand-in/actstore_worker/training.py").write_text(trainer)
    for ending in (signal.SIGKILL, signal.SIGINT):
        command = subprocess.Popen(
            [*COMMAND, "train-sae", "run", "site", "--store", "."], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert command.stdout is not None
        pid = int(command.stdout.readline())
        assert not gone([pid])
        command.send_signal(ending)
        command.communicate(timeout=PATIENCE_SECONDS)
        wait_until(lambda pid=pid: gone([pid]), f"the end of trainer {pid}")


def test_up_that_cannot_start(plant_workers: Plant) -> None:
    plant_workers("raise SystemExit('no luck today')")
    done = subprocess.run([sys.executable, "-m", "actstore", "up"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "| no luck today" in done.stderr
    assert "Traceback" not in done.stderr
