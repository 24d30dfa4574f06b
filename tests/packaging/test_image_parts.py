"""What an image has, without an engine that builds it: its dependencies in an empty environment, the list of them, and
its entry point as another user without capabilities on a read-only root.
"""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

import actstore
from actstore_storage.bucket.opening import open_bucket
from tests.packaging.environments import ROOT, empty_environment, install, installed, run
from tests.stored_run import write_stored_run
from tests.waiting import PATIENCE_SECONDS

# It fills environments from the package registry. The workers' takes minutes and gigabytes: `make image-parts`.
pytestmark = pytest.mark.stack

IMAGES = {"service": ["service", "trace"], "workers": ["worker", "trace"]}
CHOSEN = os.environ.get("ACTSTORE_IMAGE_PARTS", "service").split()
CONFINED = Path(__file__).with_name("confined.sh")
USER = 10001
LISTER = Path(sys.executable).with_name("cyclonedx-py")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that every user may read, and that a /tmp of the process's own does not cover."""
    made = Path(tempfile.mkdtemp(prefix="actstore-image-", dir="/var/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module", params=IMAGES)
def image(request: pytest.FixtureRequest, folder: Path, wheel: Path) -> tuple[str, Path]:
    """The name of an image, and the Python of an environment with what the image has."""
    name = request.param
    if name not in CHOSEN:
        pytest.skip(f"left out, takes minutes: make image-parts ARGS={name}")
    python = empty_environment(folder / name)
    printed = run(sys.executable, ROOT / "deploy" / "images" / "requirements.py", *IMAGES[name], cwd=ROOT)
    install(python, *printed.split("\n")[:-1])
    install(python, "--no-deps", wheel)
    return name, python


def test_the_list_of_parts_has_every_package(image: tuple[str, Path], folder: Path) -> None:
    name, python = image
    file = folder / f"{name}.cdx.json"
    run(LISTER, "environment", "--output-reproducible", "--output-file", file, python)
    listed = {(one["name"], one["version"]) for one in json.loads(file.read_text())["components"]}
    assert {_canonical(*one) for one in listed} == {_canonical(*line.split("==")) for line in installed(python)}
    assert len(listed) > 20
    large = {"torch", "ray", "transformers"} & {name for name, _ in listed}
    assert bool(large) == (name == "workers")


def _canonical(name: str, version: str) -> tuple[str, str]:
    return re.sub(r"[-_.]+", "-", name).lower(), version


@contextmanager
def _started(python: Path, module: str, folder: Path, **variables: str) -> Iterator[tuple[dict[str, str], int]]:
    """Yields the ready line of a process that is confined, and its number; it has to end well by SIGTERM."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("only root on Linux can take a process's rights away")
    command = ["unshare", "--mount", CONFINED, python, "-P", "-m", module]
    environment = {"PATH": os.environ["PATH"], "HOME": "/tmp", **_base(), **variables}  # noqa: S108
    empty = folder / "empty"
    empty.mkdir(exist_ok=True)
    process = subprocess.Popen(
        command, env=environment, cwd=empty, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield _ready(process), process.pid
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, said
    finally:
        process.kill()
        process.communicate()


def _ready(process: "subprocess.Popen[str]") -> dict[str, str]:
    assert process.stdout is not None
    for line in process.stdout:
        found: dict[str, str] = json.loads(line)
        if "ready" in found:
            return found
    raise AssertionError(process.communicate()[1])


def _base() -> dict[str, str]:
    """Where Python lies, and the topmost folder above it that others may not enter; no folder is writable."""
    base = Path(sys.base_prefix)
    closed = [str(above) for above in reversed(base.parents) if not above.stat().st_mode & stat.S_IXOTH]
    return {"BASE": str(base), "CLOSED": closed[0] if closed else "", "WRITABLE": ""}


def _rights(pid: int) -> dict[str, str]:
    return dict(re.findall(r"^(\w+):\t(\S+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))


def _check_rights(pid: int) -> None:
    rights = _rights(pid)
    assert rights["Uid"] == str(USER)
    assert (rights["NoNewPrivs"], int(rights["CapEff"], 16), int(rights["CapBnd"], 16)) == ("1", 0, 0)
    # What `unshare` became: the process's own view of the root is read-only.
    mounts = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    (root,) = [line.split()[5] for line in mounts if line.split()[4] == "/"]
    assert "ro" in root.split(",")


def test_the_entry_point_runs_as_a_container_does(image: tuple[str, Path], folder: Path) -> None:
    name, python = image
    store = folder / "store"
    if not store.exists():
        store.mkdir()
        write_stored_run(open_bucket(str(store)))
    {"service": _service_runs, "workers": _workers_run}[name](python, folder)


def _service_runs(python: Path, folder: Path) -> None:
    listening = {"ACTSTORE_LISTEN": "127.0.0.1:0", "ACTSTORE_METRICS_LISTEN": "127.0.0.1:0"}
    store = str(folder / "store")
    variables = {"ACTSTORE_STORE": store, "ACTSTORE_ANONYMOUS": "reader", **listening}
    with _started(python, "actstore_service", folder, **variables) as (ready, pid):
        _check_rights(pid)
        with urlopen(f"http://{ready['metrics']}/readyz") as answer:
            assert answer.status == 200
        with actstore.connect(ready["address"]) as lab:
            assert [run["name"] for run in lab.runs()] == ["planted"]


def _workers_run(python: Path, folder: Path) -> None:
    """Their store is writable, as a bucket is."""
    store, token = folder / "written", folder / "gateway"
    store.mkdir()
    os.chown(store, USER, USER)
    token.write_text("only-for-this-test\n")
    variables = {"ACTSTORE_STORE": str(store), "ACTSTORE_GATEWAY_TOKEN_FILE": str(token), "WRITABLE": str(store)}
    with _started(python, "actstore_worker", folder, **variables) as (ready, pid):
        _check_rights(pid)
        assert ready["address"]
