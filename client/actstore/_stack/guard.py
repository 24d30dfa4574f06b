"""Processes that end with the one that started them, however that one ends, and leave none of their own behind.

`Guarded` starts this file by its path, as a small process, the guard, between the starter and the command. The guard
has one end of a pipe whose other end only its starter has, so it notices every end of the starter, also by SIGKILL. It
adopts what the command started and left (on Linux), and ends only once nothing of that is left. Should the guard itself
be killed, the command is sent SIGTERM (on Linux).
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# How long the guard kills what the command left, and its starter then waits for the guard. Processes that were killed
# end within a moment, unless a disk or a network file system holds them.
LEFTOVER_SECONDS = 10.0
_POLL_SECONDS = 0.02
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # of Linux's prctl.h
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LIFELINE = 0  # standard input


class Guarded(subprocess.Popen[bytes]):
    """A process that runs `command` under a guard. Its pid is the guard's. Its status is the command's, as in a shell:
    137 for SIGKILL.

    SIGTERM and SIGINT are handed on to the command, which is killed if it is still there `grace_seconds` later.
    `keep` are file descriptors that the guard holds open as long as anything of the command is there. `options` are
    Popen's.
    """

    def __init__(
        self, command: Sequence[str], *, grace_seconds: float, keep: Sequence[int] = (), **options: Any
    ) -> None:
        self._grace_seconds = grace_seconds
        guard = [sys.executable, "-I", "-S", __file__, str(grace_seconds)]
        super().__init__([*guard, *command], stdin=subprocess.PIPE, start_new_session=True, pass_fds=keep, **options)

    def end(self) -> None:
        """Returns once the command, and all that it started, is gone."""
        assert self.stdin is not None  # noqa: S101
        with suppress(OSError):
            self.stdin.close()
        try:
            self.wait(self._grace_seconds + LEFTOVER_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            self.wait()


def main(grace_seconds: float, command: Sequence[str]) -> int:
    """The guard."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    woken = _wake_on_signals()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=_end_with(os.getpid()))
    _watch(child, woken, grace_seconds)
    _end_leftovers(child.pid)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _watch(child: "subprocess.Popen[bytes]", woken: int, grace_seconds: float) -> None:
    """Until the child ends."""
    sources, deadline = [woken, _LIFELINE], None
    while child.poll() is None:
        patience = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select(sources, [], [], patience)
        asked = set(os.read(woken, 512)) & set(_FORWARDED) if woken in ready else set()
        if _LIFELINE in ready:  # nobody writes there: it is the end of whoever started this
            sources.remove(_LIFELINE)
            asked.add(signal.SIGTERM)
        for number in asked:
            child.send_signal(number)
        if asked and deadline is None:
            deadline = time.monotonic() + grace_seconds
        if deadline is not None and time.monotonic() >= deadline:
            child.kill()
        _reap(but=child.pid)


def _wake_on_signals() -> int:
    """A file descriptor that has a byte for each signal."""
    read_end, write_end = os.pipe()
    for end in (read_end, write_end):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in (*_FORWARDED, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return read_end


def _end_with(guard: int) -> Any:
    """What the child does before it becomes the command. The guard has one thread, to which the system ties this."""

    def prepare() -> None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != guard:  # which has ended meanwhile
            os._exit(1)

    return prepare


def _end_leftovers(group: int) -> None:
    """Kill what the command left, and what that leaves, until there is nothing."""
    give_up = time.monotonic() + LEFTOVER_SECONDS
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
    while time.monotonic() < give_up:
        for pid in _children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not _reap():
            return
        time.sleep(_POLL_SECONDS)


def _reap(but: int = 0) -> bool:
    """Reaps the children that have ended, except `but`. False: no child is left, or the system has no waitid."""
    while hasattr(os, "waitid"):  # which macOS has not
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        if ended is None or ended.si_pid == but:
            return True
        os.waitpid(ended.si_pid, 0)
    return False


def _children() -> Iterator[int]:
    """The ids of this process's children, from /proc if the system has it."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            after_name = status.read_text().rpartition(")")[2].split()
            if int(after_name[1]) == os.getpid():
                yield int(status.parent.name)


def _prctl(option: int, value: int) -> None:
    """Does nothing if the system has no prctl: then a guard ends the command's process group alone."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
