"""Stores for tests, and how tests share a machine. Nothing is started before a test asks for it."""

import os
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from unittest.mock import patch
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from actstore._stack.seaweed import free_ports
from actstore_storage.bucket import Bucket
from actstore_storage.bucket.access import S3Access
from actstore_storage.bucket.opening import open_bucket
from tests.servers import SeaweedServer

PROJECT = Path(__file__).parents[1]
# Of Hypothesis's settings here, or in CI, all but these: how long an example takes is the machine's affair.
settings.register_profile("patient", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# Models of tests are so small that a second thread only waits. Read by torch when it is first imported, here or in a
# process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray's processes are nice to all others, so that those wait for their turn who are waited for.
os.environ.setdefault("RAY_worker_niceness", "0")
# Several pytest processes that share the tests must choose the same faults.
os.environ.setdefault("ACTSTORE_FAULT_SEED", str(random.SystemRandom().randrange(1 << 32)))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process for each processor, and with the stacks one more, which often waits for Ray."""
    return min(os.cpu_count() or 1, 4) + (config.option.markexpr != "not stack")


class Sharing(LoadScopeScheduling):
    """What several pytest processes have of the tests: each file is one's, for the sake of its fixtures, and the files
    with stacks are two's, which begin with them and have them in turn.
    """

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid.partition("::")[0])


# Stacks that are only asked questions. All others are also killed or started again: both groups take about as long.
_ASKED = ("tests/docs/", "tests/topology/", "tests/end_to_end/test_main_job.py")


@cache
def _group(file: str) -> str:
    """`file` is relative to the project, wherever pytest was started."""
    if "pytest.mark.stack" not in (PROJECT / file).read_text():
        return file
    return "stacks that are asked" if file.startswith(_ASKED) else "stacks that are killed"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Sharing:
    return Sharing(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with stacks come first, for they take longest."""
    items.sort(key=lambda item: not _group(item.nodeid.partition("::")[0]).startswith("stacks"))


@pytest.fixture(scope="session", autouse=True)
def _unflushed() -> Iterator[None]:
    """A flush to the disk is for who loses power; a test that writes would wait for thousands of them."""
    with patch("os.fsync", lambda descriptor: None):
        yield


@pytest.fixture(scope="session")
def seaweed() -> Iterator[SeaweedServer]:
    with SeaweedServer() as server:
        yield server


@pytest.fixture(scope="session")
def s3_access(seaweed: SeaweedServer) -> S3Access:
    return S3Access(seaweed.endpoint, seaweed.access_key, seaweed.secret_key, secure=False)


@pytest.fixture
def s3_address(seaweed: SeaweedServer) -> str:
    """A store of the test's own."""
    return f"s3://{seaweed.bucket}/{uuid4().hex}"


@pytest.fixture
def s3_bucket(s3_address: str, s3_access: S3Access) -> Bucket:
    return open_bucket(s3_address, s3_access)


@pytest.fixture
def local_bucket(tmp_path: Path) -> Bucket:
    folder = tmp_path / "store"
    folder.mkdir()
    return open_bucket(str(folder))


@pytest.fixture
def free_port() -> int:
    """Free when looked at; nobody listens there."""
    (port,) = free_ports(1)
    return port
