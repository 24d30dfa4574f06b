"""Measures what the start of a local stack costs: CPU seconds, seconds until it answers, and memory at rest.

`actstore up` runs as a user starts it, over an empty store, until it says that it is up; then everything below it is
counted from /proc: the CPU time of each process, and its memory, of which shared pages are divided among their
processes (PSS). Beside it, on the same machine, `import torch` and `import ray` in a process of their own.

Predicted: eleven processes import Ray (0.9 s each), five of them Ray Serve (1.2 s more), none torch. The rest is what
Ray and Serve do: three seconds.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.worker_process import command_line, descendants

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
REST_SECONDS = 5.0


@dataclass(frozen=True)
class Measured:
    """A process: CPU seconds, those of its children that have ended included, and MB that are its share."""

    title: str
    cpu_seconds: float
    memory_mb: float


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = arguments.parse_args()
    yardsticks = {f"import_{library}_cpu_seconds": _import_seconds(library) for library in ("torch", "ray")}
    began = time.monotonic()
    with _stack() as pid:
        answers_seconds = time.monotonic() - began
        at_start = _measured(pid)
        time.sleep(REST_SECONDS)
        at_rest = _measured(pid)
    for one in sorted(at_start, key=lambda one: -one.cpu_seconds):
        print(f"{one.cpu_seconds:6.2f} s  {one.memory_mb:5.0f} MB  {one.title}")
    cpu_seconds = sum(one.cpu_seconds for one in at_start)
    found = {
        "cpu_seconds": cpu_seconds,
        "cpu_in_imports_of_torch": cpu_seconds / yardsticks["import_torch_cpu_seconds"],
        "answers_seconds": answers_seconds,
        "memory_mb": sum(one.memory_mb for one in at_rest),
        "processes": float(len(at_rest)),
        **yardsticks,
    }
    for name, value in found.items():
        print(f"{name:26} {value:8.2f}")
    if options.json:
        print(json.dumps({name: round(value, 2) for name, value in found.items()}))


def _import_seconds(library: str) -> float:
    """The CPU seconds of a process that imports it, the second time: the first one reads it from the disk."""
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", f"import {library}"], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@contextmanager
def _stack() -> Iterator[int]:
    """Within this context, a stack is up; yields the process that started it."""
    with tempfile.TemporaryDirectory() as folder:
        up = subprocess.Popen(
            [sys.executable, "-m", "actstore", "up", "--port", "0", "--json"], cwd=folder, stdout=subprocess.PIPE
        )
        try:
            if up.stdout is None or not up.stdout.readline():
                sys.exit("the stack did not start")
            yield up.pid
        finally:
            up.terminate()
            up.communicate()


def _measured(pid: int) -> list[Measured]:
    found = []
    for each in (pid, *descendants(pid)):
        folder, title = Path(f"/proc/{each}"), command_line(each)
        try:
            after_name = (folder / "stat").read_text().rpartition(")")[2].split()
            rollup = (folder / "smaps_rollup").read_text()
        except OSError:
            continue  # it has ended
        cpu_seconds = sum(map(int, after_name[11:15])) / TICKS_PER_SECOND
        (share_kb,) = (int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        found.append(Measured(_short(title), cpu_seconds, share_kb / 1024))
    return found


def _short(title: str) -> str:
    """What the process is: the module or file that it runs, or what Ray calls it."""
    words = title.split()
    if "-m" in words:
        return words[words.index("-m") + 1]
    return next((Path(word).name for word in words[1:] if word.endswith(".py")), Path(words[0]).name if words else "")


if __name__ == "__main__":
    main()
