"""The command that trains SAEs, as a process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.planted_rows import SITE

# A start takes seconds on an idle machine, and many times that on a busy one.
RUN_SECONDS = 300


class Command:
    """`python -m actstore_worker.training` on a store."""

    def __init__(self, store: Path, **environment: str) -> None:
        self._environment = os.environ | {"ACTSTORE_STORE": str(store), "OMP_NUM_THREADS": "1"} | environment

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "actstore_worker.training", "planted", SITE, "--json", *arguments]
        return subprocess.Popen(
            command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
        process = self.start(*arguments)
        said, complained = process.communicate(timeout=RUN_SECONDS)
        return process.returncode, [json.loads(line) for line in said.splitlines()], complained
