"""Environments without anything, into which tests install the wheel as users and images do."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Returns what a command prints; it has to succeed."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def built_wheel(folder: Path) -> Path:
    """Builds the wheel of this project into a folder."""
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    (found,) = folder.iterdir()
    return found


def empty_environment(folder: Path) -> Path:
    """Makes an environment without anything; returns its Python."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    return folder / "bin" / "python"


def install(python: Path, *what: str | Path) -> list[str]:
    """Installs into an environment with the locked versions, and lists what is there then."""
    pip = [sys.executable, "-m", "pip", "--python", python]
    run(*pip, "install", "--quiet", "--no-compile", "--constraint", ROOT / "constraints.txt", *what)
    run(*pip, "check")
    return installed(python)


def installed(python: Path) -> list[str]:
    """Lists what an environment has, as `name==version`."""
    found = run(sys.executable, "-m", "pip", "--python", python, "list", "--format=freeze").split()
    assert found  # `--quiet` would leave out the list, too
    return found
