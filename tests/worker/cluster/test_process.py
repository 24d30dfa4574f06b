"""What a process of the workers does to itself, and to the processes of its Ray, before it starts Ray."""

import subprocess
import sys
from pathlib import Path

import jsonschema

from tests.worker_process import inherited

PREPARED = """
import os, subprocess, sys
from actstore_worker.cluster.joining.process import prepare_ray
prepare_ray(os.environ, None)
import ray, of_user
subprocess.run([sys.executable, "-c", "import ray, of_user"], check=True)
"""


def test_processes_of_ray_do_not_import_a_slow_check_of_addresses(tmp_path: Path) -> None:
    """Whatever is installed; what else the user has on the path stays there."""
    assert "rfc3987_syntax" in Path(jsonschema._format.__file__).read_text()  # else there is nothing to leave out
    (tmp_path / "rfc3987_syntax.py").write_text("raise SystemExit('rfc3987_syntax is imported')")
    (tmp_path / "of_user.py").touch()
    environment = inherited() | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PREPARED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
