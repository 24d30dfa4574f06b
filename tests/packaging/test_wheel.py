"""The wheel as its users install it: what it has, and what works in an empty environment with which extras."""

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

from actstore_service.server import Service
from actstore_service.settings import Settings
from actstore_storage.bucket.opening import open_bucket
from tests.stored_run import write_stored_run

# It fills environments from the package registry, which takes a minute.
pytestmark = pytest.mark.stack

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERSION = PROJECT["project"]["version"]
PACKAGES = [Path(path).name for path in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
# With a bucket's libraries there are more than twice as many.
LIGHT_PACKAGES_MAX = 9
ASK_SERVICE = """
import asyncio, sys
import actstore

async def ask(address):
    async with actstore.connect_async(address) as lab:
        return await lab.runs()

with actstore.connect(sys.argv[1]) as lab:
    assert [run["name"] for run in lab.runs()] == ["planted"]
    assert len(lab.run("planted").norms()) > 0
    assert asyncio.run(ask(sys.argv[1])) == lab.runs()
assert len(actstore.simulate_depth()) > 0
try:
    actstore.connect(sys.argv[2])
except actstore.MissingLibrary as error:
    print(error.next_step)
try:
    actstore.LocalStack().start()
except actstore.MissingLibrary as error:
    print(error.next_step)
"""
ASK_BUCKET = """
import sys
import actstore

with actstore.connect(sys.argv[1]) as lab:
    assert len(lab.run("planted").norms()) > 0
    assert lab.check("planted").sound
"""


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    (found,) = folder.iterdir()
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment without anything."""
    folder = tmp_path_factory.mktemp("environment")
    _run(sys.executable, "-m", "venv", "--without-pip", folder)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    write_stored_run(open_bucket(str(folder)))
    return folder


@pytest.fixture(scope="module")
def address(store: Path) -> Iterator[str]:
    service = Service(
        open_bucket(str(store)), Settings(listen="127.0.0.1:0", metrics_listen="127.0.0.1:0", anonymous=("reader",))
    )
    yield service.address
    service.stop()


def _install(python: Path, wheel: Path, extras: str = "") -> list[str]:
    """Installs the wheel with extras, and lists what is there then."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", python]
    _run(*pip, "install", "--constraint", ROOT / "constraints.txt", f"{wheel}{extras}")
    _run(*pip, "check")
    return _run(*pip, "list", "--format=freeze").split()


def test_it_has_the_packages_and_nothing_beside(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    about = f"actstore-{VERSION}.dist-info"
    assert wheel.name == f"actstore-{VERSION}-py3-none-any.whl"
    assert {name.partition("/")[0] for name in names} == {*PACKAGES, about}
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert {"actstore/_async/lab.py", "actstore_api/v1/norm_pb2.py", f"{about}/licenses/LICENSE"} <= names
    kinds = {Path(name).suffix for name in names if not name.startswith(about)}
    assert kinds <= {".py", ".pyi", ".proto", ".typed"}


def test_it_says_what_it_is(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        about = Parser().parsestr(archive.read(f"actstore-{VERSION}.dist-info/METADATA").decode())
    assert (about["Name"], about["Version"], about["License-Expression"]) == ("actstore", VERSION, "Apache-2.0")
    assert {"bucket", "service", "worker", "train", "plot", "all"} <= set(about.get_all("Provides-Extra"))


def test_a_client_alone_and_then_with_a_bucket(wheel: Path, python: Path, store: Path, address: str) -> None:
    """-P: what is asked is the installed wheel, and no folder of this one."""
    light = _install(python, wheel)
    assert len(light) <= LIGHT_PACKAGES_MAX, light
    said = _run(python, "-P", "-c", ASK_SERVICE, address, store)
    assert "'.[bucket]'" in said
    assert "'.[service]'" in said
    assert "planted" in _run(python.parent / "actstore", "runs", "--address", address)
    more = _install(python, wheel, "[bucket]")
    assert len(more) >= 2 * len(light), more
    _run(python, "-P", "-c", ASK_BUCKET, store)
