"""The wheel as its users install it: what it has, and what works in an empty environment with which extras."""

import tomllib
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

from actstore_service.server import Service
from actstore_service.settings import Settings
from actstore_storage.bucket.opening import open_bucket
from tests.packaging.environments import ROOT, empty_environment, install, run
from tests.stored_run import write_stored_run

# It fills environments from the package registry, which takes a minute.
pytestmark = pytest.mark.stack

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


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return empty_environment(tmp_path_factory.mktemp("environment"))


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


def test_it_has_the_packages_and_nothing_beside(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    about = f"actstore-{VERSION}.dist-info"
    assert wheel.name == f"actstore-{VERSION}-py3-none-any.whl"
    assert {name.partition("/")[0] for name in names} == {*PACKAGES, about}
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert {"actstore/_async/lab.py", "actstore_api/v1/norm_pb2.py", f"{about}/licenses/LICENSE"} <= names
    kinds = {Path(name).suffix for name in names if not name.startswith(about)}
    assert kinds <= {".py", ".pyi", ".proto", ".typed", ".json"}


def test_it_says_what_it_is(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        about = Parser().parsestr(archive.read(f"actstore-{VERSION}.dist-info/METADATA").decode())
    assert (about["Name"], about["Version"], about["License-Expression"]) == ("actstore", VERSION, "Apache-2.0")
    assert {"bucket", "service", "worker", "train", "plot", "all"} <= set(about.get_all("Provides-Extra"))


def test_a_client_alone_and_then_with_a_bucket(wheel: Path, python: Path, store: Path, address: str) -> None:
    """-P: what is asked is the installed wheel, and no folder of this one."""
    light = install(python, wheel)
    assert len(light) <= LIGHT_PACKAGES_MAX, light
    said = run(python, "-P", "-c", ASK_SERVICE, address, store)
    assert "'.[bucket]'" in said
    assert "'.[service]'" in said
    assert "planted" in run(python.parent / "actstore", "runs", "--address", address)
    more = install(python, f"{wheel}[bucket]")
    assert len(more) >= 2 * len(light), more
    run(python, "-P", "-c", ASK_BUCKET, store)
