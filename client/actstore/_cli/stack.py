"""The verbs of a local stack: start one here and stay with it, look at it, stop it."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from actstore._cli.options import DONE, UNSOUND, add_verb, say
from actstore._errors import STACK_FAILED, ActstoreError, StackFailed
from actstore._stack.folder import STATE_FOLDER, StackFolder, StackProcesses, stack_folder
from actstore._stack.guard import LEFTOVER_SECONDS
from actstore._stack.stack import STOP_SECONDS, LocalStack
from actstore._transport.service import GrpcBackend
from actstore_api.records.information import ServiceInfo

LOOK_SECONDS = 0.5
# The service, the workers and the store end one after the other.
DOWN_SECONDS = 3 * (STOP_SECONDS + LEFTOVER_SECONDS)
_POLL_SECONDS = 0.1


def add_stack(verbs: Any) -> None:
    starting = add_verb(verbs, up, "start workers and service here, until Ctrl-C or `actstore down`", asks=False)
    starting.add_argument("--store", type=Path, metavar="DIR", help="folder of the store (default: in .actstore)")
    starting.add_argument("--s3", action="store_true", help="keep the store in a SeaweedFS, reached as S3")
    starting.add_argument(
        "--models", type=Path, nargs="+", default=[], metavar="DIR", help="folders of models and SAEs"
    )
    starting.add_argument("--datasets", type=Path, nargs="+", default=[], metavar="DIR", help="folders of text")
    starting.add_argument("--allow-hub", action="store_true", help="let captures name models of the Hugging Face hub")
    starting.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file with settings of service and workers, such as limits"
    )
    starting.add_argument("--port", type=int, help="of the service (default: 7433 where it is free)")
    add_verb(
        verbs, status, "does the stack of this folder run, and answer? exit status 3 where it does not", asks=False
    )
    add_verb(verbs, down, "stop the stack of this folder, and wait until it is gone", asks=False)


def up(options: argparse.Namespace) -> None:
    """Runs in the foreground until Ctrl-C, SIGTERM or, unless `nohup` started it, the end of its terminal."""
    _end_on_signals()
    waiting = _Waiting(sys.stderr)
    stack = LocalStack(
        options.store,
        s3=options.s3,
        model_folders=options.models,
        dataset_folders=options.datasets,
        allow_hub=options.allow_hub,
        port=options.port,
        config=options.config,
        waits=waiting.draw,
        is_command=True,
    )
    with suppress(KeyboardInterrupt), stack:
        waiting.end()
        ready = {"address": stack.address, "metrics": stack.metrics_address, "store": stack.store}
        try:
            say(options, ready, _greeting(stack))
            while True:
                stack.check()
                time.sleep(LOOK_SECONDS)
        except KeyboardInterrupt:
            with suppress(OSError):  # of a terminal that has gone
                print("stopping ...", file=sys.stderr)


def _end_on_signals() -> None:
    def end(_number: int, _frame: object) -> None:
        for each in endings:
            signal.signal(each, signal.SIG_IGN)  # the first one stops everything; further ones do not disturb that
        raise KeyboardInterrupt

    # Ctrl-C explicitly, because a shell starts background jobs with SIGINT ignored.
    endings = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as `nohup` has it
        endings.append(signal.SIGHUP)
    for each in endings:
        signal.signal(each, end)


def _greeting(stack: LocalStack) -> str:
    return "\n".join(
        [
            f"actstore is up at {stack.address}, over {stack.store}",
            "  python:   import actstore; lab = actstore.connect()      # in this folder or below it",
            "  shell:    actstore models",
            f"  metrics:  http://{stack.metrics_address}/metrics",
            f"  logs:     {stack.state_folder / 'logs'}",
            "Ctrl-C stops it, and so does `actstore down`.",
        ]
    )


class _Waiting:
    """Prints what is waited for and how long: one line that redraws itself in a terminal, else a line for each."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._started = clock()
        self._shown = ""

    def draw(self, what: str) -> None:
        seconds = self._clock() - self._started
        if self._stream.isatty():
            line = f"{seconds:4.0f} s  waiting for {what} ..."
            if line != self._shown:
                self._stream.write(f"\r{line}\x1b[K")
                self._shown = line
        elif what != self._shown:
            self._stream.write(f"{seconds:6.1f} s  waiting for {what}\n")
            self._shown = what
        self._stream.flush()

    def end(self) -> None:
        if self._shown and self._stream.isatty():
            with suppress(OSError):
                self._stream.write("\r\x1b[K")
                self._stream.flush()
        self._shown = ""


def status(options: argparse.Namespace) -> int:
    folder = _folder()
    state, found = _state(folder)
    lines = [f"{name + ':':<11} {value}" for name, value in found.items() if value]
    say(options, {"state": state, **found}, "\n".join([_STATES[state].format(folder=folder.path), *lines]))
    return DONE if state == "up" else UNSOUND


_STATES = {
    "up": "the stack in {folder} runs and answers",
    "starting": "the stack in {folder} has begun to start, and does not answer yet",
    "ending": "the stack in {folder} is ending: whatever started it has gone",
    "unwell": "the stack in {folder} runs, but does not answer as it should",
    "down": "no stack runs in {folder}",
}


def _state(folder: StackFolder) -> tuple[str, dict[str, Any]]:
    if not folder.runs():
        return "down", {}
    processes = folder.processes()
    known = _known(processes) | {"logs": str(folder.logs)}
    if processes is not None and not processes.owner_is_there:
        return "ending", known
    try:
        stack = folder.read()
    except FileNotFoundError:
        return "starting", known
    known = {"address": stack.address, "metrics": stack.metrics, "store": stack.store} | known
    try:
        with closing(GrpcBackend(stack.address, stack.token, tls=None)) as service:
            service.check_workers()
            return "up", known | _versions(service.service_info())
    except ActstoreError as error:
        return "unwell", known | {"wrong": error.message}


def _versions(info: ServiceInfo) -> dict[str, Any]:
    found = {"service": f"{info.version}, API level {info.api_level}"}
    if info.workers is not None:
        found["workers"] = f"{info.workers.version}, API level {info.workers.api_level}"
    return {"versions": found}


def _known(processes: StackProcesses | None) -> dict[str, Any]:
    if processes is None:
        return {}
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(processes.since))
    return {"since": since, "processes": {"stack": processes.owner, **processes.processes}}


def down(options: argparse.Namespace) -> None:
    folder = _folder()
    if not folder.runs():
        folder.forget()
        say(options, {"stopped": False}, _STATES["down"].format(folder=folder.path))
        return
    processes = folder.processes()
    if processes is not None and not processes.command and processes.owner_is_there:
        raise StackFailed(
            f"the stack in {folder.path} belongs to process {processes.owner}, which is more than a stack",
            reason=STACK_FAILED,
            field="processes",
            value=asdict(processes)["processes"],
            next_step="call stop() of its LocalStack there, or end that program: the stack ends with it",
        )
    _end(folder, processes)
    folder.forget()
    say(options, {"stopped": True}, f"stopped the stack in {folder.path}")


def _end(folder: StackFolder, processes: StackProcesses | None) -> None:
    """In order; after DOWN_SECONDS by killing its owner, with whom everything ends."""
    for ending in ((signal.SIGTERM, signal.SIGCONT), (signal.SIGKILL,)):
        for number in ending:
            if processes is not None and folder.runs():
                with suppress(ProcessLookupError):
                    os.kill(processes.owner, number)
        give_up = time.monotonic() + DOWN_SECONDS
        while time.monotonic() < give_up:
            if not folder.runs():
                return
            time.sleep(_POLL_SECONDS)
    pids = {} if processes is None else dict(processes.processes)
    raise StackFailed(
        f"the stack in {folder.path} does not end", reason=STACK_FAILED, field="processes", value=pids,
        next_step=f"read {folder.logs}, and end the processes",
    )  # fmt: skip


def _folder() -> StackFolder:
    """The state folder in this folder or in one above it; if there is none, the one to create here."""
    return stack_folder() or StackFolder(Path.cwd() / STATE_FOLDER)
